#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "ops/check.h"

namespace qbits::cpu {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits for `value` to differ from `old`: a short spin, since ops follow each other closely, then a sleep.
template <class T>
void wait_while_equal(std::atomic<T>& value, T old) {
  for (int i = 0; i < 4000; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

class Pool {
  static constexpr int kClosed = 1 << 30;

 public:
  explicit Pool(int threads) {
    workers_.reserve(threads - 1);
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::exception&) {  // a process at a limit of its works with the threads it got
    }
  }

  ~Pool() {
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body, bool wake) {
    count_ = count;
    grain_ = grain;
    body_ = &body;
    next_.store(0, std::memory_order_relaxed);
    joined_.store(0, std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);  // seen by those that spin
    if (wake) generation_.notify_all();
    drain();
    // Only workers that have started are waited for: one whose core is taken, by a spinning thread of another
    // pool for instance, would hold up the rest for a time slice.
    joined_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int joined = joined_.load(std::memory_order_acquire); joined != kClosed;
         joined = joined_.load(std::memory_order_acquire)) {
      wait_while_equal(joined_, joined);
    }
  }

 private:
  void drain() {
    for (;;) {
      const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= count_) return;
      (*body_)(begin, std::min(begin + grain_, count_));
    }
  }

  // Whether the run is still open. Its fields do not change before this worker leaves.
  bool join() {
    int joined = joined_.load(std::memory_order_acquire);
    while ((joined & kClosed) == 0) {
      if (joined_.compare_exchange_weak(joined, joined + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void leave() {
    if (joined_.fetch_sub(1, std::memory_order_acq_rel) == kClosed + 1) joined_.notify_all();
  }

  void work() {
    uint32_t seen = 0;
    for (;;) {
      wait_while_equal(generation_, seen);
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      if (!join()) continue;
      inside_body = true;
      drain();
      inside_body = false;
      leave();
    }
  }

 public:
  static thread_local bool inside_body;

 private:
  std::vector<std::thread> workers_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> joined_{kClosed};  // workers in the run, and kClosed once no more may join
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  int64_t count_ = 0;
  int64_t grain_ = 1;
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
};

thread_local bool Pool::inside_body = false;

// Physical cores among those this process may run on: two threads of a core share its vector units.
int usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return std::max(1U, std::thread::hardware_concurrency());
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    if (const int count = std::atoi(text); count > 0) return count;
  }
  return usable_cores();
}

// The pool and its lock live until the process ends: workers may still sleep in it at exit.
struct State {
  explicit State(int count) : threads(count) {}

  std::mutex mutex;
  Pool* pool = nullptr;
  std::atomic<int> threads;
};

State*& state_slot() {
  static State* state = new State(default_threads());
  return state;
}

State& state() {
  // A forked child has the parent's pool but none of its threads: it starts afresh, with the same setting.
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { state_slot() = new State(state_slot()->threads); });
  static_cast<void>(registered);
  return *state_slot();
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body, bool wake) {
  if (count <= 0) return;
  State& s = state();
  const bool alone = count <= grain || s.threads == 1 || Pool::inside_body;
  std::unique_lock lock(s.mutex, std::defer_lock);
  if (alone || !lock.try_lock()) {
    body(0, count);
    return;
  }
  if (s.pool == nullptr) s.pool = new Pool(s.threads);
  Pool::inside_body = true;
  s.pool->run(count, grain, body, wake);
  Pool::inside_body = false;
}

int num_threads() { return state().threads; }

void set_num_threads(int count) {
  check::require(count >= 1 && count <= 4096, ErrorCode::InvalidArgument, "set_num_threads", "count",
                 std::to_string(count), "1 to 4096");
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (count == s.threads) return;
  delete s.pool;
  s.pool = nullptr;
  s.threads = count;
}

}  // namespace qbits::cpu
