#pragma once

#include "cuda/int8_mma_launch.cuh"
#include "cuda/linear_int8_mma.cuh"

namespace qbits::cuda {

template <class T, MmaIsa kIsa>
void launch_linear_int8_mma(const LinearInt8MmaArgs& args, bool whole_rows, const Int8MmaPlan& plan, Stream stream) {
  constexpr std::string_view op = "linear_int8";
  dispatch_bool(whole_rows, [&](auto whole) {
    dispatch_int8_mma<kIsa, decltype(whole)::value>(plan, op, [&](auto shape) {
      // Sm75 loads codes of x through the read-only cache, which is not for memory that a kernel still running writes.
      launch_int8_mma(op, linear_int8_mma_kernel<T, decltype(shape)>, plan, kIsa == MmaIsa::Sm80, stream, args);
    });
  });
}

}  // namespace qbits::cuda
