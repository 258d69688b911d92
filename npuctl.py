"""Entry point of the command `npuctl`, which is in `sdk/cli/`.

It lies outside of `sdk` because importing that takes a moment. A Ctrl-C there would end in a traceback, or in a wrong
reason for an import that was cut short; as nothing has to be put right yet, it ends the tool at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

INTERRUPTED = 130
"""`ExitCode.INTERRUPTED`, which takes imports to name."""
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def main() -> None:
    """Run the tool; never returns. Where Ctrl-C is ignored, as in a script's background, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    with _without_worker_threads():
        from sdk.cli.standard_streams import open_missing

        open_missing()
        from sdk.cli.application import run

    code = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said: the exit code stands
    raise SystemExit(code)


@contextlib.contextmanager
def _without_worker_threads() -> Iterator[None]:
    """numpy's BLAS starts none as it is imported: this process forks, and multiplies no matrices.

    What its child starts, such as an emulator, has as many as ever.
    """
    threads = os.environ.get(_BLAS_THREADS)
    os.environ[_BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_BLAS_THREADS]
        if threads is not None:
            os.environ[_BLAS_THREADS] = threads


if __name__ == "__main__":
    main()
