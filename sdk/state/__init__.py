"""States: what sequences of a model have in device memory, which its runs read and append to in place."""
