"""A RISC-V machine: hart, memories, interrupt controllers, UART, boards and ELF files. Start with `machine.py`.

It knows nothing of NPUs; what is around it on the card is in `npu/`.
"""
