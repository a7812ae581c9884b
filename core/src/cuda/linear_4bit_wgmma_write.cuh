#pragma once

#include "cuda/linear_4bit_slab_writer.cuh"
#include "cuda/linear_4bit_wgmma.cuh"

// How sums of the wgmma kernel leave a block. Nothing is multiplied meanwhile, so it is made of few instructions.

namespace qbits::cuda {

// Rows of x from m0 to m_end, weight rows (the gradient: columns) from n0 on, of the weight that begins at row `base`.
struct WgmmaTile {
  int m0;
  int m_end;
  int n0;
  int base;
};

// Rounds and writes a warpgroup's sums, of 2 kSums rows of x from m0 on: 32 (or 16) of them by 64 weight rows at a
// time. Fragments are transposed through slabs of shared memory, so that 128 bytes of a row of out leave together.
template <class T, class Shape, int kSums>
__device__ void write_sums(const WgmmaComputer<T, Shape>& computer, const WgmmaArgs& args, const WgmmaTile& tile,
                           int thread, float (&sums)[kSums]) {
  using Layout = WgmmaLayout<Shape>;
  constexpr int kSlabs = Layout::kGroupSlabs < 2 ? 1 : 2;
  constexpr int kRows = kSums < 16 ? kSums * 2 : 32;  // of x, in a slab
  constexpr int kParts = kSums * 2 / kRows;
  const int group = computer.group;
  // As something new: where a thread's part of slabs lies shall be computed here, not kept from tile to tile in
  // registers that the loop over the depth then lacks.
  asm volatile("" : "+r"(thread));
  if (args.bias != nullptr) {
    const int64_t n = tile.n0;
    add_bias<T>(static_cast<const T*>(args.bias) + tile.base, n + computer.decoder.output_row(0),
                n + computer.decoder.output_row(1), args.outputs, sums);
  }
  SlabWriter<T, Layout::kSlabPitch> writer(args.out, args.outputs, tile.m0, tile.m_end,
                                           tile.n0 + group % Shape::kRowGroups * 64, thread);
  const auto slab = [&](int s) {
    return computer.window + Layout::kSlabs + (group * kSlabs + s % kSlabs) * Layout::kSlabBytes;
  };
  const auto put = [&](int s) {
    if constexpr (Shape::kTransposed) {
      // The thread's two rows of a fragment are neighbours in out.
      const int column = computer.decoder.output_row(0) % 64;
      const int lane = thread % 32;
#pragma unroll
      for (int i = 0; i < kRows / 4; ++i) {
        const float* const d = sums + s * 16 + i / 2 * 4 + i % 2;
        const int m = i / 2 * 8 + lane % 4 * 2 + i % 2;
        store_shared(slab(s) + m * Layout::kSlabPitch + (column / 8 ^ (m & 7)) * 16 + column % 8 * 2,
                     round_pair<T>(d[0], d[2]));
      }
    } else {
      put_in_slab<T, kRows>(sums + s * 16, slab(s), Layout::kSlabPitch, thread);
    }
  };
  // Of two slabs, one is filled while the other leaves.
  put(0);
#pragma unroll
  for (int s = 0; s < kParts; ++s) {
    group_sync(kWgmmaGroupBarrier + group, kWgmmaGroupThreads);
    writer.template write<kRows / 16>(slab(s), [&] {
      if (kSlabs > 1 && s + 1 < kParts) put(s + 1);
    });
    if (kSlabs > 1) continue;
    group_sync(kWgmmaGroupBarrier + group, kWgmmaGroupThreads);
    if (s + 1 < kParts) put(s + 1);
  }
  if constexpr (kSlabs > 1 && kParts % 2 != 0) {
    group_sync(kWgmmaGroupBarrier + group, kWgmmaGroupThreads);  // the next tile fills it
  }
  __syncwarp();  // what comes next takes whole warps
}

}  // namespace qbits::cuda
