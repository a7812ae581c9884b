#include "qbits/pager.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/check.h"
#include "ops/optimizer_step.h"
#include "ops/pager_device.h"
#include "ops/pager_parts.h"
#include "ops/pager_plan.h"

namespace qbits {
namespace {

constexpr std::string_view kOp = "pager";

// The CPU: every copy is made at once.
class HostPagerDevice : public PagerDevice {
 public:
  void use_as_main(Stream) override {}
  void copy(PagerQueue, PagerCopy, void* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void record(PagerQueue, int64_t) override {}
  void wait(PagerQueue, int64_t) override {}
  void finish(PagerQueue) override {}
};

std::unique_ptr<PagerDevice> make_device(Device device, int events) {
  if (device.type == DeviceType::Cpu) return std::make_unique<HostPagerDevice>();
  return cuda::make_pager_device(device, events);
}

const void* state_address(const OptimizerTensor& t) {
  if (t.state1) return t.state1->data;
  return t.state2 ? t.state2->data : nullptr;
}

// Whether the state of `t`, whose first array lies in the host memory of `entry`, lies there whole.
bool has_all_of(const OptimizerTensor& t, const PagerEntry& entry) {
  const std::optional<TensorView>* const arrays[] = {&t.state1, &t.state2, &t.absmax1, &t.absmax2};
  for (size_t a = 0; a < entry.layout.arrays.size(); ++a) {
    const PagedArray& array = entry.layout.arrays[a];
    if (array.rows > 0 && *arrays[a] && (*arrays[a])->data != entry.host + array.offset) return false;
  }
  return true;
}

}  // namespace

class Pager::Impl {
 public:
  Impl(Device device, PagerAllocator allocator, PagerOptions options)
      : device_(device),
        allocator_(std::move(allocator)),
        options_(options),
        queues_(make_device(device, pager_events(options.buffers))) {}

  ~Impl() {
    try {
      queues_->finish(PagerQueue::In);
      queues_->finish(PagerQueue::Out);
    } catch (const Error&) {  // at the end of a process the runtime may be gone
    }
    free_staging();
    for (PagerEntry& entry : entries_) free_resident(entry);
    for (const Slab& slab : slabs_) allocator_.free(PagerMemory::Host, slab.memory);
  }

  int64_t add(const PagedShape& shape) {
    PagerEntry entry{.shape = shape, .layout = paged_layout(shape, shape.numel)};
    const Place place = host_memory(entry.layout.bytes);
    entry.host = place.memory;
    entry.slab = place.slab;
    indices_.emplace(entry.host, std::ssize(entries_));
    entries_.push_back(entry);
    placed_ = false;
    return std::ssize(entries_) - 1;
  }

  const PagerEntry& entry(int64_t index) const {
    check::require(
        index >= 0 && index < std::ssize(entries_), ErrorCode::InvalidIndex, kOp, "index",
        [&] { return std::to_string(index); }, [&] { return "below " + std::to_string(entries_.size()); });
    return entries_[index];
  }

  PagedState state(int64_t index) const {
    const PagerEntry& e = entry(index);
    return paged_state(e.shape, e.shape.numel, e.memory(), e.resident != nullptr ? device_ : Device{});
  }

  int64_t resident_bytes() const {
    int64_t bytes = 0;
    for (const PagerEntry& e : entries_) bytes += e.resident != nullptr ? e.layout.bytes : 0;
    return bytes;
  }

  int64_t staging_bytes() const { return std::ssize(staging_) * staging_size_; }

  int64_t host_bytes() const {
    int64_t bytes = 0;
    for (const Slab& slab : slabs_) bytes += slab.bytes;
    return bytes;
  }

  std::string place(int64_t budget, Stream stream) {
    settle(stream);
    placed_ = false;
    choose(budget);
    evict([&](int64_t i) { return !plan_.resident[i]; });
    bring_in();
    make_staging();
    runs_.clear();
    for (const PagerWindow& window : plan_.windows) runs_.push_back(pager_runs(window, entries_));
    placed_ = true;
    return plan_.describe();
  }

  void page_out(Stream stream) {
    settle(stream);
    placed_ = false;
    evict([](int64_t) { return true; });
    free_staging();
  }

  void prefetch(Stream stream) {
    if (!placed_ || prefetched_) return;
    queues_->use_as_main(stream);
    for (const PagerAction& action : pager_prefetch(plan_)) run(action);
    prefetched_ = !plan_.windows.empty();
  }

  void step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors, const TensorView& workspace,
            Stream stream) {
    if (placed_ && plan_.windows.empty()) return optimizer_step(step, tensors, workspace, stream);
    std::vector<OptimizerEntry> on_device;  // what needs no copy
    std::vector<const OptimizerEntry*> passing(entries_.size());
    const std::vector<OptimizerEntry> entries = checked(step, tensors, workspace, on_device, passing);
    std::vector<bool> needed(plan_.windows.size());
    for (size_t w = 0; w < needed.size(); ++w) {
      const auto& pieces = plan_.windows[w].pieces;
      needed[w] = std::any_of(pieces.begin(), pieces.end(),
                              [&](const PagerPiece& piece) { return passing[piece.index] != nullptr; });
    }
    const auto update = [&](std::vector<OptimizerEntry> some) {
      run_optimizer_step(step, std::move(some), workspace, stream);
    };
    queues_->use_as_main(stream);
    for (const PagerAction& action : pager_schedule(plan_, needed, prefetched_)) {
      if (action.kind == PagerAction::UpdateResident) {
        update(on_device);
      } else if (action.kind == PagerAction::Update) {
        update(in_window(action.index, *step.algorithm, passing));
      } else {
        run(action);
      }
    }
    prefetched_ = false;
  }

 private:
  struct Slab {
    char* memory;
    int64_t bytes;
    int64_t used;
  };

  struct Place {
    char* memory;
    size_t slab;
  };

  // Large states have slabs of their own, which end where they do; the others share one after the other.
  Place host_memory(int64_t bytes) {
    const bool shares = bytes <= options_.host_slab_bytes / 8;
    if (!shares || !open_ || slabs_[*open_].bytes - slabs_[*open_].used < bytes) {
      const int64_t size = shares ? options_.host_slab_bytes : bytes;
      slabs_.push_back({static_cast<char*>(allocator_.allocate(PagerMemory::Host, size)), size, 0});
      if (!shares) return {slabs_.back().memory, slabs_.size() - 1};
      open_ = slabs_.size() - 1;
    }
    Slab& slab = slabs_[*open_];
    return {slab.memory + std::exchange(slab.used, slab.used + bytes), *open_};
  }

  // Buffers are in use no more, whatever streams the steps were on; what was prefetched is to be loaded again.
  void settle(Stream stream) {
    prefetched_ = false;
    queues_->finish(PagerQueue::In);
    queues_->finish(PagerQueue::Out);
    queues_->use_as_main(stream);
  }

  void choose(int64_t budget) {
    std::vector<PagedShape> shapes;
    for (const PagerEntry& e : entries_) shapes.push_back(e.shape);
    plan_ = pager_plan(shapes, budget, options_);
  }

  template <class Predicate>
  void evict(Predicate&& leaves) {
    std::vector<PagerEntry*> leaving;
    for (int64_t i = 0; i < std::ssize(entries_); ++i) {
      PagerEntry& e = entries_[i];
      if (e.resident == nullptr || !leaves(i)) continue;
      queues_->copy(PagerQueue::Main, PagerCopy::ToHost, e.host, e.resident, e.layout.bytes);
      leaving.push_back(&e);
    }
    if (leaving.empty()) return;
    queues_->finish(PagerQueue::Main);
    for (PagerEntry* e : leaving) free_resident(*e);
  }

  void bring_in() {
    bool copied = false;
    int64_t bytes = 0;
    for (int64_t i = 0; i < std::ssize(entries_); ++i) {
      PagerEntry& e = entries_[i];
      if (!plan_.resident[i]) continue;
      if (e.resident == nullptr) {
        e.resident = static_cast<char*>(allocator_.allocate(PagerMemory::Resident, e.layout.bytes));
        if (e.resident == nullptr) {  // nothing of what follows fits then: the choice is made in this order
          choose(bytes);
          evict([&](int64_t k) { return !plan_.resident[k]; });
          break;
        }
        queues_->copy(PagerQueue::Main, PagerCopy::ToDevice, e.resident, e.host, e.layout.bytes);
        copied = true;
      }
      bytes += e.layout.bytes;
    }
    if (copied) queues_->finish(PagerQueue::Main);
  }

  void make_staging() {
    if (std::ssize(staging_) == plan_.buffers && staging_size_ == plan_.buffer_bytes) return;
    free_staging();
    staging_size_ = plan_.buffer_bytes;
    for (int b = 0; b < plan_.buffers; ++b) {
      staging_.push_back(static_cast<char*>(allocator_.allocate(PagerMemory::Staging, staging_size_)));
    }
  }

  void free_staging() {
    for (char* buffer : staging_) allocator_.free(PagerMemory::Staging, buffer);
    staging_.clear();
  }

  void free_resident(PagerEntry& entry) {
    if (entry.resident != nullptr) allocator_.free(PagerMemory::Resident, std::exchange(entry.resident, nullptr));
  }

  // Checks everything, and tells tensors whose state passes, by its index, from those whose state is on the device.
  std::vector<OptimizerEntry> checked(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                                      const TensorView& workspace, std::vector<OptimizerEntry>& on_device,
                                      std::vector<const OptimizerEntry*>& passing) const {
    std::vector<int64_t> indices(tensors.size(), -1);
    std::vector<bool> on_host(tensors.size());
    std::vector<bool> seen(entries_.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto found = indices_.find(state_address(tensors[i]));
      if (found == indices_.end()) continue;
      const PagerEntry& entry = entries_[found->second];
      check::require(
          placed_ && entry.resident == nullptr && !seen[found->second], ErrorCode::InvalidArgument, kOp, "state",
          [&] { return "state of the host for tensor " + std::to_string(i); },
          "one tensor with each state, place() after add, and what state() says since then");
      check::require(
          has_all_of(tensors[i], entry), ErrorCode::InvalidArgument, kOp, "state",
          [&] { return "arrays of several places for tensor " + std::to_string(i); },
          "all that state() says, or others in place of all");
      check::require(step.scaling == LayerScaling::None || !entry.shape.divisible, ErrorCode::InvalidArgument, kOp,
                     "scaling", "one of layers for a tensor that is updated in parts", "divisible = false");
      check::numel(kOp, "param", tensors[i].param, entry.shape.numel);
      check::require(tensors[i].row == 0, ErrorCode::Unsupported, kOp, "row", "blocks by rows",
                     "blocks over the flattened tensor where state is paged");
      indices[i] = found->second;
      seen[found->second] = on_host[i] = true;
    }
    std::vector<OptimizerEntry> entries = check_optimizer_step(step, tensors, on_host);
    check_optimizer_workspace(step, tensors, workspace);
    for (size_t i = 0; i < entries.size(); ++i) {
      if (on_host[i]) {
        passing[indices[i]] = &entries[i];
      } else {
        on_device.push_back(entries[i]);
      }
    }
    return entries;
  }

  void run(const PagerAction& action) {
    switch (action.kind) {
      case PagerAction::Load:
        copy(action.queue, PagerCopy::ToDevice, action.index);
        return;
      case PagerAction::Store:
        copy(action.queue, PagerCopy::ToHost, action.index);
        return;
      case PagerAction::Record:
        queues_->record(action.queue, action.index);
        return;
      case PagerAction::Wait:
        queues_->wait(action.queue, action.index);
        return;
      default:
        return;
    }
  }

  void copy(PagerQueue queue, PagerCopy direction, int64_t window) {
    char* buffer = staging_[window % plan_.buffers];
    for (const PagerRun& run : runs_[window]) {
      char* device = buffer + run.offset;
      if (direction == PagerCopy::ToDevice) {
        queues_->copy(queue, direction, device, run.host, run.bytes);
      } else {
        queues_->copy(queue, direction, run.host, device, run.bytes);
      }
    }
  }

  std::vector<OptimizerEntry> in_window(int64_t window, const OptimizerAlgorithm& algorithm,
                                        const std::vector<const OptimizerEntry*>& passing) const {
    std::vector<OptimizerEntry> parts;
    parts.reserve(plan_.windows[window].pieces.size());
    char* buffer = staging_[window % plan_.buffers];
    for (const PagerPiece& piece : plan_.windows[window].pieces) {
      if (passing[piece.index] == nullptr) continue;
      const PagedShape& shape = entries_[piece.index].shape;
      parts.push_back(paged_part(*passing[piece.index], algorithm, shape, piece, buffer + piece.offset));
    }
    return parts;
  }

  Device device_;
  PagerAllocator allocator_;
  PagerOptions options_;
  std::unique_ptr<PagerDevice> queues_;
  std::vector<PagerEntry> entries_;
  std::unordered_map<const void*, int64_t> indices_;  // of entries, by their host memory
  std::vector<Slab> slabs_;
  std::optional<size_t> open_;  // the slab that still has room
  PagerPlan plan_;
  std::vector<std::vector<PagerRun>> runs_;  // of each window
  std::vector<char*> staging_;
  int64_t staging_size_ = 0;
  bool placed_ = false;
  bool prefetched_ = false;
};

Pager::Pager(Device device, PagerAllocator allocator, PagerOptions options) {
  check::require(
      options.buffers >= 1, ErrorCode::InvalidArgument, kOp, "buffers", [&] { return std::to_string(options.buffers); },
      "at least 1");
  check::require(allocator.allocate && allocator.free, ErrorCode::InvalidArgument, kOp, "allocator",
                 "a function that is not there", "allocate and free");
  impl_ = std::make_unique<Impl>(device, std::move(allocator), options);
}

Pager::~Pager() = default;

int64_t Pager::add(const OptimizerAlgorithm& algorithm, int64_t numel, DType dtype, bool divisible) {
  check::require(
      dtype == DType::Float32 || dtype == DType::UInt8, ErrorCode::InvalidType, kOp, "dtype",
      [&] { return std::string(name(dtype)); }, "float32 or uint8");
  check::require(
      numel >= 1, ErrorCode::InvalidArgument, kOp, "numel", [&] { return std::to_string(numel); }, "at least 1");
  check::require(algorithm.first + algorithm.second > 0, ErrorCode::InvalidArgument, kOp, "algorithm",
                 std::string(algorithm.name), "one with state");
  return impl_->add({.numel = numel,
                     .first = algorithm.first,
                     .second = algorithm.second,
                     .is_8bit = dtype == DType::UInt8,
                     .divisible = divisible});
}

PagedState Pager::state(int64_t index) const { return impl_->state(index); }
bool Pager::is_resident(int64_t index) const { return impl_->entry(index).resident != nullptr; }
int64_t Pager::resident_bytes() const { return impl_->resident_bytes(); }
int64_t Pager::staging_bytes() const { return impl_->staging_bytes(); }
int64_t Pager::host_bytes() const { return impl_->host_bytes(); }
std::string Pager::place(int64_t budget, Stream stream) { return impl_->place(budget, stream); }
void Pager::page_out(Stream stream) { impl_->page_out(stream); }
void Pager::prefetch(Stream stream) { impl_->prefetch(stream); }

void Pager::step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors, const TensorView& workspace,
                 Stream stream) {
  impl_->step(step, tensors, workspace, stream);
}

}  // namespace qbits
