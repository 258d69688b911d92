"""Tools of host and device alike: fences, MMIO accesses of exact width, runtime folder, whole files, children.

Unlike `protocol/` these touch memory and files. They import nothing of ours but the protocol.
"""
