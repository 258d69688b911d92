"""Every time limit of the emulator, in seconds, with its reason. No other module holds a number of its own."""

REAP_S = 5.0
"""A killed child process's exit: instant unless the machine is out of memory or the process sleeps in the kernel."""

REAP_WRITER_S = 2.0
"""The same for an engine that may be writing device memory, which nobody may have before: a few ms. A reset waits for
it, and a device that cannot be sure of its memory after so long ends."""

VERIFY_S = 30.0
"""One container's verification: seconds for the largest there may be, longer on a machine that is busy."""

IDLE_POLL_S = 1e-3
"""After its last work the server looks for more this long before it sleeps; a wake-up costs the host 10 to 60 us."""

QUIET_POLL_S = 20e-6
"""Of that, this long without letting others have the CPU: the next command of a host that waits for each follows its
completion within a few us, while a yield may give a neighbour a whole slice."""

CROWDED_TURN_S = 4e-6
"""A yield takes 0.5 us; one that takes longer gave the CPU to somebody who used it, so sleeping is better."""

BUSY_POLL_S = 200e-6
"""A working device looks at its sockets this often, so that registers answer; a look costs about 1 us."""

SPIN_POLL_S = 10e-6
"""The same while it looks for work: short, because register accesses then come alone or in small groups."""

EAGER_POLL_S = 50e-6
"""After a message the sockets are looked at on every turn this long: the next access follows the reply closely."""

DMA_REPLY_S = 1.0
"""The host's answer to DMA_READ or DMA_WRITE; then the command fails instead of the device."""

ASIDE_POLL_S = 50e-3
"""While it waits for such an answer the server looks at other sockets, and for its own end, this often."""

NEGOTIATION_S = 5.0
"""From a connection to its VERSION message; the sender may be starved on a loaded machine."""

LISTEN_LOCK_S = 2.0
"""Another emulator's start in the same folder, which holds the lock for well below a millisecond."""

LISTEN_LOCK_RETRY_S = 5e-3
"""How often that lock is tried again."""

STALE_CHECK_S = 1.0
"""Connecting to a socket file that is already there, to learn whether anyone serves behind it."""

CORE_STOP_S = 2.0
"""The management core's process ends within a slice of instructions, below a millisecond; it may be starved."""

TERMINAL_ROOM_S = 1.0
"""A terminal that takes no more of the UART's output; then what is left waits in memory, and the core goes on."""

UART_READ_S = 1.5
"""Whoever has the UART's pseudo-terminal open reads the last output within this; who does not is not waited for."""

UART_POLL_S = 5e-3
"""How often it is looked whether they have."""

USBIP_REQUEST_S = 5.0
"""From a connection to the debug port's server to its first complete request; the sender may be starved."""

TRANSFER_RETRY_S = 2e-3
"""A transfer that waits for the management core's process is tried again this often; that answers within 0.2 ms."""

ACCEPT_PAUSE_S = 0.5
"""After a connection for which this process had no descriptor left, before the next one is looked at."""

CORE_MODE_POLL_S = 0.1
"""How often the debug port looks whether the core went into recovery or left it, while a host has imported it."""

DFU_DETACH_S = 0.1
"""From DETACH to leaving the bus: the host reads the answer first. Hosts wait for seconds."""

DFU_LEAVE_S = 1.0
"""From a good download's last status to leaving the bus: the host closes the device meanwhile, or resets the bus."""

DFU_LAST_STATUS_S = 10.0
"""A host that has downloaded an image asks for its fate at least this often; the device does not leave before."""
