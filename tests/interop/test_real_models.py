"""Models that people use, from published packages, on a device against onnxruntime in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import sdk
from sdk.validate import barred
from tests.models import minilm, zoo
from tests.support.needs import require_all_there
from tests.support.onnxruntime_peer import run as peer

pytestmark = pytest.mark.slow
OWN_KERNELS = "emulator:generic?kernels=numpy&core=none"
"""A device in whose processes onnxruntime takes no part."""


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with sdk.Device(OWN_KERNELS) as opened:
        yield opened


def on_device(device: sdk.Device, entry: zoo.Entry) -> dict[str, NDArray[np.float32]]:
    """The model's answer; leaves the test out when its package's files are missing."""
    require_all_there(entry.missing())
    answer: dict[str, NDArray[np.float32]] = device.load(entry.model(), fallback=entry.fallback)(dict(entry.inputs()))
    assert device.info.pid is not None
    processes, holding = barred.holders(device.info.pid)
    assert processes and not holding, "onnxruntime takes part in the device's answer"
    return answer


@pytest.mark.parametrize("entry", zoo.ZOO, ids=lambda entry: entry.name)
def test_a_published_model_gives_onnxruntimes_answers(device: sdk.Device, entry: zoo.Entry) -> None:
    results = on_device(device, entry)
    expected = peer(entry.model().SerializeToString(), entry.inputs())
    assert results.keys() == expected.keys()
    for name, reference in expected.items():
        scale = np.abs(reference).max()
        assert np.isfinite(scale) and scale > 0
        assert np.ptp(reference) > 0 or reference.size == 1, "outputs that are all alike prove nothing"
        assert results[name].shape == reference.shape and results[name].dtype == reference.dtype
        assert np.abs(results[name] - reference).max() <= entry.tolerance * scale


def test_sentences_that_mean_the_same_are_each_others_nearest(device: sdk.Device) -> None:
    vectors = on_device(device, next(entry for entry in zoo.ZOO if entry.package == minilm.PACKAGE))[minilm.OUTPUT]
    nearest = (vectors @ vectors.T - 2 * np.eye(len(vectors))).argmax(axis=1)
    assert [int(number) for number in nearest[:6]] == [1, 0, 3, 2, 5, 4]
    assert nearest[7] == 8 and nearest[8] == 7


def test_basic_pitch_hears_the_notes_of_a_chord(device: sdk.Device) -> None:
    notes = on_device(device, zoo.BASIC_PITCH)["StatefulPartitionedCall:1"][0]
    lowest_key = 21
    heard = notes.max(axis=0).argsort()[-len(zoo.CHORD) :] + lowest_key
    assert sorted(int(note) for note in heard) == sorted(zoo.CHORD)


def test_pp_ocr_reads_a_line(device: sdk.Device) -> None:
    entry = next(entry for entry in zoo.ZOO if "PP-OCRv4_rec" in entry.file)
    (scores,) = on_device(device, entry).values()
    (characters,) = (entry.value for entry in entry.model().metadata_props if entry.key == "character")
    nothing = ""
    symbols = [nothing, *characters.split("\n"), " "]
    best = [int(index) for index in scores[0].argmax(axis=1)]
    changes = [index for index, before in zip(best, [None, *best], strict=False) if index != before]
    assert "".join(symbols[index] for index in changes) == zoo.TEXT


def test_int8_sentences_are_as_near_each_other_as_onnxruntime_has_them(device: sdk.Device) -> None:
    (tokens,) = on_device(device, zoo.MINILM_INT8).values()
    (expected,) = peer(zoo.MINILM_INT8.model().SerializeToString(), zoo.MINILM_INT8.inputs()).values()
    ours, theirs = (similarities(vectors) for vectors in (tokens, expected))
    assert np.abs(ours - theirs).max() <= 1e-4
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def similarities(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines of the sentences' mean tokens, −1 of each with itself."""
    mask = zoo.MINILM_INT8.inputs()["attention_mask"]
    means = (tokens * mask[:, :, np.newaxis]).sum(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines: NDArray[np.float32] = means @ means.T
    np.fill_diagonal(cosines, -1)
    return cosines


def test_silero_tells_a_voice_from_silence(device: sdk.Device) -> None:
    entry = next(entry for entry in zoo.ZOO if "sequence" in entry.file)
    speaking = on_device(device, entry)["speech_probs"]
    quiet = {**entry.inputs(), "input": zoo.hiss(*entry.inputs()["input"].shape)}
    silent = device.load(entry.model())(quiet)["speech_probs"]
    assert speaking.max() > 0.5 > silent.max()


def test_swift_hears_the_pitch_of_a_note(device: sdk.Device) -> None:
    entry = next(entry for entry in zoo.ZOO if entry.package == "swift-f0")
    answer = on_device(device, entry)
    sure = answer["confidence"] > 0.9
    assert sure.mean() > 0.9
    assert abs(np.median(answer["pitch"][sure]) / zoo.A_HERTZ - 1) < 0.01
