"""npuctl as a process, and emulators that it serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.support.paths import ROOT
from tests.support.time_scale import patience

SCHEMAS = ROOT / "sdk" / "cli" / "schemas"
PATIENCE_S = patience(120.0)
POLL_S = 0.02
_OURS = "NPU_"


def environment(runtime_folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without our variables, publishing in a folder of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "NPU_RUNTIME_DIR": str(runtime_folder), "PYTHONPATH": str(ROOT), **(extra or {})}


def published(runtime_folder: Path, field: str, value: object) -> dict[str, Any]:
    """What the emulator says of itself in that folder in whose publication a field has this value; empty if none is."""
    for path in runtime_folder.glob("*.device.json"):
        with suppress(FileNotFoundError):  # withdrawn since the folder was listed
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if found[field] == value:
                return found
    return {}


class Npuctl:
    """Runs the tool with one runtime folder; a `module` of the tests' may stand in for a part of it."""

    def __init__(self, runtime_folder: Path, module: str = "npuctl") -> None:
        self.runtime_folder = runtime_folder
        self.module = module

    def __call__(self, *arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run to the end, `typed` piped in."""
        return subprocess.run(
            [sys.executable, "-m", self.module, *arguments],
            env=environment(self.runtime_folder, variables),
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def document(self, verb: str, *arguments: str, code: int = 0, **variables: str) -> dict[str, Any]:
        """Run "verb" or "group verb" with --json, check exit code and schema, return the document."""
        done = self(*verb.split(), *arguments, "--json", **variables)
        assert done.returncode == code, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        name = verb.replace(" ", "-")
        validator(name).validate(found)
        assert found["schema"] == f"npuctl.{name}"
        return found

    def lines(
        self, verb: str, *arguments: str, code: int = 0, typed: str = "", **variables: str
    ) -> list[dict[str, Any]]:
        """As `document`, of a verb that prints a line for each piece of a stream."""
        done = self(*verb.split(), *arguments, "--json", typed=typed, **variables)
        assert done.returncode == code, done.stderr
        found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        for document in found:
            validator(verb.replace(" ", "-")).validate(document)
        return found

    @contextmanager
    def served(self, socket: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """An emulator that `npuctl emulate` serves on `socket`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "npuctl", "emulate", "--socket", str(socket), *arguments],
            env=environment(self.runtime_folder),
            stdin=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not published(self.runtime_folder, "address", f"vfio-user:{socket.resolve()}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"npuctl emulate did not come up (exit code {process.poll()})")
                time.sleep(POLL_S)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE_S)


def validator(verb: str) -> Draft202012Validator:
    """Validates a verb's documents by the schemas that the package ships."""
    documents = [json.loads(path.read_text("utf-8")) for path in SCHEMAS.glob("*.json")]
    registry: Any = Registry().with_resources(
        (document["$id"], Resource.from_contents(document)) for document in documents
    )
    schema = next(document for document in documents if document["$id"] == f"npuctl:{verb}.json")
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=registry)
