"""User-space driver: how host software reaches a card, real or emulated.

`protocol/` declares every byte that crosses the bus; `shared/` is what host and device both do with memory and files;
`cards/` is what the operating system shows of cards; `transport/` is one interface with several ways in; `function/` is
an open function on one of them, and `firmware/` what its management core answers. Each may import only what stands
before it. Start with `transport/base.py`, then `function/controller.py`.
Not here: tensors, models, events for applications (`sdk/`), and the device itself (`emulator/`).
"""
