// NpuExecutionProvider, for onnxruntime: a graph runs on the device whole or not at all.
//
// It is a bridge: what it means to run a graph is decided in Python, by sdk/ort_provider.py, in the process's own
// interpreter. This side turns graphs into bytes, tensors into memory, and exceptions into statuses.
#include <cstring>

#include "onnx_bytes.hpp"
#include "python.hpp"

using python::call;
using python::checked;
using python::Lock;
using python::Object;
using python::py;

namespace {

constexpr char NAME[] = "NpuExecutionProvider";
constexpr char VENDOR[] = "npu-sdk";
constexpr char OPTION_PREFIX[] = "ep.npuexecutionprovider.";
constexpr int PYTHON_READS = 0x100;  // PyBUF_READ

const OrtEpApi *ep_api = nullptr;

// An object that is kept from call to call, and let go from wherever that may be.
class Kept {
public:
    void keep(Object object) { object_ = std::move(object); }
    const Object &get() const { return object_; }
    ~Kept()
    {
        if (python::is_alive()) {
            const Lock lock;
            object_ = Object();
        }
    }

private:
    Object object_;
};

Object text(const std::string &value) { return checked(py.PyUnicode_FromString(value.c_str())); }

template <class Values, class Make>
Object tuple_of(const Values &values, Make make)
{
    Object made = checked(py.PyTuple_New(static_cast<ptrdiff_t>(values.size())));
    ptrdiff_t place = 0;
    for (const auto &value : values) {
        py.PyTuple_SetItem(made.get(), place++, make(value).release());
    }
    return made;
}

Object number(int64_t value) { return checked(py.PyLong_FromLongLong(value)); }

std::vector<std::string> names_of(const std::vector<const OrtValueInfo *> &values)
{
    std::vector<std::string> names;
    for (const OrtValueInfo *value : values) {
        names.push_back(name_of(value));
    }
    return names;
}

// --- one run ------------------------------------------------------------------------------------------------------

struct Input {
    std::string name;
    Tensor tensor;
};

// (name, type, extents, memory): the memory is onnxruntime's, and lives as long as the run.
Object input_tuple(const Input &input)
{
    static char nothing[1];
    const Tensor &tensor = input.tensor;
    Object memory = checked(py.PyMemoryView_FromMemory(tensor.size ? const_cast<char *>(tensor.data) : nothing,
                                                       static_cast<ptrdiff_t>(tensor.size), PYTHON_READS));
    Object extents = tuple_of(tensor.shape.extents, number);
    return checked(py.Py_BuildValue("(siNN)", input.name.c_str(), static_cast<int>(tensor.shape.type),
                                    extents.release(), memory.release()));
}

// Copies an array, (address, bytes, extents, what keeps it), to where onnxruntime wants an output.
void put_output(OrtKernelContext *context, size_t index, PyObject *array)
{
    const auto *data = static_cast<const char *>(py.PyLong_AsVoidPtr(py.PyTuple_GetItem(array, 0)));
    const auto size = static_cast<size_t>(py.PyLong_AsLongLong(py.PyTuple_GetItem(array, 1)));
    PyObject *shape = py.PyTuple_GetItem(array, 2);
    std::vector<int64_t> extents(static_cast<size_t>(py.PyTuple_Size(shape)));
    for (size_t axis = 0; axis < extents.size(); ++axis) {
        extents[axis] = py.PyLong_AsLongLong(py.PyTuple_GetItem(shape, static_cast<ptrdiff_t>(axis)));
    }
    OrtValue *value = nullptr;
    check(ort->KernelContext_GetOutput(context, index, extents.data(), extents.size(), &value));
    const Tensor wanted = tensor_of(value);
    if (wanted.size != size) {
        throw Failure("output " + std::to_string(index) + " has " + std::to_string(size) +
                      " bytes, onnxruntime expects " + std::to_string(wanted.size));
    }
    if (size) {
        memcpy(const_cast<char *>(wanted.data), data, size);
    }
}

// The node that a whole graph became.
class Fused : public OrtNodeComputeInfo {
public:
    Fused(const Object &session, std::vector<std::string> inputs, std::vector<std::string> outputs)
        : OrtNodeComputeInfo{}, session_(session), inputs_(std::move(inputs)), outputs_(std::move(outputs))
    {
        ort_version_supported = API_VERSION;
        CreateState = [](OrtNodeComputeInfo *self, OrtNodeComputeContext *, void **state) -> OrtStatus * {
            *state = self;
            return nullptr;
        };
        Compute = [](OrtNodeComputeInfo *self, void *, OrtKernelContext *context) -> OrtStatus * {
            return guarded([&] { static_cast<Fused *>(self)->run(context); });
        };
        ReleaseState = [](OrtNodeComputeInfo *, void *) {};
    }

private:
    void run(OrtKernelContext *context) const
    {
        std::vector<Input> inputs;
        for (size_t index = 0; index < inputs_.size(); ++index) {
            const OrtValue *value = nullptr;
            check(ort->KernelContext_GetInput(context, index, &value));
            inputs.push_back({inputs_[index], tensor_of(value)});
        }
        const Lock lock;
        const Object given = tuple_of(inputs, input_tuple);
        const Object wanted = tuple_of(outputs_, text);
        const Object result = call(session_, "run", "(OO)", given.get(), wanted.get());
        PyObject *arrays = py.PyTuple_GetItem(result.get(), 0);
        for (size_t index = 0; index < outputs_.size(); ++index) {
            put_output(context, index, py.PyTuple_GetItem(arrays, static_cast<ptrdiff_t>(index)));
        }
        if (py.PyLong_AsLongLong(py.PyTuple_GetItem(result.get(), 1))) {
            py.PyErr_SetInterrupt();
        }
    }

    const Object &session_;
    std::vector<std::string> inputs_, outputs_;
};

// --- one session --------------------------------------------------------------------------------------------------

class Provider : public OrtEp {
public:
    Provider(const Object &module, const Object &options, const OrtLogger *logger) : OrtEp{}, logger_(logger)
    {
        session_.keep(call(module, "ProviderSession", "(O)", options.get()));
        ort_version_supported = API_VERSION;
        GetName = [](const OrtEp *) noexcept -> const char * { return NAME; };
        GetCapability = [](OrtEp *self, const OrtGraph *graph, OrtEpGraphSupportInfo *info) noexcept -> OrtStatus * {
            return guarded([&] { static_cast<Provider *>(self)->claim(graph, info); });
        };
        Compile = [](OrtEp *self, const OrtGraph **, const OrtNode **nodes, size_t count, OrtNodeComputeInfo **made,
                     OrtNode **) noexcept -> OrtStatus * {
            return guarded([&] { static_cast<Provider *>(self)->compile(nodes, count, made); });
        };
        ReleaseNodeComputeInfos = [](OrtEp *, OrtNodeComputeInfo **infos, size_t count) noexcept {
            for (size_t index = 0; index < count; ++index) {
                delete static_cast<Fused *>(infos[index]);
            }
        };
    }

private:
    // Take all nodes of a model or none. Graphs inside nodes come by themselves, too, and go with the node around them.
    void claim(const OrtGraph *graph, OrtEpGraphSupportInfo *info)
    {
        const OrtNode *parent = nullptr;
        check(ort->Graph_GetParentNode(graph, &parent));
        const auto nodes = listed<const OrtNode *>(ort->Graph_GetNumNodes, ort->Graph_GetNodes, graph);
        if (parent || nodes.empty()) {
            return;
        }
        const std::string reason = refusal(graph);
        if (!reason.empty()) {
            warn("the model runs in onnxruntime, not on the device: " + reason);
            was_refused_ = true;
            return;
        }
        if (was_refused_) {
            warn("now that onnxruntime has written out its functions, the model runs on the device");
        }
        OrtNodeFusionOptions options{};
        options.ort_version_supported = API_VERSION;
        options.drop_constant_initializers = true;
        check(ep_api->EpGraphSupportInfo_AddNodesToFuse(info, nodes.data(), nodes.size(), &options));
    }

    // Why the device does not run the model; empty if it does.
    std::string refusal(const OrtGraph *graph) const
    {
        std::string bytes;
        try {
            bytes = onnx_bytes(graph);
        } catch (const Failure &failure) {
            return failure.what();
        }
        const Lock lock;
        Object model = checked(py.PyBytes_FromStringAndSize(bytes.data(), static_cast<ptrdiff_t>(bytes.size())));
        bytes = {};
        return python::text_of(call(session_.get(), "claim", "(N)", model.release()).get());
    }

    void compile(const OrtNode **nodes, size_t count, OrtNodeComputeInfo **made) const
    {
        if (count != 1) {
            throw Failure("a model comes whole, as one graph, and not as " + std::to_string(count));
        }
        {
            const Lock lock;
            call(session_.get(), "check", nullptr);
        }
        made[0] = new Fused(
            session_.get(),
            names_of(listed<const OrtValueInfo *>(ort->Node_GetNumInputs, ort->Node_GetInputs, nodes[0])),
            names_of(listed<const OrtValueInfo *>(ort->Node_GetNumOutputs, ort->Node_GetOutputs, nodes[0])));
    }

    void warn(const std::string &message) const noexcept
    {
        OrtStatus *failed = ort->Logger_LogMessage(logger_, ORT_LOGGING_LEVEL_WARNING, message.c_str(), __FILE__,
                                                   __LINE__, NAME);
        if (failed) {
            ort->ReleaseStatus(failed);
        }
    }

    const OrtLogger *logger_;
    Kept session_;
    bool was_refused_ = false;
};

// --- the library --------------------------------------------------------------------------------------------------

// The options that the user gave for our devices: {name: value}.
Object options_of(const OrtSessionOptions *session_options)
{
    Owned<OrtKeyValuePairs> entries(ort->ReleaseKeyValuePairs);
    check(ort->GetSessionOptionsConfigEntries(session_options, entries.place()));
    const char *const *keys = nullptr, *const *values = nullptr;
    size_t count = 0;
    ort->GetKeyValuePairs(entries, &keys, &values, &count);
    Object options = checked(py.PyDict_New());
    for (size_t index = 0; index < count; ++index) {
        if (strncmp(keys[index], OPTION_PREFIX, strlen(OPTION_PREFIX)) == 0) {
            const Object name = text(keys[index] + strlen(OPTION_PREFIX)), value = text(values[index]);
            py.PyDict_SetItem(options.get(), name.get(), value.get());
        }
    }
    return options;
}

class Factory : public OrtEpFactory {
public:
    Factory() : OrtEpFactory{}
    {
        const Lock lock;
        module_.keep(checked(py.PyImport_ImportModule("sdk.ort_provider")));
        vendor_ = static_cast<uint32_t>(py.PyLong_AsLongLong(call(module_.get(), "vendor", nullptr).get()));
        version_ = python::text_of(call(module_.get(), "version", nullptr).get());
        ort_version_supported = API_VERSION;
        GetName = [](const OrtEpFactory *) noexcept -> const char * { return NAME; };
        GetVendor = [](const OrtEpFactory *) noexcept -> const char * { return VENDOR; };
        GetVendorId = [](const OrtEpFactory *self) noexcept { return static_cast<const Factory *>(self)->vendor_; };
        GetVersion = [](const OrtEpFactory *self) noexcept {
            return static_cast<const Factory *>(self)->version_.c_str();
        };
        GetSupportedDevices = [](OrtEpFactory *self, const OrtHardwareDevice *const *devices, size_t count,
                                 OrtEpDevice **made, size_t room, size_t *made_count) noexcept -> OrtStatus * {
            return guarded([&] { *made_count = room ? offer(self, devices, count, made) : 0; });
        };
        CreateEp = [](OrtEpFactory *self, const OrtHardwareDevice *const *, const OrtKeyValuePairs *const *, size_t,
                      const OrtSessionOptions *options, const OrtLogger *logger, OrtEp **made) noexcept -> OrtStatus * {
            return guarded([&] {
                const Lock lock;
                *made = new Provider(static_cast<Factory *>(self)->module_.get(), options_of(options), logger);
            });
        };
        ReleaseEp = [](OrtEpFactory *, OrtEp *ep) noexcept { delete static_cast<Provider *>(ep); };
        // Tensors stay in memory of the host's, by onnxruntime's own allocator.
        CreateAllocator = [](OrtEpFactory *, const OrtMemoryInfo *, const OrtKeyValuePairs *,
                             OrtAllocator **allocator) noexcept -> OrtStatus * {
            *allocator = nullptr;
            return nullptr;
        };
        ReleaseAllocator = [](OrtEpFactory *, OrtAllocator *) noexcept {};
        CreateDataTransfer = [](OrtEpFactory *, OrtDataTransferImpl **transfer) noexcept -> OrtStatus * {
            *transfer = nullptr;
            return nullptr;
        };
        IsStreamAware = [](const OrtEpFactory *) noexcept { return false; };
        CreateSyncStreamForDevice = [](OrtEpFactory *, const OrtMemoryDevice *, const OrtKeyValuePairs *,
                                       OrtSyncStreamImpl **stream) noexcept -> OrtStatus * {
            *stream = nullptr;
            return nullptr;
        };
    }

private:
    // One device, whichever the option "device" names. onnxruntime knows no cards of ours, so it stands beside the CPU.
    static size_t offer(OrtEpFactory *self, const OrtHardwareDevice *const *devices, size_t count, OrtEpDevice **made)
    {
        for (size_t index = 0; index < count; ++index) {
            if (ort->HardwareDevice_Type(devices[index]) == OrtHardwareDeviceType_CPU) {
                check(ep_api->CreateEpDevice(self, devices[index], nullptr, nullptr, made));
                return 1;
            }
        }
        return 0;
    }

    Kept module_;
    uint32_t vendor_ = 0;
    std::string version_;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus *CreateEpFactories(const char *, const OrtApiBase *base,
                                                                               const OrtLogger *,
                                                                               OrtEpFactory **factories, size_t room,
                                                                               size_t *count)
{
    ort = base->GetApi(API_VERSION);
    if (!ort) {
        return nullptr;  // without its API there is no status either; an onnxruntime this old looks for no providers
    }
    return guarded([&] {
        ep_api = ort->GetEpApi();
        python::find_all();
        if (room == 0) {
            throw Failure("onnxruntime has no room for a provider");
        }
        factories[0] = new Factory();
        *count = 1;
    });
}

extern "C" __attribute__((visibility("default"))) OrtStatus *ReleaseEpFactory(OrtEpFactory *factory)
{
    delete static_cast<Factory *>(factory);
    return nullptr;
}
