"""The figures of the profiles stand as they were written down before anything was compared with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from emulator.model.profile import FIGURES, load_profile, profile_names

WRITTEN_DOWN = "2026-11-30"
"""Before any prediction was held against a published result. A figure may be changed for a better source of it, in a
commit of its own that names the source, and with the day; never because of how a comparison came out.
"""
DIGEST = "89a40fe3b10a16e6221802980b7a31fb729238d730ff902d0795f779898cc824"


def digest() -> str:
    """Of every figure of every profile: value, source, and whether it is assumed."""
    written = {}
    for name in profile_names():
        profile = load_profile(name)
        figures = {
            figure: [getattr(profile, figure), *dataclasses.astuple(profile.sources[figure])]
            for figure in FIGURES
            if figure in profile.sources
        }
        written[name] = [figures, profile.bounds_only_without]
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def test_no_figure_was_changed_since_it_was_written_down() -> None:
    assert digest() == DIGEST, f"a figure differs from those of {WRITTEN_DOWN}"


def test_figures_that_are_assumed_say_so_in_their_source() -> None:
    for name in profile_names():
        for figure, source in load_profile(name).sources.items():
            assert source.assumed == source.text.startswith("assumption: "), f"{name}: {figure}"


def test_peaks_are_those_that_are_published() -> None:
    """Within 1 %, as peaks are rounded: trillions of operations a second, a multiply-accumulate being two."""
    published = {
        ("hanguang800", "int8"): 825,
        ("ppu810e", "int8"): 246,
        ("ppu810e", "bf16"): 123,
        ("ppu810e", "fp32"): 25,
        ("h20", "int8"): 296,
        ("h20", "fp16"): 148,
        ("h20", "fp32"): 44,
        ("ascend310p3", "int8"): 140,
        ("ascend910b2", "fp16"): 353.9,
        ("ascend910b4", "fp16"): 245.8,
        ("kunlun2-r200", "int8"): 256,
        ("kunlun2-r200", "fp16"): 128,
        ("mlu370-x8", "int8"): 256,
        ("mlu370-x8", "bf16"): 96,
        ("hailo8", "int8"): 26,
        ("edgetpu", "int8"): 3.93,
    }
    for (name, kind), peak in published.items():
        profile = load_profile(name)
        rate = getattr(profile, f"{kind}_macs_per_tick")
        assert abs(2e-12 * rate * profile.engines * profile.tick_hz / peak - 1) < 0.01, (name, kind)


def test_bandwidths_are_those_that_are_published() -> None:
    """Billions of bytes a second, within 1 %."""
    published = {"ppu810e": 2760, "h20": 4000, "ascend310p3": 144.2, "ascend910b2": 1382, "ascend910b4": 960}
    for name, rate in {**published, "kunlun2-r200": 512, "mlu370-x8": 614.4}.items():
        profile = load_profile(name)
        assert profile.memory_bytes_per_tick is not None
        assert abs(1e-9 * profile.memory_bytes_per_tick * profile.tick_hz / rate - 1) < 0.01, name
