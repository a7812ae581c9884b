#include "qbits/dtype.h"

#include <array>

namespace qbits {
namespace {

struct Row {
  std::string_view name;
  int64_t itemsize;
};

constexpr std::array<Row, 7> kRows = {{
    {"float32", 4},
    {"bfloat16", 2},
    {"float16", 2},
    {"uint8", 1},
    {"int8", 1},
    {"int32", 4},
    {"int64", 8},
}};

}  // namespace

int64_t itemsize(DType dtype) { return kRows[static_cast<size_t>(dtype)].itemsize; }

std::string_view name(DType dtype) { return kRows[static_cast<size_t>(dtype)].name; }

bool is_floating(DType dtype) { return dtype == DType::Float32 || dtype == DType::BFloat16 || dtype == DType::Float16; }

}  // namespace qbits
