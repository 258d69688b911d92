"""The tool's time limits, in seconds."""

QUERY_S = 60.0
"""A query or a reset as a whole, when neither `--timeout` nor `NPU_TIMEOUT` says otherwise."""

WORK_S = 3600.0
"""A verb whose work is as large as what it was given (run, bench, demo)."""

ABANDON_S = 2.0
"""After a worker was told to end: a process asleep in the kernel never does, and is left behind."""

OWN_INTERRUPT_S = 1.0
"""After Ctrl-C, for a worker that the terminal interrupted too to end, before it is sent the signal again."""

INTERRUPT_S = 5.0
"""After that signal, for the worker to close its device."""

PEER_S = 600.0
"""A process that computes the reference answers."""

SIGNER_S = 600.0
"""A command that signs firmware: somebody may have to find the card and type its PIN."""

SIGNER_END_S = 5.0
"""Of the verb's time, to end a signer that hangs and to say so; of a short time, half."""

RECOVER_S = 300.0
"""Writing a whole slot through the debug port, and booting it."""

LOG_FOLLOW_POLL_S = 0.25
"""How often `fw log --follow` asks for more."""

CONSOLE_POLL_S = 0.02
"""How often the console is looked at: nobody sees a key's echo come later."""

CONSOLE_LINGER_S = 1.0
"""After the end of what was piped in, and without output, before the console is left."""

CONSOLE_STUCK_S = 10.0
"""What was piped in is not taken for so long: the firmware does not read its console."""
