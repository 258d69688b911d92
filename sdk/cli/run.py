"""`npuctl run`: run an ONNX model on a device, and check it against onnxruntime."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from numpy.typing import NDArray

from driver_shim.errors import CommandFailed, NpuError, UnsupportedModel
from sdk.cli import load_progress, timeouts
from sdk.cli.bounded_number import bounded
from sdk.cli.device_selection import device_option, open_for_comparison, open_for_work
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.cli.verb import verb

if TYPE_CHECKING:
    from sdk.compiler.graph import Graph
    from sdk.device import Device

_TIMES = bounded(int, "a whole number from 1 on", least=1)

PEER = "sdk.validate.onnxruntime_peer"


@verb("run", limit_s=timeouts.WORK_S)
@click.argument("model_path", metavar="MODEL.onnx", type=click.Path(exists=True, dir_okay=False))
@device_option
@click.option("-i", "--input", "given", multiple=True, metavar="NAME=FILE.npy[:bf16]", help="An input; repeatable.")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write outputs here.")
@click.option("--repeat", type=_TIMES, metavar="TIMES", default=1, show_default=True, help="Run this often.")
@click.option("--verify", is_flag=True, help="Compare with onnxruntime; exit 5 beyond the tolerance.")
def command(
    frame: Frame,
    model_path: str,
    wanted: tuple[str, ...],
    given: tuple[str, ...],
    folder: Path | None,
    repeat: int,
    verify: bool,
) -> None:
    """Run a model. Without -i it gets seeded inputs, and says so."""
    from sdk.compiler import read_model

    frame.folds = True
    model = read_model(model_path)  # what is wrong with it or its inputs is told before a device is opened
    inputs = _inputs(frame, model, given)
    choose = open_for_comparison if verify else open_for_work
    with choose(wanted, frame) as device:
        try:
            ran, outputs = _run(frame, device, model, inputs, repeat)
        except (CommandFailed, UnsupportedModel) as error:
            if given or not inputs:
                raise
            raise _of_made_up(error) from error
        entry = {"address": device.address, "model": model_path, "seeded_inputs": not given, **ran}
    frame.add(entry)
    if folder is not None:
        from sdk.cli.model_files import write_outputs

        entry["files"] = write_outputs(folder, outputs)
        frame.tell(f"wrote {', '.join(entry['files'])}")
    if verify:
        _verify(frame, entry, model_path, model, inputs, outputs)


def _inputs(frame: Frame, model: Graph, given: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """What `-i` names, else seeded arrays."""
    from sdk.cli import model_files
    from sdk.compiler import model_signature

    infos = model_signature(model).inputs
    if given:
        return model_files.read_inputs(given, infos)
    if infos:
        frame.remark(f"no input given; using arrays from seed {model_files.SEED}")
    return model_files.seeded_inputs(infos)


def _of_made_up(error: CommandFailed | UnsupportedModel) -> NpuError:
    """The same error of a run that the user gave no inputs: those may be all that is wrong."""
    from sdk.cli.model_files import SEED

    again = error.again()
    again.message = f"{error.message}\n  the inputs were made up at random (seed {SEED}); the model may not take such"
    again.remedy = "give real ones, each by -i NAME=FILE.npy"
    return again


def _run(
    frame: Frame, device: Device, graph: Graph, inputs: dict[str, NDArray[Any]], repeat: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """(what the report says of the runs, outputs of the last)."""
    began = time.perf_counter()
    with load_progress.on_terminal() as tell:
        model = device.load(graph, shapes={name: [array.shape] for name, array in inputs.items()}, progress=tell)
    load_seconds = time.perf_counter() - began
    walls, ticks = [], []
    for _ in range(repeat):
        began = time.perf_counter()
        event = model.submit(inputs)
        outputs = event.result()
        walls.append(time.perf_counter() - began)
        ticks.append((event.end_tick or 0) - (event.start_tick or 0))
    for name, array in outputs.items():
        frame.tell(f"{name}: {array.dtype.name} {tuple(array.shape)}")
    hertz = device.info.tick_hz
    device_seconds = statistics.median(ticks) / hertz if hertz else None
    first, median = walls[0] * 1e3, statistics.median(walls) * 1e3
    frame.tell(f"loaded in {load_seconds:.3f} s, first run {first:.3f} ms, median of {repeat} {median:.3f} ms (wall)")
    frame.tell(f"{statistics.median(ticks):,.0f} ticks (device_model), kernels {device.info.kernels}")
    kernels = Counter(run.kernel for run in model.command_runs())
    if kernels:
        providers: Counter[str] = Counter()
        for kernel, count in kernels.items():
            providers[kernel.partition(".")[0]] += count
        whose = ", ".join(f"{provider} {count}" for provider, count in providers.most_common())
        frame.tell(f"{kernels.total()} commands, by whose kernels: {whose}")
    ran = {
        "inputs": [_tensor(name, array) for name, array in inputs.items()],
        "outputs": [_tensor(name, array) for name, array in outputs.items()],
        "runs": repeat,
        "wall_load_seconds": load_seconds,
        "wall_first_seconds": walls[0],
        "wall_median_seconds": statistics.median(walls),
        "device_model_median_ticks": statistics.median(ticks),
        "device_model_median_seconds": device_seconds,
        "kernels": device.info.kernels,
        "commands_by_kernel": dict(kernels),
        "files": [],
        "verification": None,
    }
    return ran, outputs


def _tensor(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}


def _verify(
    frame: Frame,
    entry: dict[str, Any],
    model_path: str,
    model: Graph,
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
) -> None:
    """Compare with onnxruntime and add the verdict. Raises Failure beyond the tolerance (exit 5)."""
    from sdk.validate import agreement, differences, peer_process

    foreign = [name for name, array in inputs.items() if array.dtype.isbuiltin != 1]
    if foreign:
        raise Failure(f"--verify: onnxruntime takes no {inputs[foreign[0]].dtype.name} arrays (input {foreign[0]!r})")
    peer_process.require("onnxruntime", extra="models")
    reference = peer_process.ask(PEER, {"model": model_path}, inputs, timeouts.PEER_S)
    compared = [agreement.compare(name, array, reference.arrays[name]) for name, array in outputs.items()]
    entry["verification"] = {
        "reference": f"onnxruntime {reference.facts['onnxruntime']}",
        "agrees": all(one.holds for one in compared),
        "outputs": [
            {
                "name": one.name,
                "largest_difference": one.largest_difference if one.largest_difference != float("inf") else None,
                "tolerance": one.tolerance,
                "agrees": one.holds,
            }
            for one in compared
        ],
    }
    for one in compared:
        verdict = "agrees with" if one.holds else "DIFFERS from"
        frame.tell(
            f"{one.name}: {verdict} onnxruntime {reference.facts['onnxruntime']},"
            f" largest difference {one.largest_difference:.3g} (tolerance {one.tolerance:.3g})"
        )
    wrong = [one.name for one in compared if not one.holds]
    if wrong:
        for line in differences.known(node.op for node in model.nodes):
            frame.tell(f"may differ by right, see {differences.PAGE}: {line}")
        message = f"outputs beyond the tolerance: {', '.join(wrong)}"
        frame.fail(Failure(message, ExitCode.UNHEALTHY, slug="validation-failed"), entry["address"])
