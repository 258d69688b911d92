"""Every time limit of the emulator, in seconds, with its reason. No other module holds a number of its own."""

ENGINE_REAP_S = 5.0
"""A killed engine worker's exit: instant unless the machine is out of memory or the process sleeps in the kernel."""
