#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "qbits/export.h"
#include "qbits/optim.h"
#include "qbits/tensor.h"

// Paged optimizer state (Dettmers et al., arXiv 2305.14314), with explicit copies in place of managed memory: it lies
// in host memory and passes through a few buffers of a GPU while a step needs it, or stays on the GPU as far as a
// budget goes. Results are those of optimizer_step, bit for bit. Copies run on two streams of the pager's own, one for
// each direction, while the caller's stream updates what lies between.

namespace qbits {

enum class PagerMemory : uint8_t {
  Host,      // page-locked, for the state of all tensors
  Staging,   // on the device: what state passes through
  Resident,  // on the device: state that stays
};

// Where a pager's memory comes from. It calls these from add, place, page_out and its destructor alone.
struct PagerAllocator {
  // `bytes` of memory, at least one, on a 256-byte boundary. Throws where there are none; for Resident it may return
  // null instead, and the state stays in host memory.
  std::function<void*(PagerMemory kind, int64_t bytes)> allocate;
  // Called when no copy uses the memory any more. Must not throw.
  std::function<void(PagerMemory kind, void* memory)> free;
};

struct PagerOptions {
  int64_t host_slab_bytes = int64_t{64} << 20;  // host memory is allocated in such pieces, for a large tensor alone
  int64_t staging_bytes = int64_t{32} << 20;    // of a buffer, at most; larger for a tensor that must not be divided
  int buffers = 3;                              // at most: one is filled, one updated, one emptied
};

// The state of a tensor as OptimizerTensor takes it, on the host or on the device.
struct PagedState {
  std::optional<TensorView> state1;   // [first * numel]
  std::optional<TensorView> state2;   // [second * numel]
  std::optional<TensorView> absmax1;  // [first * ceil(numel / 256)]
  std::optional<TensorView> absmax2;  // [second * ceil(numel / 256)]
};

// Not for several threads at once. step and prefetch queue work and return; place and page_out wait until it is done.
// A CUDA graph may hold steps, also with a prefetch before them. As long as it is used, place and page_out must not be
// called, which free memory; and no prefetch may be pending when a capture begins.
class QBITS_API Pager {
 public:
  // On the CPU "device" memory is memory, too, and copies are made at once.
  Pager(Device device, PagerAllocator allocator, PagerOptions options = {});
  ~Pager();  // waits for its copies, and frees everything
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // Room in host memory for the state of a tensor of `numel` elements, at least one, whose values the caller writes.
  // Returns its index, counted from 0: the order in which tensors pass.
  //   dtype      float32, or uint8 for state in 8 bits
  //   divisible  false: the tensor is updated whole, as LayerScaling needs it
  int64_t add(const OptimizerAlgorithm& algorithm, int64_t numel, DType dtype, bool divisible = true);

  // Where the state of a tensor lies. The host's is up to date where the stream of the last step is.
  PagedState state(int64_t index) const;
  bool is_resident(int64_t index) const;
  int64_t resident_bytes() const;
  int64_t staging_bytes() const;  // of all buffers
  int64_t host_bytes() const;

  // Chooses what stays on the device: the first tensors that fit into `budget` bytes, buffers not counted. Needed after
  // add. Returns the choice, in words.
  std::string place(int64_t budget, Stream stream = {});

  // Moves all state to host memory, and frees the device's. The next step needs place.
  void page_out(Stream stream = {});

  // Starts to load what the next step needs first, as far as there are buffers. Host memory must not be written
  // until then.
  void prefetch(Stream stream = {});

  // optimizer_step, for tensors whose state lies where state() says or in any memory of the device. When `stream`
  // reaches its end, so have all copies. A tensor whose state is in host memory and too large for a buffer is updated
  // in parts. The workspace is that of optimizer_step for the same tensors.
  // Throws what optimizer_step does, before anything is written; InvalidArgument without place(), and where the step
  // has LayerScaling and a tensor in host memory is divisible.
  void step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors, const TensorView& workspace,
            Stream stream = {});

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qbits
