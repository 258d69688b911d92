"""What `reader.py` makes a model's `Graph` with.

`scope.py` goes through one graph, the model's own or one within a node, and knows which names are defined. What a graph
declares is read by `declarations.py`, what a node says of its operator by `nodes.py`. All of them note what is
wrong in the `ModelText` (`text.py`). Read `scope.py` first.
"""
