"""onnxruntime's way to run a model, on a device: `InferenceSession` and `SessionOptions` under the names it gives them.

A program is ported by its import and, where it names providers, by those:

    import sdk as ort
    session = ort.InferenceSession("net.onnx", providers=["NpuExecutionProvider"])

What of onnxruntime's interface means nothing here is not silently ignored: `_WITHOUT_EFFECT` lists the settings that
change no result and are taken, `_REFUSED` what is refused, and what to do instead.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from sdk.compiler import ANY_SHAPE
from sdk.device import Device
from sdk.errors import Closed
from sdk.here_only import HereOnly
from sdk.shared_devices import share

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import onnx

    from sdk.compiler import TensorInfo
    from sdk.model.model import Model

PROVIDER = "NpuExecutionProvider"
"""How our device is called among onnxruntime's providers."""
OPTIONS = frozenset({"device"})
"""The provider's options: "device" is an address of `sdk.Device`."""
HOST_PROVIDER = "CPUExecutionProvider"
"""Named after ours, it runs in onnxruntime on the host what the device has no command for."""
RUNS_AT_ONCE = 4
"""Of `run_async`: enough that every engine has one and the next waits."""

_TYPES = {"float32": "float"}
"""onnxruntime's names of element types, where they are not numpy's."""

_WITHOUT_EFFECT: dict[str, Any] = {
    "enable_cpu_mem_arena": True,
    "enable_mem_pattern": True,
    "enable_mem_reuse": True,
    "execution_mode": None,
    "execution_order": None,
    "graph_optimization_level": None,
    "inter_op_num_threads": 0,
    "intra_op_num_threads": 0,
    "log_severity_level": -1,
    "log_verbosity_level": 0,
    "logid": "",
    "profile_file_prefix": "onnxruntime_profile_",
    "use_deterministic_compute": False,
    "use_per_session_threads": True,
}
"""Settings of how onnxruntime uses the host, with its defaults. The device computes by itself and always alike."""

_PER_MODEL = "put it into the model"
_BY_PROVIDERS = 'give providers to InferenceSession: ["NpuExecutionProvider"]'
_NO_CONTEXT = "leave it out: a compiled program is kept in no file of its own"
_BY_TICKS = "measure by the ticks of an event: dev.load(...).submit(...).start_tick"
_BY_BUFFERS = (
    'call model = dev.load(...) with buffers, which stay on the device: model({"x": buffer}, out={"y": buffer})'
)
_BY_REPORT = "see the report of the model that dev.load(...) returns"
_BY_INFO = "see get_provider_options() and sdk.Device.info"
_REFUSED: dict[str, dict[str, str]] = {
    "SessionOptions": {
        "add_external_initializers": _PER_MODEL,
        "add_external_initializers_from_files_in_memory": _PER_MODEL,
        "add_free_dimension_override_by_denotation": "use add_free_dimension_override_by_name",
        "add_initializer": _PER_MODEL,
        "add_provider": _BY_PROVIDERS,
        "add_provider_for_devices": _BY_PROVIDERS,
        "add_session_config_entry": "leave it out: its keys are onnxruntime's own",
        "clear_ep_context_data_read_func": _NO_CONTEXT,
        "enable_profiling": _BY_TICKS,
        "get_session_config_entry": "leave it out: its keys are onnxruntime's own",
        "has_providers": _BY_PROVIDERS,
        "optimized_model_filepath": "leave it out: a compiled program is no ONNX model",
        "register_custom_ops_library": "write the operator as an ONNX function, of operators that the device has",
        "set_ep_context_data_read_func": _NO_CONTEXT,
        "set_load_cancellation_flag": "make the session in a process of its own, which can be ended",
        "set_provider_selection_policy": _BY_PROVIDERS,
        "set_provider_selection_policy_delegate": _BY_PROVIDERS,
    },
    "InferenceSession": {
        "create_ortvalue_from_shape_and_type": "use dev.buffer(shape, dtype)",
        "enable_fallback": "nothing runs elsewhere than where the providers say",
        "end_profiling": _BY_TICKS,
        "get_input_epdevices": _BY_INFO,
        "get_input_memory_infos": _BY_INFO,
        "get_output_memory_infos": _BY_INFO,
        "get_profiling_start_time_ns": _BY_TICKS,
        "get_provider_graph_assignment_info": _BY_REPORT,
        "get_tuning_results": "leave it out: nothing is tuned",
        "io_binding": _BY_BUFFERS,
        "release_captured_graph": "leave it out: nothing is captured",
        "run_with_iobinding": _BY_BUFFERS,
        "run_with_ort_values": _BY_BUFFERS,
        "run_with_ortvaluevector": _BY_BUFFERS,
        "set_ep_dynamic_options": "leave it out: there are none",
        "set_providers": "make another session",
        "set_tuning_results": "leave it out: nothing is tuned",
    },
}
"""By class: what onnxruntime has and we do not, and what to do instead."""


class NodeArg(NamedTuple):
    """An input or output as onnxruntime describes it."""

    name: str
    type: str
    """ "tensor(float)"."""
    shape: list[int | str | None]
    """An unknown dimension is its name, or None where it has none."""


class ModelMetadata(NamedTuple):
    """What a model says of itself."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class _RefusesByName:
    """Says of what onnxruntime has and this has not what to do instead."""

    def __getattr__(self, name: str) -> NoReturn:
        kind = type(self).__name__
        instead = _REFUSED.get(kind, {}).get(name)
        if instead is None:
            raise AttributeError(f"{kind!r} object has no attribute {name!r}")
        raise AttributeError(f"{kind}.{name} is onnxruntime's and not supported on a device: {instead}")


class GraphOptimizationLevel(enum.IntEnum):
    """onnxruntime's levels, which change nothing here: the device's compiler always optimises."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """onnxruntime's modes, which change nothing here: the device decides what runs beside what."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


INSTEAD = {
    "RunOptions": "a run takes none; leave it out",
    "OrtValue": "use dev.buffer() and dev.host_buffer(), which models take and give",
    "get_available_providers": "a session's are in session.get_providers()",
    "get_device": "sdk.list_devices() says what there is",
    "set_default_logger_severity": 'use logging.getLogger("npu").setLevel(...)',
    "__version__": "importlib.metadata.version('npu-sdk') has it",
}
"""Names of onnxruntime's module that this one has not, and what to do about it."""


class SessionOptions(_RefusesByName):
    """onnxruntime's options: those that change nothing here are taken, those that would are refused by name."""

    def __init__(self) -> None:
        self._free_dimensions: dict[str, int] = {}
        self.__dict__.update(_WITHOUT_EFFECT)

    def __setattr__(self, name: str, value: Any) -> None:
        asks_for_nothing = value in (False, "")  # what onnxruntime has where nobody sets it
        if name in _REFUSED["SessionOptions"] and not asks_for_nothing:
            self.__getattr__(name)
        if name not in self.__dict__ and not name.startswith("_") and name not in _REFUSED["SessionOptions"]:
            self.__getattr__(name)
        super().__setattr__(name, value)

    def add_free_dimension_override_by_name(self, name: str, value: int) -> None:
        """Give a symbolic dimension its extent. Shapes that are known so are compiled when the session is made."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"the dimension {name!r} takes an int from 0, got {value!r}")
        self._free_dimensions[name] = value

    @property
    def free_dimensions(self) -> Mapping[str, int]:
        """The dimensions that were given an extent."""
        return dict(self._free_dimensions)


class InferenceSession(_RefusesByName, HereOnly):
    """A model on a device, with onnxruntime's interface. Thread-safe.

    Args:
        path_or_bytes: a path, the bytes of a file, or an onnx.ModelProto.
        sess_options: a `SessionOptions` of this module.
        providers: ["NpuExecutionProvider"] or None; ("NpuExecutionProvider", {"device": ADDRESS}) names the device.
            "CPUExecutionProvider" after it allows the host to run what the device has no command for.
        provider_options: one dict of options per provider, in place of those pairs.
        device: an open `sdk.Device`, which stays its caller's, or an address. Sessions of one address share a device,
            which the last one closes.

    Raises what `sdk.Device` and `Device.load` raise, ValueError for other providers and options, TypeError.
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        device: Device | str | None = None,
        **further: Any,
    ) -> None:
        if further:
            raise TypeError(
                f"the argument {min(further)!r} is onnxruntime's and not supported on a device: leave it out"
            )
        self._options = _checked_options(sess_options)
        options, self._providers = _chosen(providers, provider_options)
        address = _address_of(options, device)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._here = threading.local()
        """In a thread of the pool, what marks it as one."""
        self._closed = False
        self._share = None if isinstance(device, Device) else share(address)
        self._device = device if isinstance(device, Device) else self._share.device  # type: ignore[union-attr]
        try:
            shapes = _overridden_shapes(path_or_bytes, self._options.free_dimensions)
            fallback = "cpu" if HOST_PROVIDER in self._providers else "error"
            self._model: Model = self._device.load(path_or_bytes, shapes=shapes, fallback=fallback)
        except BaseException:
            self._give_up_device()
            raise
        self._source = path_or_bytes if isinstance(path_or_bytes, (str, os.PathLike)) else None
        self._metadata = None if self._source is not None else _metadata(_header(path_or_bytes))

    # --- facts -------------------------------------------------------------------------------------------------

    def get_inputs(self) -> list[NodeArg]:
        """Name, type and shape of every input."""
        return [_node_arg(info, self._options.free_dimensions) for info in self._model.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Name, type and shape of every output."""
        return [_node_arg(info, self._options.free_dimensions) for info in self._model.outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Initialisers that the model declares as inputs, too: a run may name them."""
        return [_node_arg(info, self._options.free_dimensions) for info in self._model.optional_inputs]

    def get_modelmeta(self) -> ModelMetadata:
        """What the model says of itself; read when first asked for, where the model is a file."""
        if self._metadata is None:
            self._metadata = _metadata(_header(self._source))
        return self._metadata

    def get_providers(self) -> list[str]:
        """Where the model may run: the device, and the host if that was named."""
        return list(self._providers)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The device's address."""
        return {**{name: {} for name in self._providers}, PROVIDER: {"device": self._device.address}}

    def get_session_options(self) -> SessionOptions:
        """Those that it was made with."""
        return self._options

    def disable_fallback(self) -> None:
        """Nothing to do: nothing ever runs elsewhere unsaid."""

    # --- runs --------------------------------------------------------------------------------------------------

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: None = None
    ) -> list[NDArray[Any]]:
        """Run the model; the outputs named, in that order (None: all of them).

        Arrays are to have the declared dtype; lists and numbers are given it. Raises TypeError, ValueError,
        CommandFailed, Timeout, DeviceLost, Closed.
        """
        wanted, feed = self._checked(output_names, input_feed, run_options)
        outputs = self._model(feed)
        return [outputs[name] for name in wanted]

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[NDArray[Any]], Any, str], None],
        user_data: Any,
        run_options: None = None,
    ) -> None:
        """Run the model in a thread, which calls `callback(outputs, user_data, error)`, with error "" if all is well.

        Inputs are checked, and errors in them raised, before this returns; they may be changed after the callback.
        """
        wanted, feed = self._checked(output_names, input_feed, run_options)
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        model = self._model

        def work() -> None:
            outputs: list[NDArray[Any]] = []
            failure = ""
            try:
                results = model(feed)
                outputs = [results[name] for name in wanted]
            except Exception as error:  # noqa: BLE001 - onnxruntime hands every error to the callback
                failure = f"{type(error).__name__}: {error}"
            callback(outputs, user_data, failure)

        self._threads().submit(work)

    def close(self) -> None:
        """Take the model off the device, and the device with it if this was its last session. Idempotent.

        Runs in flight end with CommandFailed, which their callbacks are told.
        """
        self._model.close()
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=not getattr(self._here, "is_ours", False))  # a callback may close its own session
        self._give_up_device()

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<InferenceSession {self._model!r} on {self._device.address}>"

    def _give_up_device(self) -> None:
        if self._share is not None:
            self._share.close()

    def _threads(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor  # few need it

        with self._lock:
            if self._closed:
                raise Closed("the session is closed", device=self._device.address, remedy="make another one")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(RUNS_AT_ONCE, "npu-session", setattr, (self._here, "is_ours", True))
            return self._pool

    def _checked(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any
    ) -> tuple[list[str], dict[str, Any]]:
        """(the outputs wanted, the inputs as arrays). Raises TypeError, ValueError."""
        if run_options is not None:
            raise TypeError("run_options are onnxruntime's and not supported on a device: pass None")
        if not isinstance(input_feed, Mapping):
            raise TypeError(f"input_feed takes arrays by input name, got {type(input_feed).__name__}")
        names = [info.name for info in self._model.outputs]
        wanted = list(output_names or names)
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(f"output {unknown[0]!r} is unknown; the model gives: {', '.join(names)}")
        dtypes = {info.name: info.dtype for info in (*self._model.inputs, *self._model.optional_inputs)}
        return wanted, {name: _as_array(value, dtypes.get(name)) for name, value in input_feed.items()}


def _as_array(value: Any, dtype: str | None) -> Any:
    """Lists and numbers as arrays of the declared dtype; everything else as it is."""
    return np.asarray(value, dtype) if isinstance(value, (list, tuple, int, float)) and dtype is not None else value


def _checked_options(options: SessionOptions | None) -> SessionOptions:
    if options is None:
        return SessionOptions()
    if not isinstance(options, SessionOptions):
        kind = f"{type(options).__module__}.{type(options).__qualname__}"
        raise TypeError(f"sess_options must be an sdk.SessionOptions, which has the same settings, got a {kind}")
    return options


def _chosen(
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None,
    provider_options: Sequence[Mapping[str, Any]] | None,
) -> tuple[dict[str, Any], list[str]]:
    """(the options of our provider, the providers named). Raises ValueError for others, TypeError."""
    if isinstance(providers, str):
        raise TypeError(f"providers takes a list: [{providers!r}]")
    listed = [PROVIDER] if providers is None else list(providers)
    pairs = [(entry, {}) if isinstance(entry, str) else entry for entry in listed]
    if provider_options is not None:
        if len(provider_options) != len(pairs):
            raise ValueError(f"{len(provider_options)} provider_options for {len(pairs)} providers")
        pairs = [(name, {**options, **more}) for (name, options), more in zip(pairs, provider_options, strict=True)]
    names = [name for name, _ in pairs]
    unknown = [name for name in names if name not in (PROVIDER, HOST_PROVIDER)]
    if unknown:
        raise ValueError(f"the provider {unknown[0]!r} is not here; leave providers out, or give [{PROVIDER!r}]")
    if names not in ([PROVIDER], [PROVIDER, HOST_PROVIDER]):
        raise ValueError(f"providers are {names}; give [{PROVIDER!r}], or with the host after it, [{PROVIDER!r}, …]")
    for (name, given), known in zip(pairs, (OPTIONS, frozenset[str]()), strict=False):
        check_options(given, name, known)
    return dict(pairs[0][1]), names


def check_options(given: Mapping[str, Any], name: str = PROVIDER, known: frozenset[str] = OPTIONS) -> None:
    """Raise ValueError for options that a provider has not."""
    if given.keys() - known:
        raise ValueError(f"{name} has no option {min(given.keys() - known)!r}; {PROVIDER} has 'device', an address")


def _address_of(options: Mapping[str, Any], device: Device | str | None) -> str | None:
    """The address to open, unless `device` is open. Raises ValueError when two are named."""
    named = options.get("device")
    if device is None or named is None or device == named:
        return named if device is None else device if isinstance(device, str) else None
    raise ValueError(f"two devices are named: device={device!r} and the provider's {named!r}")


def _node_arg(info: TensorInfo, extents: Mapping[str, int]) -> NodeArg:
    known = () if info.shape == ANY_SHAPE else info.shape
    shape = [_dimension(info, axis, extent, extents) for axis, extent in enumerate(known)]
    return NodeArg(info.name, f"tensor({_TYPES.get(info.dtype, info.dtype)})", shape)


def _dimension(info: TensorInfo, axis: int, extent: int | str, extents: Mapping[str, int]) -> int | str | None:
    if isinstance(extent, str):
        return None if extent == f"{info.name}.{axis}" else extents.get(extent, extent)
    return extent


def _header(source: Any) -> onnx.ModelProto:
    """The model without the data that lies in other files. Raises what `onnx` raises."""
    import onnx

    if isinstance(source, onnx.ModelProto):
        return source
    if isinstance(source, bytes):
        return onnx.load_model_from_string(source)
    return onnx.load_model(os.fspath(source), load_external_data=False)


def _metadata(model: onnx.ModelProto) -> ModelMetadata:
    return ModelMetadata(
        model.producer_name,
        model.graph.name,
        model.domain,
        model.doc_string,
        model.graph.doc_string,
        model.model_version,
        {entry.key: entry.value for entry in model.metadata_props},
    )


def _overridden_shapes(source: Any, extents: Mapping[str, int]) -> dict[str, list[tuple[int, ...]]]:
    """For `Device.load`: the shapes of all inputs, when extents were given and leave no dimension unknown."""
    from google.protobuf.message import DecodeError  # with onnx, which is not everybody's

    if not extents:
        return {}
    try:
        graph = _header(source).graph
    except (DecodeError, OSError, TypeError):
        return {}  # loading it says what is wrong
    initialised = {tensor.name for tensor in graph.initializer}
    shapes = {entry.name: _shape(entry, extents) for entry in graph.input if entry.name not in initialised}
    known: Iterable[tuple[str, tuple[int, ...] | None]] = shapes.items()
    found = {name: [shape] for name, shape in known if shape is not None}
    return found if len(found) == len(shapes) else {}


def _shape(entry: onnx.ValueInfoProto, extents: Mapping[str, int]) -> tuple[int, ...] | None:
    """The extents in numbers; None when one is unknown."""
    shape = []
    for dimension in entry.type.tensor_type.shape.dim:
        extent = dimension.dim_value if dimension.HasField("dim_value") else extents.get(dimension.dim_param)
        if extent is None:
            return None
        shape.append(extent)
    return tuple(shape)
