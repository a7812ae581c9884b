#pragma once

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

// A store that bypasses the caches if kStream.
template <bool kStream, class T>
void put(T* p, F32 x) {
  if constexpr (kStream) {
    stream_store(p, x);
  } else {
    store(p, x);
  }
}

}  // namespace
