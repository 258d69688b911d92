"""npuctl, the command line tool.

`application.py` holds the verbs' names; each verb is a module of its own, a group of them a package (`verb_group.py`).
The frame they share: `verb.py` (what a verb is), `frame.py` (what it reports, as text or as JSON), `supervise.py`
(device work runs in a process that the tool can abandon), `interrupts.py` (Ctrl-C outside of verbs), `exit_codes.py`,
`device_selection.py` and `timeouts.py`.
Importing this package imports nothing heavy; verbs import the SDK when they run.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of `npuctl`."""
    from sdk.cli import interrupts

    interrupts.end_at_once()
    from sdk.cli.standard_streams import open_missing

    open_missing()
    from sdk.cli.application import run

    code = run()
    interrupts.ignore()
    raise SystemExit(code)
