#pragma once

#include <string>

#include "cpu/float16.h"
#include "ops/check.h"
#include "qbits/dtype.h"

namespace qbits::cpu {

// Calls f(T{}) with the element type of a float dtype; throws for any other.
template <class F>
auto dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::Float32:
      return f(float{});
    case DType::BFloat16:
      return f(BFloat16{});
    case DType::Float16:
      return f(Float16{});
    default:
      check::fail(ErrorCode::InvalidType, "dispatch", "dtype", std::string(name(dtype)), "a float dtype");
  }
}

}  // namespace qbits::cpu
