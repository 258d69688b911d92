"""Entry point of the command `npuctl`, which is in `sdk/cli/`.

It lies outside of `sdk` because importing that takes a moment. A Ctrl-C there would end in a traceback, or in a wrong
reason for an import that was cut short; as nothing has to be put right yet, it ends the tool at once.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""`ExitCode.INTERRUPTED`, which takes imports to name."""


def main() -> None:
    """Run the tool; never returns. Where Ctrl-C is ignored, as in a script's background, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from sdk.cli.standard_streams import open_missing

    open_missing()
    from sdk.cli.application import run

    code = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said: the exit code stands
    raise SystemExit(code)


if __name__ == "__main__":
    main()
