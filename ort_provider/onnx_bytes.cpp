// Field numbers are those of onnx.proto; the wire format is that of Protocol Buffers.
#include "onnx_bytes.hpp"

#include <cstring>
#include <limits>
#include <set>

namespace {

using Values = std::vector<const OrtValueInfo *>;

enum WireType { VARINT = 0, LENGTH_DELIMITED = 2, FIXED32 = 5 };

// One message, field by field.
class Message {
public:
    void number(int field, int64_t value)
    {
        tag(field, VARINT);
        varint(static_cast<uint64_t>(value));
    }
    void real(int field, float value)
    {
        tag(field, FIXED32);
        bytes_.append(reinterpret_cast<const char *>(&value), sizeof value);
    }
    void bytes(int field, const char *data, size_t size)
    {
        tag(field, LENGTH_DELIMITED);
        varint(size);
        bytes_.append(data, size);
    }
    void text(int field, const std::string &value) { bytes(field, value.data(), value.size()); }
    void message(int field, const Message &value) { text(field, value.bytes_); }
    // Makes all that was written so far one field, a message, in place: it may be most of a model.
    void wrap(int field)
    {
        Message head;
        head.tag(field, LENGTH_DELIMITED);
        head.varint(bytes_.size());
        bytes_.insert(0, head.bytes_);
    }
    std::string &&take() { return std::move(bytes_); }

private:
    void tag(int field, WireType type) { varint(static_cast<uint64_t>(field) << 3 | type); }
    void varint(uint64_t value)
    {
        for (; value > 0x7F; value >>= 7) {
            bytes_.push_back(static_cast<char>(value | 0x80));
        }
        bytes_.push_back(static_cast<char>(value));
    }

    std::string bytes_;
};

namespace tensor {
enum Field { DIMS = 1, DATA_TYPE = 2, NAME = 8, RAW_DATA = 9 };
}
namespace attribute {
enum Field { NAME = 1, F = 2, I = 3, S = 4, T = 5, G = 6, FLOATS = 7, INTS = 8, STRINGS = 9, TYPE = 20 };
enum Type { FLOAT = 1, INT = 2, STRING = 3, TENSOR = 4, GRAPH = 5, FLOAT_LIST = 6, INT_LIST = 7, STRING_LIST = 8 };
}
namespace node {
enum Field { INPUT = 1, OUTPUT = 2, NAME = 3, OP_TYPE = 4, ATTRIBUTE = 5, DOMAIN_NAME = 7 };
}
namespace value_info {
enum Field { NAME = 1, TYPE = 2 };
enum TypeField { TENSOR_TYPE = 1 };
enum TensorTypeField { ELEMENT_TYPE = 1, SHAPE = 2 };
enum ShapeField { DIM = 1 };
enum DimensionField { VALUE = 1, PARAMETER = 2 };
}
namespace graph {
enum Field { NODE = 1, NAME = 2, INITIALIZER = 5, INPUT = 11, OUTPUT = 12 };
}
namespace model {
enum Field { IR_VERSION = 1, GRAPH = 7, OPSET_IMPORT = 8 };
enum OpsetField { DOMAIN_NAME = 1, VERSION = 2 };
}

Message tensor_message(const std::string &name, const OrtValue *value)
{
    const Tensor tensor = tensor_of(value);
    Message made;
    for (int64_t extent : tensor.shape.extents) {
        made.number(tensor::DIMS, extent);
    }
    made.number(tensor::DATA_TYPE, tensor.shape.type);
    made.text(tensor::NAME, name);
    made.bytes(tensor::RAW_DATA, tensor.data, tensor.size);
    return made;
}

Message dimension_message(int64_t extent, const char *symbol)
{
    Message made;
    if (extent >= 0) {
        made.number(value_info::VALUE, extent);
    } else if (symbol && *symbol) {
        made.text(value_info::PARAMETER, symbol);
    }
    return made;
}

Message value_message(const OrtValueInfo *value)
{
    const OrtTypeInfo *kind = nullptr;
    const OrtTensorTypeAndShapeInfo *info = nullptr;
    check(ort->GetValueInfoTypeInfo(value, &kind));
    if (kind) {
        check(ort->CastTypeInfoToTensorInfo(kind, &info));
    }
    if (!info) {
        throw Failure("'" + name_of(value) + "' is no tensor");
    }
    const Shape shape = shape_of(info);
    std::vector<const char *> symbols(shape.extents.size());
    check(ort->GetSymbolicDimensions(info, symbols.data(), symbols.size()));
    Message dimensions, tensor, type, made;
    for (size_t axis = 0; axis < symbols.size(); ++axis) {
        dimensions.message(value_info::DIM, dimension_message(shape.extents[axis], symbols[axis]));
    }
    tensor.number(value_info::ELEMENT_TYPE, shape.type);
    if (!symbols.empty()) {  // this version of the API does not tell a scalar from what has no shape declared
        tensor.message(value_info::SHAPE, dimensions);
    }
    type.message(value_info::TENSOR_TYPE, tensor);
    made.text(value_info::NAME, name_of(value));
    made.message(value_info::TYPE, type);
    return made;
}

template <class Element>
std::vector<Element> read(const OrtOpAttr *source, OrtOpAttrType type)
{
    size_t size = 0;
    if (OrtStatus *too_small = ort->ReadOpAttr(source, type, nullptr, 0, &size)) {
        ort->ReleaseStatus(too_small);
    }
    std::vector<Element> values(size / sizeof(Element));
    if (size) {
        check(ort->ReadOpAttr(source, type, values.data(), size, &size));
    }
    return values;
}

void write_strings(Message &made, const OrtOpAttr *source)
{
    const std::vector<char> joined = read<char>(source, ORT_OP_ATTR_STRINGS);
    for (size_t start = 0; start < joined.size();) {
        const size_t size = strnlen(&joined[start], joined.size() - start);
        made.bytes(attribute::STRINGS, &joined[start], size);
        start += size + 1;
    }
    made.number(attribute::TYPE, attribute::STRING_LIST);
}

Message attribute_message(const OrtOpAttr *source, const char *name, OrtOpAttrType type)
{
    Message made;
    made.text(attribute::NAME, name);
    switch (type) {
    case ORT_OP_ATTR_INT:
        made.number(attribute::I, read<int64_t>(source, type).at(0));
        made.number(attribute::TYPE, attribute::INT);
        break;
    case ORT_OP_ATTR_INTS:
        for (int64_t value : read<int64_t>(source, type)) {
            made.number(attribute::INTS, value);
        }
        made.number(attribute::TYPE, attribute::INT_LIST);
        break;
    case ORT_OP_ATTR_FLOAT:
        made.real(attribute::F, read<float>(source, type).at(0));
        made.number(attribute::TYPE, attribute::FLOAT);
        break;
    case ORT_OP_ATTR_FLOATS:
        for (float value : read<float>(source, type)) {
            made.real(attribute::FLOATS, value);
        }
        made.number(attribute::TYPE, attribute::FLOAT_LIST);
        break;
    case ORT_OP_ATTR_STRING: {
        const std::vector<char> value = read<char>(source, type);
        made.bytes(attribute::S, value.data(), value.size());
        made.number(attribute::TYPE, attribute::STRING);
        break;
    }
    case ORT_OP_ATTR_STRINGS:
        write_strings(made, source);
        break;
    case ORT_OP_ATTR_TENSOR: {
        Owned<OrtValue> value(ort->ReleaseValue);
        check(ort->OpAttr_GetTensorAttributeAsOrtValue(source, value.place()));
        made.message(attribute::T, tensor_message("", value));
        made.number(attribute::TYPE, attribute::TENSOR);
        break;
    }
    default:
        throw Failure(std::string("the attribute '") + name + "' is of a kind that is not passed on");
    }
    return made;
}

Message graph_message(const OrtGraph *source, std::set<std::string> &domains);

void write_subgraphs(Message &made, const OrtNode *source, std::set<std::string> &domains)
{
    size_t count = 0;
    check(ort->Node_GetNumSubgraphs(source, &count));
    std::vector<const OrtGraph *> subgraphs(count);
    std::vector<const char *> names(count);
    check(ort->Node_GetSubgraphs(source, subgraphs.data(), count, names.data()));
    for (size_t index = 0; index < count; ++index) {
        Message holder;
        holder.text(attribute::NAME, names[index]);
        holder.message(attribute::G, graph_message(subgraphs[index], domains));
        holder.number(attribute::TYPE, attribute::GRAPH);
        made.message(node::ATTRIBUTE, holder);
    }
}

void write_attributes(Message &made, const OrtNode *source)
{
    const auto attributes = listed<const OrtOpAttr *>(ort->Node_GetNumAttributes, ort->Node_GetAttributes, source);
    for (const OrtOpAttr *found : attributes) {
        const char *name = "";
        OrtOpAttrType type = ORT_OP_ATTR_UNDEFINED;
        check(ort->OpAttr_GetName(found, &name));
        check(ort->OpAttr_GetType(found, &type));
        if (type != ORT_OP_ATTR_GRAPH) {
            made.message(node::ATTRIBUTE, attribute_message(found, name, type));
        }
    }
}

Message node_message(const OrtNode *source, std::set<std::string> &domains)
{
    const char *name = "", *op_type = "", *domain = "";
    check(ort->Node_GetName(source, &name));
    check(ort->Node_GetOperatorType(source, &op_type));
    check(ort->Node_GetDomain(source, &domain));
    domains.insert(domain);
    Message made;
    const Values inputs = listed<const OrtValueInfo *>(ort->Node_GetNumInputs, ort->Node_GetInputs, source);
    const Values outputs = listed<const OrtValueInfo *>(ort->Node_GetNumOutputs, ort->Node_GetOutputs, source);
    for (const OrtValueInfo *value : inputs) {
        made.text(node::INPUT, name_of(value));
    }
    for (const OrtValueInfo *value : outputs) {
        made.text(node::OUTPUT, name_of(value));
    }
    made.text(node::NAME, name);
    made.text(node::OP_TYPE, op_type);
    made.text(node::DOMAIN_NAME, domain);
    write_attributes(made, source);
    write_subgraphs(made, source, domains);
    return made;
}

// What nothing reads is left out: onnxruntime does not hand it to the node that a whole graph becomes.
bool is_read(const OrtValueInfo *input)
{
    size_t readers = 0;
    bool is_output = false;
    check(ort->ValueInfo_GetValueNumConsumers(input, &readers));
    check(ort->ValueInfo_IsGraphOutput(input, &is_output));
    return readers > 0 || is_output;
}

Message graph_message(const OrtGraph *source, std::set<std::string> &domains)
{
    const char *name = "";
    const OrtNode *parent = nullptr;
    check(ort->Graph_GetName(source, &name));
    check(ort->Graph_GetParentNode(source, &parent));
    const auto nodes = listed<const OrtNode *>(ort->Graph_GetNumNodes, ort->Graph_GetNodes, source);
    const Values weights =
        listed<const OrtValueInfo *>(ort->Graph_GetNumInitializers, ort->Graph_GetInitializers, source);
    const Values inputs = listed<const OrtValueInfo *>(ort->Graph_GetNumInputs, ort->Graph_GetInputs, source);
    const Values outputs = listed<const OrtValueInfo *>(ort->Graph_GetNumOutputs, ort->Graph_GetOutputs, source);
    Message made;
    for (const OrtNode *found : nodes) {
        made.message(graph::NODE, node_message(found, domains));
    }
    made.text(graph::NAME, *name ? name : "graph");
    for (const OrtValueInfo *found : weights) {
        const OrtValue *value = nullptr;
        check(ort->ValueInfo_GetInitializerValue(found, &value));
        made.message(graph::INITIALIZER, tensor_message(name_of(found), value));
    }
    for (const OrtValueInfo *found : inputs) {
        if (parent || is_read(found)) {
            made.message(graph::INPUT, value_message(found));
        }
    }
    for (const OrtValueInfo *found : outputs) {
        made.message(graph::OUTPUT, value_message(found));
    }
    return made;
}

}  // namespace

std::string onnx_bytes(const OrtGraph *source)
{
    std::set<std::string> used{""};  // ONNX's own operators, which those of other domains may be made of
    Message made = graph_message(source, used);
    made.wrap(model::GRAPH);
    int64_t ir_version = 0;
    size_t count = 0;
    check(ort->Graph_GetOnnxIRVersion(source, &ir_version));
    check(ort->Graph_GetNumOperatorSets(source, &count));
    std::vector<const char *> domains(count);
    std::vector<int64_t> versions(count);
    check(ort->Graph_GetOperatorSets(source, domains.data(), versions.data(), count));
    made.number(model::IR_VERSION, ir_version);
    for (size_t index = 0; index < count; ++index) {
        if (used.count(domains[index])) {  // onnxruntime lists all that it knows
            Message opset;
            opset.text(model::DOMAIN_NAME, domains[index]);
            opset.number(model::VERSION, versions[index]);
            made.message(model::OPSET_IMPORT, opset);
        }
    }
    std::string bytes = made.take();
    if (bytes.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
        throw Failure("with its weights the model has over 2 GB, which no ONNX file holds: use sdk.InferenceSession");
    }
    return bytes;
}
