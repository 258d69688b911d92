"""npuctl, the command line tool; its entry point is `npuctl.py`.

`application.py` holds the verbs' names; each verb is a module of its own, a group of them a package (`verb_group.py`).
The frame they share: `verb.py` (what a verb is), `frame.py` (what it reports, as text or as JSON), `supervise.py`
(device work runs in a process that the tool can abandon), `exit_codes.py`, `device_selection.py` and `timeouts.py`.
"""
