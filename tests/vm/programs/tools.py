"""Runs npuctl several times in one interpreter, since starting one takes a guest ten seconds.

`python tools.py JSON`, where JSON is a list of argument lists; prints for each a line {"code", "stdout", "stderr"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

from sdk.cli.application import run


def captured(arguments: list[str]) -> dict[str, object]:
    """One run, with what it and its child process print."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            code = run(arguments)
        finally:
            for number, fd in enumerate(kept, 1):
                os.dup2(fd, number)
                os.close(fd)
        out.seek(0)
        err.seek(0)
        return {"code": int(code), "stdout": out.read(), "stderr": err.read()}


if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        print(json.dumps(captured(arguments)), flush=True)
