"""Arguments of the SDK that need no device: environment, addresses, shapes, dtypes, fill values, errors."""

from __future__ import annotations

import gc
import inspect
import math
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdk
from driver_shim.cards.discovery import PciCard
from sdk import environment
from sdk.memory.buffers import as_dtype, as_shape
from sdk.opening import addresses as opening
from sdk.queue.commands import exact_pattern

ERRORS = {
    "DeviceNotFound": LookupError,
    "DeviceBusy": BlockingIOError,
    "DeviceLost": ConnectionError,
    "PermissionDenied": PermissionError,
    "ContractMismatch": sdk.NpuError,
    "CommandFailed": sdk.NpuError,
    "Timeout": TimeoutError,
    "QueueFull": BlockingIOError,
    "OutOfDeviceMemory": MemoryError,
    "HostMemoryLimit": MemoryError,
    "BufferInUse": BufferError,
    "UnsupportedModel": ValueError,
    "UnsupportedPlatform": OSError,
    "Closed": ValueError,
}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of ours is set."""
    for name in ("NPU_DEVICE", "NPU_VISIBLE_DEVICES", "NPU_STRICT", "NPU_PROFILE", "NPU_HOST_MEMORY", "NPU_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_ours_and_the_builtin_it_is_a_kind_of(name: str) -> None:
    kind = getattr(sdk, name)
    assert issubclass(kind, sdk.NpuError) and issubclass(kind, ERRORS[name])
    assert kind.code == kind.code.lower() and " " not in kind.code and "_" not in kind.code


@pytest.mark.parametrize("name", ERRORS)
def test_errors_survive_pickling_with_all_they_carry(name: str) -> None:
    extra = {"depth": 4} if name == "QueueFull" else {}
    error = getattr(sdk, name)(
        "it broke", device="pci:0", subsystem="queue", cause="dust", remedy="wipe it", code="dusty", **extra
    )
    for copy in (pickle.loads(pickle.dumps(error)), error.again()):
        assert type(copy) is type(error) and copy is not error
        assert (copy.device, copy.subsystem, copy.cause, copy.remedy, copy.code) == (
            "pci:0",
            "queue",
            "dust",
            "wipe it",
            "dusty",
        )
        assert str(copy) == "it broke (wipe it)" and copy.args == error.args


def test_codes_of_error_kinds_are_distinct() -> None:
    codes = [getattr(sdk, name).code for name in ERRORS]
    assert len(set(codes)) == len(codes)


# --- environment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("1", 1), ("4096", 4096), ("4k", 4096), ("512M", 512 << 20), ("4G", 4 << 30), ("2GiB", 2 << 30)],
)
def test_host_memory_limit_takes_bytes_and_units(clean: pytest.MonkeyPatch, text: str, expected: int | None) -> None:
    clean.setenv("NPU_HOST_MEMORY", text)
    assert environment.host_memory_bytes() == expected


@pytest.mark.parametrize("text", ["0", "-1", "lots", "1.5G", "G", "1 2", "0x10", "²"])
def test_unreadable_host_memory_limits_are_refused(clean: pytest.MonkeyPatch, text: str) -> None:
    clean.setenv("NPU_HOST_MEMORY", text)
    with pytest.raises(ValueError, match=r"NPU_HOST_MEMORY.*512M"):
        environment.host_memory_bytes()


@pytest.mark.parametrize(("text", "expected"), [("", 60.0), ("2.5", 2.5), ("inf", math.inf)])
def test_time_out_of_the_environment(clean: pytest.MonkeyPatch, text: str, expected: float) -> None:
    clean.setenv("NPU_TIMEOUT", text)
    assert environment.timeout_s() == expected


@pytest.mark.parametrize("text", ["0", "-3", "nan", "soon"])
def test_unreadable_time_outs_are_refused(clean: pytest.MonkeyPatch, text: str) -> None:
    clean.setenv("NPU_TIMEOUT", text)
    with pytest.raises(ValueError, match="NPU_TIMEOUT"):
        sdk.Device("emulator")


@pytest.mark.parametrize("timeout", [0, -1, math.nan, True, "5"])
def test_unusable_time_outs_are_refused_before_anything_starts(clean: pytest.MonkeyPatch, timeout: object) -> None:
    with pytest.raises(ValueError, match="timeout must be seconds"):
        sdk.Device("emulator", timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["maybe", "2"])
def test_strictness_is_yes_or_no(clean: pytest.MonkeyPatch, text: str) -> None:
    clean.setenv("NPU_STRICT", text)
    with pytest.raises(ValueError, match="NPU_STRICT"):
        sdk.Device()


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "",
        "emulatr",
        "pci:",
        "pci:card",
        "pci:../03:00.0",
        "vfio-user:",
        "vfio-user",
        "usb:",
        "usb",
        "EMULATOR",
        "emulator ",
    ],
)
def test_unknown_addresses_are_refused_with_the_accepted_forms(clean: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(ValueError, match=r"emulator"):
        sdk.Device(address)


@pytest.mark.parametrize("address", [7, b"emulator", ["emulator"]])
def test_addresses_are_strings(address: object) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        sdk.Device(address)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("nonesuch", "unknown profile 'nonesuch'.*generic"),
        ("?kernels=quick", "kernels=quick.*auto"),
        ("?speed=9", "speed.*kernels="),
        ("?core=two", "core=two.*none"),
    ],
)
def test_unknown_profiles_and_options_name_what_there_is(clean: pytest.MonkeyPatch, rest: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sdk.Device("emulator:" + rest)


def test_profile_comes_from_the_address_then_the_environment(clean: pytest.MonkeyPatch) -> None:
    assert opening.parse_emulator("").profile == "generic"
    assert opening.parse_emulator("generic?kernels=golden") == ("generic", "golden", "auto")
    assert opening.parse_emulator("generic?core=none") == ("generic", "auto", "none")
    clean.setenv("NPU_PROFILE", "nonesuch")
    assert opening.parse_emulator("generic").profile == "generic"
    with pytest.raises(ValueError, match="nonesuch"):
        opening.parse_emulator("?kernels=numpy")


def test_device_variable_names_the_device(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("NPU_DEVICE", "vfio-user:/nowhere/npu.sock")
    with pytest.raises(sdk.DeviceNotFound) as caught:
        sdk.Device()
    assert caught.value.device == "vfio-user:/nowhere/npu.sock"
    assert isinstance(caught.value, LookupError)


def test_strict_mode_never_falls_back(clean: pytest.MonkeyPatch) -> None:
    with pytest.raises(sdk.DeviceNotFound, match="strict"):
        sdk.Device(strict=True)
    clean.setenv("NPU_STRICT", "1")
    with pytest.raises(sdk.DeviceNotFound, match="strict"):
        sdk.Device()


def test_the_emulator_never_hides_a_card(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(opening, "find_cards", lambda: [PciCard("0000:03:00.0", None)])
    for strict in (True, False):
        with pytest.raises(sdk.DeviceNotFound, match=r"0000:03:00\.0"):
            opening.open_address(None, strict, 1.0)


def test_falling_back_warns_once_a_process(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(opening, "_open_private", lambda address, timeout: address)
    clean.setattr(opening, "_warned", False)
    gc.collect()  # what earlier tests left unclosed warns now, not while this one listens
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            opening.open_address(None, False, 1.0)
    assert [warning.category for warning in caught] == [sdk.EmulatorFallbackWarning]


@pytest.mark.parametrize(("choice", "said"), [("share", "reserved"), ("Wait", '"fail" or "wait"'), (None, "None")])
def test_when_busy_has_two_choices(clean: pytest.MonkeyPatch, choice: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sdk.Device("emulator", when_busy=choice)  # type: ignore[arg-type]


def test_other_platforms_are_refused_at_open(clean: pytest.MonkeyPatch) -> None:
    clean.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(sdk.UnsupportedPlatform, match="riscv64"):
        sdk.Device("emulator")


@pytest.mark.parametrize(
    ("function", "keyword"),
    [(sdk.Device.queue, "priority"), (sdk.Queue.copy, "deadline")],
)
def test_keywords_that_are_not_built_are_type_errors(function: object, keyword: str) -> None:
    assert keyword not in inspect.signature(function).parameters  # type: ignore[arg-type]
    assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())  # type: ignore[arg-type]


# --- shapes and dtypes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(5, (5,)), ((), ()), ([2, 3], (2, 3)), (np.int64(4), (4,)), (np.array([2, 0]), (2, 0)), ((0,), (0,))],
)
def test_shapes(shape: object, expected: tuple[int, ...]) -> None:
    assert as_shape(shape) == expected
    assert all(type(extent) is int for extent in as_shape(shape))


@pytest.mark.parametrize("shape", [1.0, (1.5,), "12", None, True, (True, 2), object(), {"a": 1}])
def test_what_is_no_shape_is_a_type_error(shape: object) -> None:
    with pytest.raises(TypeError, match="shape must be"):
        as_shape(shape)


@pytest.mark.parametrize("shape", [-1, (2, -3), (1,) * 33])
def test_impossible_extents_are_value_errors(shape: object) -> None:
    with pytest.raises(ValueError, match="extents"):
        as_shape(shape)


@pytest.mark.parametrize("name", ["bfloat16", "bf16", ml_dtypes.bfloat16])
def test_bfloat16_by_name_and_by_type(name: object) -> None:
    assert as_dtype(name) == np.dtype(ml_dtypes.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [object, "O", "S", "V", "nonesuch", None, np.dtype((np.int8, (3,)))])
def test_types_without_a_fixed_layout_are_type_errors(dtype: object) -> None:
    with pytest.raises(TypeError):
        as_dtype(dtype)  # type: ignore[arg-type]


# --- fill values ----------------------------------------------------------------------------------------------------

BF16 = as_dtype("bf16")


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (-128, "int8", b"\x80"),
        (255, "uint8", b"\xff"),
        (True, "bool", b"\x01"),
        (1, "bool", b"\x01"),
        (0.5, "float16", b"\x00\x38"),
        (1.0, BF16, b"\x80\x3f"),
        (math.inf, "float32", b"\x00\x00\x80\x7f"),
        (-math.inf, BF16, b"\x80\xff"),
        (-0.0, "float32", b"\x00\x00\x00\x80"),
        (2.0, "int16", b"\x02\x00"),
        (np.float32(0.1), "float64", np.float64(np.float32(0.1)).tobytes()),
        (np.array(7), "int64", (7).to_bytes(8, "little")),
        (1 + 2j, "complex64", b"\x00\x00\x80\x3f\x00\x00\x00\x40"),
        (3 + 0j, "float32", b"\x00\x00\x40\x40"),
        (-(2**63), "int64", b"\0\0\0\0\0\0\0\x80"),
        (2**64 - 1, "uint64", b"\xff" * 8),
        (258, ">i2", b"\x01\x02"),
    ],
)
def test_fill_values_become_the_bytes_of_the_dtype(value: object, dtype: object, expected: bytes) -> None:
    assert exact_pattern(value, as_dtype(dtype)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float16", BF16, "float32", "float64", "complex64"])
def test_nan_fills_with_a_nan(dtype: object) -> None:
    element = np.frombuffer(exact_pattern(math.nan, as_dtype(dtype)), as_dtype(dtype))  # type: ignore[arg-type]
    assert np.isnan(element.astype(np.complex128)).all()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (128, "int8"),
        (-1, "uint8"),
        (0.5, "int32"),
        (0.1, "float32"),
        (65520.0, "float16"),
        (1.0009765625, BF16),
        (math.nan, "int8"),
        (math.inf, "int64"),
        (2, "bool"),
        (1j, "float32"),
        (2**64, "uint64"),
        (2**53 + 1, "float64"),
        (2**2000, "float64"),
        (1e300, "float32"),
    ],
)
def test_values_that_would_change_are_refused(value: object, dtype: object) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match="fill"):
        warnings.simplefilter("error")
        exact_pattern(value, as_dtype(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "1", b"1", [1], (1,), np.array([1]), {}, object()])
def test_fill_takes_one_number(value: object) -> None:
    with pytest.raises(TypeError, match="one number"):
        exact_pattern(value, np.dtype("int8"))


def test_elements_too_wide_for_a_pattern_are_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match="host buffer"):
        exact_pattern(0, np.dtype("complex128"))


@given(st.one_of(st.integers(), st.floats(), st.booleans()), st.sampled_from(["int8", "uint16", "int64", "bool"]))
def test_integer_fills_are_exact_or_refused(value: float, dtype: str) -> None:
    try:
        pattern = exact_pattern(value, np.dtype(dtype))
    except ValueError:
        return
    assert np.frombuffer(pattern, dtype)[0] == value


@given(st.one_of(st.integers(), st.floats()), st.sampled_from(["float16", "float32", "float64", "bf16"]))
def test_float_fills_are_exact_or_refused(value: float, dtype: str) -> None:
    try:
        pattern = exact_pattern(value, as_dtype(dtype))
    except ValueError:
        return
    back = np.frombuffer(pattern, as_dtype(dtype)).astype(np.float64)[0].item()
    assert back == value or (math.isnan(back) and math.isnan(value))
