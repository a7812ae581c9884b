#pragma once

#include "cuda/linear_int8_fused.cuh"

namespace qbits::cuda {

template <class T, int kColumns>
void launch_linear_int8_fused_columns(const Int8FusedArgs<T>& args, bool outliers, const LinearInt8Plan& plan,
                                      Stream stream) {
  constexpr std::string_view op = "linear_int8";
  dispatch_bool(outliers, [&](auto has_outliers) {
    using Shape = Int8FusedShape<T, kColumns, decltype(has_outliers)::value>;
    const auto kernel = linear_int8_fused_kernel<Shape>;
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

template <class T>
void launch_linear_int8_fused(const Int8FusedArgs<T>& args, bool outliers, const LinearInt8Plan& plan, Stream stream) {
  switch (plan.columns) {
    case 16:
      return launch_linear_int8_fused_columns<T, 16>(args, outliers, plan, stream);
    case 32:
      return launch_linear_int8_fused_columns<T, 32>(args, outliers, plan, stream);
    case 64:
      return launch_linear_int8_fused_columns<T, 64>(args, outliers, plan, stream);
    default:
      throw Error(ErrorCode::Unsupported, "[linear_int8] plan: got " + to_string(plan) + ", want a tile there is");
  }
}

}  // namespace qbits::cuda
