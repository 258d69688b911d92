// onnxruntime's API as the rest uses it: errors are exceptions inside, and statuses at the border.
#pragma once

#include <cxxabi.h>
#include <onnxruntime_c_api.h>
#include <unistd.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

// The oldest version of the API that has plug-in providers; later versions only add to its structures.
constexpr uint32_t API_VERSION = 23;
static_assert(ORT_API_VERSION >= API_VERSION, "needs the headers of onnxruntime 1.23 or later");

inline const OrtApi *ort = nullptr;

// What went wrong, in words that a user is to read.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void check(OrtStatus *status)
{
    if (status) {
        Failure failure(ort->GetErrorMessage(status));
        ort->ReleaseStatus(status);
        throw failure;
    }
}

// What onnxruntime calls: no exception leaves it. Never EP_FAIL, on which onnxruntime's Python runs a model elsewhere.
// Python ends threads that want its lock while it shuts down by unwinding them, which would end the process as a crash
// of onnxruntime's: they wait here for its end.
template <class Work>
OrtStatus *guarded(Work work) noexcept
{
    try {
        work();
        return nullptr;
    } catch (const std::exception &failure) {
        return ort->CreateStatus(ORT_FAIL, failure.what());
    } catch (const abi::__forced_unwind &) {
        for (;;) {
            pause();
        }
    }
}

// A thing that onnxruntime made for us.
template <class Thing>
class Owned {
public:
    explicit Owned(void (*release)(Thing *)) : release_(release) {}
    Owned(const Owned &) = delete;
    Owned &operator=(const Owned &) = delete;
    ~Owned()
    {
        if (thing_) {
            release_(thing_);
        }
    }
    Thing **place() { return &thing_; }
    operator const Thing *() const { return thing_; }

private:
    Thing *thing_ = nullptr;
    void (*release_)(Thing *);
};

// What onnxruntime gives by two functions of an owner, one for the number of them and one that fills an array.
template <class Element, class Owner>
std::vector<Element> listed(OrtStatus *(*count)(const Owner *, size_t *),
                            OrtStatus *(*fill)(const Owner *, Element *, size_t), const Owner *owner)
{
    size_t size = 0;
    check(count(owner, &size));
    std::vector<Element> found(size);
    check(fill(owner, found.data(), size));
    return found;
}

inline std::string name_of(const OrtValueInfo *value)
{
    const char *name = "";
    if (value) {  // an optional one that is left out has none
        check(ort->GetValueInfoName(value, &name));
    }
    return name;
}

struct Shape {
    ONNXTensorElementDataType type;
    std::vector<int64_t> extents;
};

inline Shape shape_of(const OrtTensorTypeAndShapeInfo *info)
{
    Shape shape{};
    check(ort->GetTensorElementType(info, &shape.type));
    shape.extents = listed<int64_t>(ort->GetDimensionsCount, ort->GetDimensions, info);
    return shape;
}

struct Tensor {
    Shape shape;
    const char *data;
    size_t size;
};

inline Tensor tensor_of(const OrtValue *value)
{
    Owned<OrtTensorTypeAndShapeInfo> info(ort->ReleaseTensorTypeAndShapeInfo);
    check(ort->GetTensorTypeAndShape(value, info.place()));
    Tensor tensor{shape_of(info), nullptr, 0};
    if (tensor.shape.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
        throw Failure("the device takes no strings");
    }
    const void *data = nullptr;
    check(ort->GetTensorData(value, &data));
    check(ort->GetTensorSizeInBytes(value, &tensor.size));
    tensor.data = static_cast<const char *>(data);
    return tensor;
}
