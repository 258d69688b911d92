"""Tools of host and device alike: fences, exact MMIO accesses, runtime folder, whole files, children, import guard.

Unlike `protocol/` these touch memory and files. They import nothing of ours but the protocol.
"""
