"""Every time limit of the driver, in seconds, with its reason. No other module holds a number of its own."""

DEFAULT_S = 60.0
"""Bound of bring-up, admin commands and any wait without a limit of its own (`NPU_TIMEOUT` replaces it)."""

LIVENESS_S = 0.25
"""A blocked wait looks at least this often whether the device still lives."""

QUIET_SPIN_S = 20e-6
"""A wait polls this long before it lets others have the CPU: a busy device answers within a few µs, while a yield may
give a neighbour a whole slice, 48 µs on average and milliseconds at worst."""

SPIN_S = 200e-6
"""A wait polls this long in all before it blocks: as long as a copy of 4 MiB takes. To wake up through an eventfd costs
10 to 60 µs, a quarter of that copy and more."""

ADMIN_SPIN_S = 1e-3
"""An admin command's wait polls this long, which most need a tenth of, before it naps between two looks: verifying a
program takes long, and what does it may need our CPU."""

ADMIN_NAP_S = 200e-6
"""Between two of those looks."""

READY_S = 5.0
"""Controller enable/disable handshake; the device states its own limit, this is the floor."""

WAKE_S = 0.01
"""From D3hot to D0; a function need not answer before (PCI Express Base Specification 4.0, 5.3.1.4)."""

MESSAGE_S = 5.0
"""One vfio-user message and its reply; the server answers within a second, QEMU gives up after 5 s as well."""

SOCKET_LEAST_S = 1e-3
"""A socket's time-out when nothing is left of it: zero would mean not to wait at all."""

EMULATOR_START_S = 20.0
"""A private emulator from fork to its first reply: 0.3 s idle, far more on a loaded two-core machine."""

EMULATOR_STOP_S = 5.0
"""A private emulator's exit after its owner hung up, before it is killed."""

REAP_S = 5.0
"""A killed child process's exit: instant unless the machine is out of memory or the process sleeps in the kernel."""

OPEN_S = 10.0
"""After Ctrl-C while a card is being opened: that resets it, for a tenth of a second that cannot be cut short."""

OPEN_POLL_S = 0.1
"""How often a second Ctrl-C is heard meanwhile."""

RESET_RETRY_S = 2.0
"""A reset that the kernel puts off: whoever has the function's lock resets it itself, which takes a tenth of that."""

RESET_RETRY_POLL_S = 0.02
"""Between two attempts at that."""

UNPLUG_WATCH_S = 1.0
"""The end of the thread that waits for unplugging: it only has to wake up."""

TICKETS_S = 3.0
"""The lock of the runtime folder, held for some 100 µs by whoever changes a device's line; an emulator that starts in
the same folder may hold it for a second, and one that was stopped there for ever."""

TICKETS_RETRY_S = 0.002
"""Between two attempts at that lock."""

LINE_POLL_S = 0.02
"""Whoever waits in a device's line looks this often whether its turn has come: a release is seen well within 50 ms, and
a look costs some 50 µs."""

UNSEEN_HOLDER_POLL_S = 0.1
"""Between two attempts to open a device whose holder is in no line that we see; an attempt may take milliseconds of a
server or of the kernel."""

TAKEOVER_S = 2.0
"""After a holder was killed: its locks go first, what it had open of the device after them, and a card is reset on
that way (100 ms by the PCI Express specification, more for a card that needs a bus reset)."""

USB_CONNECT_S = 2.0
"""Connecting to a debug port's server on this machine: the kernel does it without that process."""

USB_TRANSFER_S = 5.0
"""One control transfer: milliseconds, unless the other side is starved. USB itself allows 5 s (9.2.6.4)."""

USB_RETURN_S = 10.0
"""A device that left the bus to come back in another mode; hosts allow some seconds for that."""

USB_RETURN_POLL_S = 0.1
"""Between two looks for it."""

DFU_LONGEST_POLL_S = 5.0
"""The most that a device is believed when it says when to ask again."""

DFU_BLOCK_S = 10.0
"""One block, from DNLOAD to the device's wanting the next one."""

DFU_MANIFEST_S = 120.0
"""Verifying and writing a whole slot: a second on the emulator, a minute on slow flash."""

MAILBOX_S = 5.0
"""One request to the firmware and its answer. Long for the firmware is what a flash sector's erasure takes, 0.1 s, or a
core that is throttled on a busy machine."""

MAILBOX_FIRST_POLL_S = 50e-6
"""Between two looks at the mailbox at first; it doubles."""

MAILBOX_POLL_S = 0.005
"""And what it grows to."""

MAILBOX_PICK_UP_S = 0.1
"""An answer that nobody took away belongs to a client that died; a living one takes some milliseconds."""

UPDATE_POLL_S = 0.02
"""How often a firmware update is asked how far it is."""

UPDATE_STALL_S = 30.0
"""An update that makes no progress for so long: verifying an image, its longest step, takes a few seconds."""

UPDATE_ABORT_S = 2.0
"""After Ctrl-C, for an update to end in order: less than npuctl waits before it kills whoever does the work."""

CORE_BOOT_S = 180.0
"""From the management core's reset to its first answer. An image that hangs is ended by the watchdog after five seconds
of the core's own time; an emulated core that spins may take ten times as long for them on a busy machine."""

CORE_BOOT_POLL_S = 0.05
"""How often one looks meanwhile."""
