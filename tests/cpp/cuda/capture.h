#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "cuda/device.h"
#include "qbits/tensor.h"

// CUDA graphs for the CUDA tests.

namespace qbits::test {

struct CaptureStream {
  cudaStream_t handle = nullptr;
  CaptureStream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  ~CaptureStream() { static_cast<void>(cudaStreamDestroy(handle)); }
  operator Stream() const { return Stream{handle}; }
};

// What replays `calls`.
class Graph {
 public:
  Graph(const CaptureStream& stream, const std::function<void()>& calls) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal));
    calls();
    check(cudaStreamEndCapture(stream.handle, &graph));
    check(cudaGraphInstantiate(&executable_, graph, 0));
    check(cudaGraphDestroy(graph));
  }
  ~Graph() { static_cast<void>(cudaGraphExecDestroy(executable_)); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay() {
    check(cudaDeviceSynchronize());
    check(cudaGraphLaunch(executable_, stream_.handle));
    check(cudaDeviceSynchronize());
  }

 private:
  const CaptureStream& stream_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace qbits::test
