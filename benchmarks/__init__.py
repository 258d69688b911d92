"""Our figures beside a peer's, measured in one run on one machine: `python -m benchmarks.run`.

Each topic is a module with a function that returns `Figure`s. Nothing here is a test: a figure beyond its budget is
printed as such, and the run goes on.
"""
