// A graph of onnxruntime's as the bytes of an ONNX file.
#pragma once

#include <string>

#include "ort.hpp"

// Throws Failure for what is not passed on: strings, sequences and sparse tensors.
std::string onnx_bytes(const OrtGraph *graph);
