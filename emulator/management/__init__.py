"""The management core: a RISC-V hart with its memories and peripherals, the boot ROM before it, the flash behind it.

It runs in a process of its own and meets the PCI function in shared memory only.
"""
