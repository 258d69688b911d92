"""magika's side of the demo, in a process of its own: the `magika` package imports onnxruntime, the demo must not.

It reads the files, makes the features that its model takes, says which files it would not send to a model, and
computes the reference answers.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from sdk.validate import peer_process

INPUT, OUTPUT = "bytes", "target_label"
"""Input and output of magika's model."""
FEATURES, REFERENCE = "features", "reference"
"""Arrays of the answer: int32 [files, tokens] and float32 [files, labels], one row a file that a model sees."""


def _skip_reason(result: Any) -> str:
    """Why magika answers without its model."""
    if not result.ok:
        return str(result.status)
    label = str(result.prediction.output.label)
    return {"directory": "a folder", "empty": "empty", "symlink": "a link"}.get(label, f"too little content ({label})")


def serve() -> None:
    """Answer one request: facts {"paths": [...]}."""
    import onnxruntime
    from magika import Magika

    asked = peer_process.request()
    magika = Magika()
    config = magika._model_config
    classified, skipped, rows = [], {}, []
    for path in asked.facts["paths"]:
        try:
            result, features = magika._get_result_or_features_from_path(Path(path))
        except OSError as error:  # files of /proc, for one, cannot be read from their end
            skipped[path] = f"cannot be read ({error.strerror})"
            continue
        if features is None:
            skipped[path] = _skip_reason(result)
            continue
        classified.append(path)
        rows.append([*features.beg[: config.beg_size], *features.end[len(features.end) - config.end_size :]])
    tokens = np.array(rows, np.int32).reshape(len(rows), config.beg_size + config.end_size)
    labels = [str(label) for label in config.target_labels_space]
    # one file at a time, as `identify_path` does: onnxruntime's sums in larger batches are up to 1.2e-4 further off
    reference = [magika._onnx_session.run([OUTPUT], {INPUT: tokens[row : row + 1]})[0] for row in range(len(rows))]
    facts = {
        "model": str(magika._model_path),
        "model_name": magika.get_model_name(),
        "magika": importlib.metadata.version("magika"),
        "onnxruntime": onnxruntime.__version__,
        "labels": labels,
        "classified": classified,
        "skipped": skipped,
    }
    scores = np.concatenate(reference) if reference else np.zeros((0, len(labels)), np.float32)
    peer_process.answer(facts, {FEATURES: tokens, REFERENCE: scores})


if __name__ == "__main__":
    serve()
