#pragma once

#include <cstdint>
#include <string_view>

#include "qbits/export.h"

namespace qbits {

enum class DType : uint8_t { Float32, BFloat16, Float16, UInt8, Int8, Int32, Int64 };

// Bytes per element.
QBITS_API int64_t itemsize(DType dtype);

// The name torch prints without its prefix: "float32", "bfloat16", "uint8", ...
QBITS_API std::string_view name(DType dtype);

// float32, bfloat16 or float16: the dtypes of weights and activations.
QBITS_API bool is_floating(DType dtype);

}  // namespace qbits
