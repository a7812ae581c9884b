#pragma once

#include "cuda/linear_4bit_ptx.cuh"

// How a thread of the tensor-core kernels brings its kPieces pieces of 16 bytes of a stage to shared memory while an
// earlier stage is computed: start() before the arithmetic, finish() after it.

namespace qbits::cuda {

template <MmaIsa kIsa, int kPieces>
class Staging;

// Asynchronous copies, several stages of them under way; nothing is left to finish.
template <int kPieces>
class Staging<MmaIsa::Sm80, kPieces> {
 public:
  // Zeros where `valid` is false; `global` is an address all the same.
  __device__ void start(int /*piece*/, void* shared, const void* global, bool valid) {
    copy_async(shared, global, valid);
  }
  __device__ void finish(int /*piece*/, void* /*shared*/) {}
  // Ends a stage, be there copies or not.
  __device__ void commit() { copy_async_commit(); }
  // Until at most `pending` of the stages committed last are under way.
  __device__ void wait(int pending) { copy_async_wait(pending); }
};

// Registers hold the one stage under way.
template <int kPieces>
class Staging<MmaIsa::Sm75, kPieces> {
 public:
  __device__ void start(int piece, void* /*shared*/, const void* global, bool valid) {
    pieces_[piece] = valid ? __ldg(static_cast<const uint4*>(global)) : uint4{};
  }
  __device__ void finish(int piece, void* shared) { *static_cast<uint4*>(shared) = pieces_[piece]; }
  __device__ void commit() {}
  __device__ void wait(int /*pending*/) {}

 private:
  uint4 pieces_[kPieces];
};

}  // namespace qbits::cuda
