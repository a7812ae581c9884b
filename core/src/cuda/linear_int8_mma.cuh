#pragma once

#include "cuda/linear_int8_kernels.h"
#include "cuda/linear_int8_mma_outliers.cuh"

// linear_int8 by mma.sync: one tile a block, its depth shared by warps where the tile is small, so that enough of the
// weight is on its way at a time.

namespace qbits::cuda {

struct LinearInt8MmaArgs {
  Int8MmaOperands operands;
  Int8Outliers outliers;
  const float* x_scales;
  const float* scales;
  const void* bias;
  void* out;
  bool whole_out;  // rows of out begin at 16 bytes
};

template <class T, class Shape>
__global__ void __launch_bounds__(kMmaThreads, Shape::kMinBlocks)
    linear_int8_mma_kernel(const __grid_constant__ LinearInt8MmaArgs args) {
  constexpr Linear4bitTile kTile = Shape::kTile;
  const Int8MmaOperands& o = args.operands;
  const MmaPosition at = mma_position(blockIdx.x, ceil_div(o.m, int64_t{kTile.m}), ceil_div(o.n, int64_t{kTile.n}));
  const int64_t m0 = at.m_tile * kTile.m;
  const int64_t n0 = at.n_tile * kTile.n;
  const Int8MmaWarp<Shape> warp;
  uint8_t* const memory = dynamic_shared();
  float* const x_scales = reinterpret_cast<float*>(memory + Int8Mma::scales_offset(kTile));

  int32_t dots[2][Shape::kColumns][4] = {};
  multiply_codes<Shape>(o, m0, n0, warp, memory, dots);

  const int tid = static_cast<int>(threadIdx.x);
  if (tid < kTile.m) x_scales[tid] = m0 + tid < o.m ? __fdiv_rn(args.x_scales[m0 + tid], kInt8Max) : 0.0F;
  const Int8Exchange<Shape> exchange(memory, warp);
  exchange.leave(dots);
  __syncthreads();
  Int8OwnFragments<Shape, int32_t> own = {};
  exchange.gather(dots, own);

  Int8OwnFragments<Shape, float> sums;
#pragma unroll
  for (int ct = 0; ct < Shape::kOwnColumns; ++ct) {
    const float2 a = *reinterpret_cast<const float2*>(
        x_scales + (warp.m * Shape::kColumns + warp.own_column() + ct) * 8 + warp.column());
#pragma unroll
    for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[rt][ct][i] = __fmaf_rn(i % 2 == 0 ? a.x : a.y, __int2float_rn(own[rt][ct][i]), 0.0F);
      }
    }
  }
  add_outliers<T, Shape>(args.outliers, o, m0, n0, warp, memory, sums);

  float scale[Shape::kOwnRows][2];
  float bias[Shape::kOwnRows][2];
#pragma unroll
  for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t n = n0 + warp.n * Int8Mma::kWarpRows + (warp.own_row() + rt) * 16 + h * 8 + warp.row();
      scale[rt][h] = n < o.n ? __fdiv_rn(args.scales[n], kInt8Max) : 0.0F;
      bias[rt][h] = args.bias != nullptr && n < o.n ? to_float(static_cast<const T*>(args.bias)[n]) : 0.0F;
    }
  }
  __syncthreads();
  write_tile<Shape>(memory, warp, static_cast<T*>(args.out), m0, o.m, n0, o.n, args.whole_out,
                    [&](int rt, int ct, int i) {
                      return from_float<T>(__fmaf_rn(scale[rt][i / 2], sums[rt][ct][i], bias[rt][i / 2]));
                    });
}

// Runs the instantiation of a plan; each (T, kIsa) has a file of its own.
template <class T, MmaIsa kIsa>
void launch_linear_int8_mma(const LinearInt8MmaArgs& args, bool whole_rows, const Int8MmaPlan& plan, Stream stream);

extern template void launch_linear_int8_mma<float, MmaIsa::Sm75>(const LinearInt8MmaArgs&, bool, const Int8MmaPlan&,
                                                                 Stream);
extern template void launch_linear_int8_mma<__nv_bfloat16, MmaIsa::Sm75>(const LinearInt8MmaArgs&, bool,
                                                                         const Int8MmaPlan&, Stream);
extern template void launch_linear_int8_mma<__half, MmaIsa::Sm75>(const LinearInt8MmaArgs&, bool, const Int8MmaPlan&,
                                                                  Stream);
extern template void launch_linear_int8_mma<float, MmaIsa::Sm80>(const LinearInt8MmaArgs&, bool, const Int8MmaPlan&,
                                                                 Stream);
extern template void launch_linear_int8_mma<__nv_bfloat16, MmaIsa::Sm80>(const LinearInt8MmaArgs&, bool,
                                                                         const Int8MmaPlan&, Stream);
extern template void launch_linear_int8_mma<__half, MmaIsa::Sm80>(const LinearInt8MmaArgs&, bool, const Int8MmaPlan&,
                                                                  Stream);

}  // namespace qbits::cuda
