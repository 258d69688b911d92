"""Networks that people have: model files of published packages, and recipes for others.

`packages.py` brings the files; `image_networks.py` gives the networks of the onnx package weights, `minilm.py` makes
an ONNX model of a sentence encoder's weights, `digits.py` trains a small network.
"""
