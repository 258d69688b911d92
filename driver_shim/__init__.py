"""User-space driver: how host software reaches a card, real or emulated.

`protocol/` declares every byte that crosses the bus; `transport/` is one interface with several ways in;
`dma.py`, `controller.py` and `queue_pair.py` stand on the two. Start with `transport/base.py`, then `controller.py`.
Not here: tensors, models, events for applications (`sdk/`), and the device itself (`emulator/`).
"""
