#pragma once

#include "cuda/linear_int8_wgmma.cuh"

namespace qbits::cuda {

template <class T, int kRows, int kColumns>
void launch_linear_int8_wgmma_tile(const Int8WgmmaArgs& args, const LinearInt8Plan& plan, Stream stream) {
  constexpr std::string_view op = "linear_int8";
  dispatch_bool(args.count != nullptr, [&](auto outliers) {
    using Shape = Int8WgmmaShape<T, kRows, kColumns, decltype(outliers)::value>;
    const auto kernel = linear_int8_wgmma_kernel<Shape>;
    allow_shared_memory(reinterpret_cast<const void*>(kernel), op);
    launch(op, kernel,
           {.blocks = plan.blocks,
            .threads = Shape::kThreads,
            .shared_bytes = Shape::kSharedBytes,
            .cluster = plan.splits,
            .overlaps = true},
           stream, args);
  });
}

template <class T, int kColumns>
void launch_linear_int8_wgmma_columns(const Int8WgmmaArgs& args, const LinearInt8Plan& plan, Stream stream) {
  using Wgmma = LinearInt8Wgmma;
  if constexpr (kColumns <= Wgmma::kFewColumns && sizeof(T) == 2) {
    if (plan.rows == Wgmma::kFewRows) {
      return launch_linear_int8_wgmma_tile<T, Wgmma::kFewRows, kColumns>(args, plan, stream);
    }
  }
  if (plan.rows == Wgmma::kRows) {
    return launch_linear_int8_wgmma_tile<T, Wgmma::kRows, kColumns>(args, plan, stream);
  }
  throw Error(ErrorCode::Unsupported, "[linear_int8] plan: got " + to_string(plan) + ", want a tile there is");
}

template <class T>
void launch_linear_int8_wgmma(const Int8WgmmaArgs& args, const LinearInt8Plan& plan, Stream stream) {
  switch (plan.columns) {
    case 16:
      return launch_linear_int8_wgmma_columns<T, 16>(args, plan, stream);
    case 32:
      return launch_linear_int8_wgmma_columns<T, 32>(args, plan, stream);
    case 64:
      return launch_linear_int8_wgmma_columns<T, 64>(args, plan, stream);
    case 128:
      return launch_linear_int8_wgmma_columns<T, 128>(args, plan, stream);
    case 256:
      return launch_linear_int8_wgmma_columns<T, 256>(args, plan, stream);
    default:
      throw Error(ErrorCode::Unsupported, "[linear_int8] plan: got " + to_string(plan) + ", want a tile there is");
  }
}

}  // namespace qbits::cuda
