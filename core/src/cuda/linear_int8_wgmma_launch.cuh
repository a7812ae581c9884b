#pragma once

#include "cuda/linear_int8_wgmma.cuh"

namespace qbits::cuda {

template <class Shape>
void launch_linear_int8_wgmma_shape(const Int8WgmmaArgs& args, const LinearInt8Plan& plan, Stream stream) {
  constexpr std::string_view op = "linear_int8";
  const auto kernel = linear_int8_wgmma_kernel<Shape>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), op);
  launch(op, kernel,
         {.blocks = plan.blocks,
          .threads = Shape::kThreads,
          .shared_bytes = Shape::kSharedBytes,
          .cluster = plan.splits,
          .overlaps = true},
         stream, args);
}

template <class T, int kColumns>
void launch_linear_int8_wgmma_columns(const Int8WgmmaArgs& args, const LinearInt8Plan& plan, Stream stream) {
  using Wgmma = LinearInt8Wgmma;
  const bool outliers = args.count != nullptr;
  const auto start = [&](auto shape) {
    return launch_linear_int8_wgmma_shape<typename decltype(shape)::type>(args, plan, stream);
  };
  if constexpr (kColumns <= Wgmma::kFewColumns && sizeof(T) == 2) {
    if (plan.rows == Wgmma::kFewRows) {
      if (!outliers) return start(TypeTag<Int8WgmmaShape<T, Wgmma::kFewRows, kColumns, Int8Outliers::None>>{});
      if (plan.lists) return start(TypeTag<Int8WgmmaShape<T, Wgmma::kFewRows, kColumns, Int8Outliers::Marked>>{});
    } else if (outliers && plan.lists) {
      return start(TypeTag<Int8WgmmaShape<T, Wgmma::kRows, kColumns, Int8Outliers::Marked>>{});
    }
  }
  if (plan.rows == Wgmma::kRows && !plan.lists) {
    return outliers ? start(TypeTag<Int8WgmmaShape<T, Wgmma::kRows, kColumns, Int8Outliers::Listed>>{})
                    : start(TypeTag<Int8WgmmaShape<T, Wgmma::kRows, kColumns, Int8Outliers::None>>{});
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
