#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string_view>
#include <vector>

#include "optimizer_cases.h"
#include "qbits/pager.h"

// A training run with paged state and without, on any device.

namespace qbits::test {

// Memory of a device, and copies to and from it that wait.
struct Space {
  virtual ~Space() = default;
  virtual Device device() const { return {}; }
  virtual void* allocate(int64_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  virtual void* allocate_host(int64_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  virtual void free(void* memory) { std::free(memory); }
  virtual void free_host(void* memory) { std::free(memory); }
  virtual void upload(void* to, const void* from, int64_t bytes) { std::memcpy(to, from, bytes); }
  virtual void download(void* to, const void* from, int64_t bytes) { std::memcpy(to, from, bytes); }
};

inline Space& host_space() {
  static Space space;
  return space;
}

// What a pager has allocated; new memory is full of garbage.
class PlainMemory {
 public:
  explicit PlainMemory(Space& space = host_space()) : space_(space) {}

  PagerAllocator allocator() {
    return {.allocate = [this](PagerMemory kind, int64_t size) { return allocate(kind, size); },
            .free =
                [this](PagerMemory kind, void* memory) {
                  kind == PagerMemory::Host ? space_.free_host(memory) : space_.free(memory);
                  blocks_[kind].erase(memory);
                }};
  }

  int64_t bytes(PagerMemory kind) {
    int64_t sum = 0;
    for (const auto& [memory, size] : blocks_[kind]) sum += size;
    return sum;
  }

  bool is_empty() { return bytes(PagerMemory::Host) + bytes(PagerMemory::Staging) + bytes(PagerMemory::Resident) == 0; }

  int64_t most_resident = int64_t{1} << 60;

 private:
  void* allocate(PagerMemory kind, int64_t size) {
    if (kind == PagerMemory::Resident && bytes(kind) + size > most_resident) return nullptr;
    void* memory = kind == PagerMemory::Host ? space_.allocate_host(size) : space_.allocate(size);
    const std::vector<uint8_t> garbage(size, 0xA5);
    space_.upload(memory, garbage.data(), size);
    blocks_[kind].emplace(memory, size);
    return memory;
  }

  Space& space_;
  std::map<PagerMemory, std::map<void*, int64_t>> blocks_;
};

class PagedProblem {
 public:
  struct Choice {
    std::string_view algorithm;
    bool is_8bit = false;
    bool stochastic_rounding = false;
    LayerScaling scaling = LayerScaling::None;
  };

  explicit PagedProblem(const Choice& choice, Space& space = host_space())
      : divisible(choice.scaling == LayerScaling::None), choice_(choice), space_(space) {
    step_.algorithm = &optimizer_algorithm(choice.algorithm);
    step_.scaling = choice.scaling;
    step_.stochastic_rounding = choice.stochastic_rounding;
    step_.seed = 5;
    step_.groups = upload(as_bytes(any_row()));
    step_.skipped = upload(filled(DType::Int64, 1, 0));
    found_inf_ = upload(filled(DType::Float32, 1, 0));
    step_.found_inf = found_inf_;
    uint32_t seed = 0;
    for (int64_t n : {1, 257, 20'000, 3, 8193, 120'001, 256, 50'000, 8192}) {
      const DType dtype = choice.stochastic_rounding || seed % 3 == 1 ? DType::BFloat16 : DType::Float32;
      const DType compensated = choice.stochastic_rounding ? DType::Float32 : dtype;
      StateBuffers state(*step_.algorithm, n, choice.is_8bit, 0, compensated);
      std::vector<TensorView> views = {upload(random_buffer(dtype, n, ++seed)),
                                       upload(random_buffer(DType::Float32, n, 100 + seed, 0.01F))};
      for (Buffer* buffer : state.all()) views.push_back(upload(*buffer));
      tensors_.push_back(optimizer_tensor(views));
      tensors_.back().id = seed;
    }
  }
  ~PagedProblem() {
    for (void* memory : memory_) space_.free(memory);
  }
  PagedProblem(const PagedProblem&) = delete;

  // Moves the state of all tensors into the pager.
  void add_to(Pager& pager) {
    for (OptimizerTensor& t : tensors_) {
      const int64_t index =
          pager.add(*step_.algorithm, t.param.numel(), choice_.is_8bit ? DType::UInt8 : DType::Float32, divisible);
      const PagedState host = pager.state(index);
      for (const auto& [to, from] : {std::pair(&host.state1, &t.state1), std::pair(&host.state2, &t.state2),
                                     std::pair(&host.absmax1, &t.absmax1), std::pair(&host.absmax2, &t.absmax2)}) {
        if (*from) space_.download((*to)->data, (*from)->data, bytes(**from));
      }
    }
  }

  // By optimizer_step with the state of the start, or by a pager that has it.
  void step(Stream stream = {}) {
    const std::vector<OptimizerTensor> some = taking_part(tensors_);
    optimizer_step(step_, some, workspace(some), stream);
  }
  void step(Pager& pager, Stream stream = {}) {
    const std::vector<OptimizerTensor> some = taking_part(with_state_of(pager));
    pager.step(step_, some, workspace(some), stream);
  }

  // All parameters and all state.
  std::vector<std::vector<uint8_t>> snapshot() { return snapshot(tensors_); }
  std::vector<std::vector<uint8_t>> snapshot(Pager& pager) { return snapshot(with_state_of(pager)); }

  void skip(bool is_skipped) {
    const float value = is_skipped ? 1.0F : 0.0F;
    space_.upload(found_inf_.data, &value, 4);
  }

  void break_last_gradient() { tensors_.back().grad.shape[0] -= 1; }

  int64_t left_out = -1;  // a tensor without a gradient, and half of the others with it
  bool divisible;

 private:
  static int64_t bytes(const TensorView& view) { return view.numel() * itemsize(view.dtype); }

  TensorView upload(const Buffer& buffer) {
    const auto size = static_cast<int64_t>(buffer.bytes.size());
    void* memory = nullptr;
    if (size > 0) {
      memory = space_.allocate(size);
      memory_.push_back(memory);
      space_.upload(memory, buffer.bytes.data(), size);
    }
    return TensorView::contiguous(memory, buffer.dtype, {size / itemsize(buffer.dtype)}, space_.device());
  }

  TensorView workspace(const std::vector<OptimizerTensor>& tensors) {
    const int64_t size = optimizer_step_workspace(step_, tensors);
    if (size > workspace_.numel() || workspace_.ndim == 0) workspace_ = upload(Buffer(DType::UInt8, size));
    return workspace_;
  }

  std::vector<OptimizerTensor> with_state_of(Pager& pager) {
    std::vector<OptimizerTensor> all = tensors_;
    for (int64_t i = 0; i < std::ssize(all); ++i) {
      const PagedState state = pager.state(i);
      all[i].state1 = state.state1;
      all[i].state2 = state.state2;
      all[i].absmax1 = state.absmax1;
      all[i].absmax2 = state.absmax2;
    }
    return all;
  }

  std::vector<OptimizerTensor> taking_part(const std::vector<OptimizerTensor>& all) const {
    if (left_out < 0) return all;
    std::vector<OptimizerTensor> some;
    for (int64_t i = 0; i < std::ssize(all); ++i) {
      if (i != left_out && (i / 2 + left_out) % 2 == 0) some.push_back(all[i]);
    }
    return some;
  }

  std::vector<std::vector<uint8_t>> snapshot(const std::vector<OptimizerTensor>& all) {
    std::vector<std::vector<uint8_t>> out;
    const auto add = [&](const TensorView& view) {
      auto& copy = out.emplace_back(bytes(view));
      if (view.device.type == DeviceType::Cpu) {
        std::memcpy(copy.data(), view.data, copy.size());
      } else {
        space_.download(copy.data(), view.data, std::ssize(copy));
      }
    };
    for (const OptimizerTensor& t : all) {
      add(t.param);
      add(t.step);
      for (const auto* state : {&t.state1, &t.state2, &t.absmax1, &t.absmax2, &t.compensation}) {
        if (*state) add(**state);
      }
    }
    add(step_.skipped);
    return out;
  }

  Choice choice_;
  Space& space_;
  OptimizerStep step_;
  TensorView found_inf_;
  TensorView workspace_;
  std::vector<OptimizerTensor> tensors_;
  std::vector<void*> memory_;
};

}  // namespace qbits::test
