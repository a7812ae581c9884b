#pragma once

#include "cuda/int8_mma_finish.cuh"
#include "cuda/int8_mma_launch.cuh"

// Products of a batch of integer matrices by mma.sync: one tile a block.

namespace qbits::cuda {

struct IgemmMmaArgs {
  Int8MmaOperands operands;  // of the first product; the others follow, `m` and `n` rows after it
  int32_t* out;
  bool whole_out;  // rows of out begin at 16 bytes
};

template <class Shape>
__global__ void __launch_bounds__(kMmaThreads, Shape::kMinBlocks)
    igemm_mma_kernel(const __grid_constant__ IgemmMmaArgs args) {
  constexpr Linear4bitTile kTile = Shape::kTile;
  Int8MmaOperands o = args.operands;
  const MmaPosition at = mma_position(blockIdx.x, ceil_div(o.m, int64_t{kTile.m}), ceil_div(o.n, int64_t{kTile.n}));
  const int64_t batch = at.split;
  o.x += batch * o.m * o.x_pitch;
  o.weight += batch * o.n * o.weight_pitch;
  const int64_t m0 = at.m_tile * kTile.m;
  const int64_t n0 = at.n_tile * kTile.n;
  const Int8MmaWarp<Shape> warp;
  uint8_t* const memory = dynamic_shared();

  int32_t sums[2][Shape::kColumns][4] = {};
  multiply_codes<Shape>(o, m0, n0, warp, memory, sums);
  const Int8Exchange<Shape> exchange(memory, warp);
  exchange.leave(sums);
  __syncthreads();
  Int8OwnFragments<Shape, int32_t> own;
  exchange.gather(sums, own);
  __syncthreads();
  write_tile<Shape>(memory, warp, args.out + batch * o.m * o.n, m0, o.m, n0, o.n, args.whole_out,
                    [&](int rt, int ct, int i) { return own[rt][ct][i]; });
}

// Runs the instantiation of a plan; each kIsa has a file of its own.
template <MmaIsa kIsa>
void launch_igemm_mma(const IgemmMmaArgs& args, const Int8MmaPlan& plan, Stream stream) {
  constexpr std::string_view op = "igemm";
  dispatch_int8_mma<kIsa, true>(
      plan, op, [&](auto shape) { launch_int8_mma(op, igemm_mma_kernel<decltype(shape)>, plan, false, stream, args); });
}

extern template void launch_igemm_mma<MmaIsa::Sm75>(const IgemmMmaArgs&, const Int8MmaPlan&, Stream);
extern template void launch_igemm_mma<MmaIsa::Sm80>(const IgemmMmaArgs&, const Int8MmaPlan&, Stream);

}  // namespace qbits::cuda
