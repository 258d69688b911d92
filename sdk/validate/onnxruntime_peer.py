"""A model's reference answers, computed by onnxruntime in a process of its own (`ask` runs this module)."""

from __future__ import annotations

from typing import Any

from sdk.validate import peer_process

PRECISE_INTEGERS = ("session.x64quantprecision", "1")
"""Without it, uint8 activations saturate at 16 bits on x86 CPUs without VNNI."""


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(*PRECISE_INTEGERS)
    providers = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        # signed activations have no precise kernels and need none: the entry makes such a model fail to build
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(path, plain, providers=providers)


def serve() -> None:
    """Answer one request: facts {"model": path}, arrays by input name."""
    import onnxruntime

    asked = peer_process.request()
    session = _session(asked.facts["model"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, asked.arrays)
    peer_process.answer({"onnxruntime": onnxruntime.__version__}, dict(zip(names, results, strict=True)))


if __name__ == "__main__":
    serve()
