#include "qbits/pager.h"

#include "device.h"
#include "pager_cases.h"
#include "qbits/error.h"

namespace qbits::test {
namespace {

struct CudaSpace : Space {
  Device device() const override { return {DeviceType::Cuda, 0}; }
  void* allocate(int64_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, static_cast<size_t>(bytes)));
    return memory;
  }
  void* allocate_host(int64_t bytes) override {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault));
    return memory;
  }
  void free(void* memory) override { check(cudaFree(memory)); }
  void free_host(void* memory) override { check(cudaFreeHost(memory)); }
  void upload(void* to, const void* from, int64_t bytes) override {
    check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault));
    check(cudaDeviceSynchronize());  // from pageable memory it may return before the data is there
  }
  void download(void* to, const void* from, int64_t bytes) override { upload(to, from, bytes); }
};

constexpr PagerOptions kSmall = {.host_slab_bytes = 300'000, .staging_bytes = 150'000};

void check_same_bits(const PagedProblem::Choice& choice, Stream stream = {}) {
  CudaSpace space;
  PagedProblem plain(choice, space);
  PagedProblem paged(choice, space);
  PlainMemory memory(space);
  {
    Pager pager(space.device(), memory.allocator(), kSmall);
    paged.add_to(pager);
    for (int64_t budget : {int64_t{0}, int64_t{500'000}, int64_t{1} << 40, int64_t{0}}) {
      pager.place(budget, stream);
      for (int i = 0; i < 6; ++i) {
        plain.step(stream);
        paged.step(pager, stream);
        if (i % 2 == 0) pager.prefetch(stream);
      }
      check(cudaDeviceSynchronize());
      EXPECT_EQ(paged.snapshot(pager), plain.snapshot()) << choice.algorithm << " budget " << budget;
    }
    pager.page_out(stream);
    EXPECT_EQ(memory.bytes(PagerMemory::Resident) + memory.bytes(PagerMemory::Staging), 0);
    EXPECT_EQ(paged.snapshot(pager), plain.snapshot());
    pager.place(0, stream);
    pager.prefetch(stream);
  }
  EXPECT_TRUE(memory.is_empty());
}

TEST(CudaPager, SameBitsAsOptimizerStep) {
  QBITS_NEEDS_GPU();
  for (const OptimizerAlgorithm& algorithm : optimizer_algorithms()) {
    if (algorithm.first + algorithm.second == 0) continue;
    for (bool is_8bit : {false, true}) check_same_bits({.algorithm = algorithm.name, .is_8bit = is_8bit});
  }
  check_same_bits({.algorithm = "adam", .is_8bit = true, .stochastic_rounding = true});
  check_same_bits({.algorithm = "adam", .is_8bit = true, .scaling = LayerScaling::TrustRatio});
}

TEST(CudaPager, SideStream) {
  QBITS_NEEDS_GPU();
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check_same_bits({.algorithm = "adam", .is_8bit = true}, Stream{stream});
  check(cudaStreamDestroy(stream));
}

// Replays and eager steps in turn, with some state resident, and with a prefetch inside the graph.
TEST(CudaPager, Graphs) {
  QBITS_NEEDS_GPU();
  for (bool prefetches : {false, true}) {
    CudaSpace space;
    PagedProblem plain({.algorithm = "adam", .is_8bit = true}, space);
    PagedProblem paged({.algorithm = "adam", .is_8bit = true}, space);
    PlainMemory memory(space);
    Pager pager(space.device(), memory.allocator(), kSmall);
    paged.add_to(pager);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    pager.place(200'000, Stream{stream});
    paged.step(pager, Stream{stream});
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    if (prefetches) pager.prefetch(Stream{stream});
    paged.step(pager, Stream{stream});
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < 3; ++i) {
      check(cudaGraphLaunch(executable, stream));
      check(cudaGraphLaunch(executable, stream));
      paged.step(pager, Stream{stream});
    }
    for (int i = 0; i < 10; ++i) plain.step(Stream{stream});
    check(cudaStreamSynchronize(stream));
    EXPECT_EQ(paged.snapshot(pager), plain.snapshot());
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
    check(cudaStreamDestroy(stream));
  }
}

TEST(CudaPager, WithoutADeviceItIsADeviceError) {
  if (has_gpu()) GTEST_SKIP() << "a CUDA device is present";
  PlainMemory memory;
  EXPECT_THROW(Pager({DeviceType::Cuda, 0}, memory.allocator()), Error);
}

}  // namespace
}  // namespace qbits::test
