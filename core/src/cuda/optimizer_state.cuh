#pragma once

#include "cuda/bins256.cuh"
#include "cuda/float_types.cuh"
#include "cuda/quotient.cuh"
#include "ops/optimizer_step.h"

// How a warp reads and writes a block of an optimizer's tensors: a lane has elements 4 lane + 0..3 and those 128
// further on, so that each access of a warp is one piece of memory.

namespace qbits::cuda {

inline constexpr int kStateBlock = static_cast<int>(kStateBlockSize);
inline constexpr int kPerLane = kStateBlock / 32;

// Tells the compiler, which finds pointers in shared memory, that they lead to global memory.
template <class T>
__device__ T* global(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

__device__ inline int element_of(int lane, int j) { return j / 4 * 128 + 4 * lane + j % 4; }

// Where a block lies, and how many of its elements there are. With kWhole they all are, and pointers allow vectors.
struct BlockPlace {
  int64_t start;
  int lane;
  int valid;
};

// Elements as they lie in memory: one a word, or, if they have 16 bits, two in words 0, 1 and 4, 5.
struct LaneWords {
  uint32_t words[kPerLane];

  template <bool kWhole>
  __device__ void load(const void* data, bool wide, const BlockPlace& at) {
    if (wide) {
      load32<kWhole>(global(static_cast<const uint32_t*>(data) + at.start), at);
    } else {
      load16<kWhole>(global(static_cast<const uint16_t*>(data) + at.start), at);
    }
  }

  // One branch for all elements: the compiler would keep one for each.
  __device__ void widen(DType dtype, float (&x)[kPerLane]) const {
    if (dtype == DType::Float32) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) x[j] = __uint_as_float(words[j]);
    } else {
      widen16(dtype, x);
    }
  }

  // From a type of 16 bits.
  __device__ void widen16(DType dtype, float (&x)[kPerLane]) const {
    if (dtype == DType::BFloat16) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        x[j] = __uint_as_float(j % 2 == 0 ? words[word_of(j)] << 16 : words[word_of(j)] & 0xffff0000U);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const __half2 pair = reinterpret_cast<const __half2&>(words[word_of(j)]);
        x[j] = j % 2 == 0 ? __low2float(pair) : __high2float(pair);
      }
    }
  }

  // To a type of 16 bits.
  __device__ void round(DType dtype, const float (&x)[kPerLane]) {
    if (dtype == DType::BFloat16) {
#pragma unroll
      for (int j = 0; j < kPerLane; j += 2) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[j], x[j + 1]);
        words[word_of(j)] = reinterpret_cast<const uint32_t&>(pair);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; j += 2) {
        const __half2 pair = __floats2half2_rn(x[j], x[j + 1]);
        words[word_of(j)] = reinterpret_cast<const uint32_t&>(pair);
      }
    }
  }

  // All but the elements whose bits are set in `skipped`.
  template <bool kWhole>
  __device__ void store16(void* data, const BlockPlace& at, uint32_t skipped = 0) const {
    uint16_t* x = global(static_cast<uint16_t*>(data) + at.start);
    if (kWhole && skipped == 0) {
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<uint2*>(x + 128 * h + 4 * at.lane) = make_uint2(words[4 * h], words[4 * h + 1]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = element_of(at.lane, j);
        if (i < at.valid && (skipped >> j & 1) == 0) x[i] = static_cast<uint16_t>(words[word_of(j)] >> j % 2 * 16);
      }
    }
  }

 private:
  // Where an element of 16 bits is.
  __device__ static constexpr int word_of(int j) { return j / 4 * 4 + j % 4 / 2; }

  template <bool kWhole>
  __device__ void load32(const uint32_t* x, const BlockPlace& at) {
    if constexpr (kWhole) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 four = *reinterpret_cast<const uint4*>(x + 128 * h + 4 * at.lane);
        words[4 * h] = four.x;
        words[4 * h + 1] = four.y;
        words[4 * h + 2] = four.z;
        words[4 * h + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = element_of(at.lane, j);
        words[j] = i < at.valid ? x[i] : 0;
      }
    }
  }

  template <bool kWhole>
  __device__ void load16(const uint16_t* x, const BlockPlace& at) {
    if constexpr (kWhole) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint2 four = *reinterpret_cast<const uint2*>(x + 128 * h + 4 * at.lane);
        words[4 * h] = four.x;
        words[4 * h + 1] = four.y;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = element_of(at.lane, j);
        uint32_t& word = words[word_of(j)];
        if (j % 2 == 0) word = 0;
        if (i < at.valid) word |= static_cast<uint32_t>(x[i]) << j % 2 * 16;
      }
    }
  }
};

template <bool kWhole>
__device__ void store32(float* data, const BlockPlace& at, const float (&x)[kPerLane]) {
  float* to = global(data + at.start);
  if constexpr (kWhole) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<float4*>(to + 128 * h + 4 * at.lane) =
          make_float4(x[4 * h], x[4 * h + 1], x[4 * h + 2], x[4 * h + 3]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = element_of(at.lane, j);
      if (i < at.valid) to[i] = x[j];
    }
  }
}

// Codes of 8 bits, four in a word.
struct LaneCodes {
  uint32_t words[2];

  template <bool kWhole>
  __device__ void load(const uint8_t* codes, const BlockPlace& at) {
    const uint8_t* x = global(codes + at.start);
    if constexpr (kWhole) {
#pragma unroll
      for (int h = 0; h < 2; ++h) words[h] = *reinterpret_cast<const uint32_t*>(x + 128 * h + 4 * at.lane);
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = element_of(at.lane, j);
        if (j % 4 == 0) words[j / 4] = 0;
        if (i < at.valid) words[j / 4] |= static_cast<uint32_t>(x[i]) << j % 4 * 8;
      }
    }
  }

  template <bool kWhole>
  __device__ void store(uint8_t* codes, const BlockPlace& at) const {
    uint8_t* x = global(codes + at.start);
    if constexpr (kWhole) {
#pragma unroll
      for (int h = 0; h < 2; ++h) *reinterpret_cast<uint32_t*>(x + 128 * h + 4 * at.lane) = words[h];
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int i = element_of(at.lane, j);
        if (i < at.valid) x[i] = static_cast<uint8_t>(words[j / 4] >> j % 4 * 8);
      }
    }
  }
};

// An 8-bit map in shared memory, for reading and writing codes. Its thresholds have a bin each.
template <class Bins, int kZeroCode>
struct StateTable {
  float values[256];
  Bins bins;

  // By all 256 threads of a block. `thresholds` is scratch memory.
  __device__ void prepare(const float (&map)[256], float (&thresholds)[256]) {
    const int t = static_cast<int>(threadIdx.x);
    __syncthreads();
    values[t] = map[t];
    // Whatever has a minus sign stays below the code of zero: -0 is the threshold next to it.
    thresholds[t] = t < 255 ? blockwise_threshold(map[t], map[t + 1], t) : 1.0F;
    if (kZeroCode > 0 && t == kZeroCode - 1) thresholds[t] = -0.0F;
    __syncthreads();
    bins.fill(t, Bins::part(thresholds, t, 255));
    __syncthreads();
  }

  __device__ void decode(const LaneCodes& codes, float absmax, float (&x)[kPerLane]) const {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) x[j] = values[codes.words[j / 4] >> j % 4 * 8 & 255] * absmax;
  }

  // Of x whose largest magnitude is `absmax`, a finite number. Changes x.
  __device__ LaneCodes encode(float absmax, float (&x)[kPerLane]) const {
    LaneCodes codes;
    if (!(absmax > 0.0F)) {
      codes.words[0] = codes.words[1] = kZeroCode * 0x01010101U;
      return codes;
    }
    const Quotient quotient(absmax);
    if (quotient.factor() != 1.0F) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) x[j] *= quotient.factor();
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t sums[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] = bins.ranked(quotient(x[4 * h + j]), Bins::kScale * 0x1p-32F);
      codes.words[h] = top_bytes(sums[0], sums[1], sums[2], sums[3]);
    }
    return codes;
  }
};

// The maps of state1 and state2. Their thresholds are 2^-21.8 and 2^-22.6 at least; in the octave below 1 the former
// have 32 to 64 of them, the latter twice as many.
using FirstTable = StateTable<Bins256<6, 24>, 127>;
using SecondTable = StateTable<Bins256<7, 24, false>, 0>;

}  // namespace qbits::cuda
