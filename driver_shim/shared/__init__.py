"""What host and device share beyond the bytes: fences, MMIO accesses of exact width, the runtime folder, whole files,
and the guard against importing what answers are compared with.

Unlike `protocol/` these touch memory and files. They import nothing of ours but the protocol.
"""
