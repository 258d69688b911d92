"""SmolLM2-135M through states, beside onnxruntime on the same net with as many threads, in turns."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import sdk
from benchmarks.figures import Figure
from benchmarks.language_peer import LanguagePeer, Step, growing
from benchmarks.models import engine_threads
from driver_shim.protocol.commands import BINDING, COMPLETION_BYTES, SUBMISSION_BYTES
from sdk.chat import default_model
from sdk.compiler.states import BLOCK_TOKENS
from sdk.model.model import Model
from tests.support.dense_products import with_dense_products

BINDINGS = 5
"""Of a step: tokens, rows, tables, logits, the cache; their table is read for each."""
BLOCKS = 4
"""Series of ours and of the peer's in turns; of each the quietest counts, since other work on the machine only adds."""
ROUNDS = 12
CONTEXT, SHORT, LONG = 256, 64, 1024
ROWS = 8
PREFILL = 256
PEER, PACKED_PEER = "onnxruntime", "packed weights"
FIRST_TOKEN_TIMEOUT_S = 120


def left_out() -> list[str]:
    """What cannot be measured here, and why."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("gguf") is None:
        return ["language models: onnxruntime and gguf are needed; make bench installs them"]
    reason = default_model.missing()
    return [f"language models: the model is missing: {reason}"] if reason else []


def figures() -> Iterator[Figure]:
    """All figures of this topic; none without the model."""
    if left_out():
        return
    with tempfile.TemporaryDirectory() as name:
        packed, mixed, floats = _saved(Path(name))
        with (
            sdk.Device("emulator:generic?core=none") as device,
            LanguagePeer(engine_threads()) as theirs,
            LanguagePeer(engine_threads()) as theirs_packed,
        ):
            shapes = {"input_ids": [(1, 1), (ROWS, 1), (1, PREFILL)]}
            model = device.load(packed, shapes=shapes, state_memory="640MiB")
            steps = {
                "decode": Step(1, 1, CONTEXT),
                f"decode of {ROWS}": Step(ROWS, 1, CONTEXT),
                f"prefill of {PREFILL}": Step(1, PREFILL, 0),
            }
            found = {}
            for what, step in steps.items():
                ours = min(_seconds(model, step) for _ in range(BLOCKS))
                others = [
                    min(peer.seconds(path, step, ROUNDS if step.tokens == 1 else 3) for _ in range(BLOCKS))
                    for peer, path in ((theirs, floats), (theirs_packed, mixed))
                ]
                found[what] = ours, others
            yield from _compared(found)
            yield _many_rows(found)
            yield from _context(device, model)
            yield _bus_bytes(device, model)
        yield _first_token(Path(name) / "cache")


def _saved(folder: Path) -> tuple[Path, Path, Path]:
    """The net with its weights as they are stored; with those of 8 bits as floats, which onnxruntime multiplies by
    unpacking them each time; and as exporters write it."""
    import gguf

    source = default_model.path()
    model = sdk.read_gguf(source)
    packed, mixed, floats = (folder / f"{name}.onnx" for name in ("packed", "mixed", "floats"))
    onnx.save(with_dense_products(model), mixed, save_as_external_data=True)
    onnx.save(model, packed, save_as_external_data=True)
    reader = gguf.GGUFReader(source)
    weights = {
        each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors if len(each.shape) == 2
    }
    onnx.save(growing(sdk.read_gguf(source), weights), floats, save_as_external_data=True)
    return packed, mixed, floats


def _filled(model: Model, context: int) -> Any:
    state = model.state(max_tokens=context + PREFILL + ROUNDS + 4)
    left = context
    while left:
        count = min(left, PREFILL)
        model({"input_ids": np.full((1, count), 260, np.int64)}, state=state)
        left -= count
    return state


def _seconds(model: Model, step: Step) -> float:
    """Median seconds of a step, on states that hold its context and are rewound to it each time."""
    first = _filled(model, step.context)
    states = [first, *(first.fork() for _ in range(step.rows - 1))]
    ids = {"input_ids": np.full((step.rows, step.tokens), 260, np.int64)}
    samples = []
    for _ in range((ROUNDS if step.tokens == 1 else 3) + 2):
        for state in states:
            state.rewind(step.context)
        began = time.perf_counter()
        model(ids, states=states)
        samples.append(time.perf_counter() - began)
    for state in states:
        state.free()
    return statistics.median(samples[2:])


def _compared(found: dict[str, tuple[float, list[float]]]) -> Iterator[Figure]:
    budgets = {"decode": 1.5, f"prefill of {PREFILL}": 1.3}
    for what, (ours, (floats, packed)) in found.items():
        name = f"SmolLM2-135M, {what} tokens" if "prefill" in what else f"SmolLM2-135M, {what} at {CONTEXT} tokens"
        yield Figure(name, ours, "ms", PEER, floats)
        yield Figure(f"{name}, {PEER} with {PACKED_PEER}", ours, "ms", PEER, packed)
        yield Figure(f"{name}, of {PEER}'s faster time", ours / min(floats, packed), "×", budget=budgets.get(what))


def _many_rows(found: dict[str, tuple[float, list[float]]]) -> Figure:
    ratio = ROWS * found["decode"][0] / found[f"decode of {ROWS}"][0]
    return Figure(f"SmolLM2-135M, tokens/s of {ROWS} rows over one", ratio, "×", budget=3.0, at_least=True)


def _context(device: sdk.Device, model: Model) -> Iterator[Figure]:
    """What a longer past costs, on this machine and on the modelled one."""
    short, long = (min(_seconds(model, Step(1, 1, context)) for _ in range(2)) for context in (SHORT, LONG))
    yield Figure(f"decode at {LONG} tokens over {SHORT} (wall)", long / short, "×")
    ticks = [_ticks(model, context) for context in (SHORT, LONG)]
    yield Figure(f"decode at {LONG} tokens over {SHORT} (device_model)", ticks[1] / ticks[0], "×")
    yield Figure("decode (device_model)", ticks[0] / (device.info.tick_hz or 1), "ms")


def _ticks(model: Model, context: int) -> int:
    with _filled(model, context) as state:
        event = model.submit({"input_ids": np.full((1, 1), 260, np.int64)}, state=state).wait()
        return int((event.end_tick or 0) - (event.start_tick or 0))


def _bus_bytes(device: sdk.Device, model: Model) -> Figure:
    """Bytes of a step that cross the bus beside the logits: descriptors, completions, inputs, bindings."""
    with _filled(model, CONTEXT) as state:
        before = device.activity()
        for _ in range(BLOCK_TOKENS):
            out = model({"input_ids": np.full((1, 1), 260, np.int64)}, state=state)
        after = device.activity()
    commands = after.commands - before.commands
    moved = after.bytes_copied - before.bytes_copied
    value = (moved + commands * (SUBMISSION_BYTES + COMPLETION_BYTES)) / BLOCK_TOKENS
    value += BINDINGS * BINDING.size - sum(array.nbytes for array in out.values())
    each = commands / BLOCK_TOKENS
    return Figure(f"bytes on the bus for a token beside its logits ({each:.1f} commands)", value, "B", budget=512)


def _first_token(cache: Path) -> Figure:
    """From the start of the tool to the first word of an answer, compiled before."""
    command = [sys.executable, "-m", "npuctl", "chat", "--prompt", "Hi", "--max-tokens", "1", "--no-stats"]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            command,
            env={**os.environ, "NPU_CACHE_DIR": str(cache)},
            capture_output=True,
            check=True,
            timeout=FIRST_TOKEN_TIMEOUT_S,
        )
        seconds.append(time.perf_counter() - began)
    return Figure("npuctl chat, start to first token, compiled before", min(seconds[1:]), "s", budget=4.0)


if __name__ == "__main__":
    for figure in figures():
        print("  ".join(figure.row()))  # noqa: T201
