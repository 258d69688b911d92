"""Every time limit of the driver, in seconds, with its reason. No other module holds a number of its own."""

DEFAULT_S = 60.0
"""Bound of bring-up, admin commands and any wait without a limit of its own (`NPU_TIMEOUT` replaces it)."""

LIVENESS_S = 0.25
"""A blocked wait looks at least this often whether the device still lives."""

SPIN_S = 200e-6
"""A wait polls this long before it blocks: as long as a copy of 4 MiB takes. To wake up through an eventfd costs 10 to
60 µs, a quarter of that copy and more."""

READY_S = 5.0
"""Controller enable/disable handshake; the device states its own limit, this is the floor."""

WAKE_S = 0.01
"""From D3hot to D0; a function need not answer before (PCI Express Base Specification 4.0, 5.3.1.4)."""

MESSAGE_S = 5.0
"""One vfio-user message and its reply; the server answers within a second, QEMU gives up after 5 s as well."""

EMULATOR_START_S = 20.0
"""A private emulator from fork to its first reply: 0.3 s idle, far more on a loaded two-core machine."""

EMULATOR_STOP_S = 5.0
"""A private emulator's exit after its owner hung up, before it is killed."""
