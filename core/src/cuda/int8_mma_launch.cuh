#pragma once

#include <string>

#include "cuda/device.h"
#include "cuda/int8_mma.cuh"
#include "cuda/launch.h"

namespace qbits::cuda {

// Calls f with an object of the plan's shape.
template <MmaIsa kIsa, bool kWhole, class F>
void dispatch_int8_mma(const Int8MmaPlan& plan, std::string_view op, F&& f) {
  switch (plan.columns) {
    case 8:
      return f(Int8MmaShape<kIsa, 0, kWhole>{});
    case 16:
      return f(Int8MmaShape<kIsa, 1, kWhole>{});
    case 32:
      return f(Int8MmaShape<kIsa, 2, kWhole>{});
    case 64:
      return f(Int8MmaShape<kIsa, 3, kWhole>{});
    case 128:
      return f(Int8MmaShape<kIsa, 4, kWhole>{});
    default:
      throw Error(ErrorCode::Unsupported, "[" + std::string(op) + "] tile: got " + std::to_string(plan.columns) +
                                              " rows of x, want 8, 16, 32, 64 or 128");
  }
}

// Launches a kernel of that shape.
template <class Args>
void launch_int8_mma(std::string_view op, void (*kernel)(Args), const Int8MmaPlan& plan, bool overlaps, Stream stream,
                     const Args& args) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), op);
  launch(op, kernel,
         {.blocks = plan.tiles,
          .threads = kMmaThreads,
          .shared_bytes = static_cast<size_t>(plan.shared_bytes),
          .overlaps = overlaps},
         stream, args);
}

}  // namespace qbits::cuda
