"""The open function: bring-up, admin queue, I/O rings, DMA memory, registers. Start with `controller.py`.

It stands on a transport and knows nothing of applications; what cards there are is in `cards/`.
"""
