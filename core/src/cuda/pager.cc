#include <cuda_runtime.h>

#include <array>
#include <vector>

#include "cuda/launch.h"
#include "ops/pager_device.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "pager";

// Waiting and destroying are no part of a capture that another thread or stream may be in.
class OutsideCaptures {
 public:
  OutsideCaptures() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~OutsideCaptures() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  OutsideCaptures(const OutsideCaptures&) = delete;
  OutsideCaptures& operator=(const OutsideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class CudaPagerDevice : public PagerDevice {
 public:
  CudaPagerDevice(Device device, int events) : device_(device), events_(events) {
    const DeviceGuard guard(device_, kOp);
    for (PagerQueue queue : {PagerQueue::In, PagerQueue::Out}) {
      check(cudaStreamCreateWithFlags(&stream(queue), cudaStreamNonBlocking), kOp);
    }
    for (cudaEvent_t& event : events_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), kOp);
  }

  // Errors are ignored: at the end of a process the runtime may be gone already.
  ~CudaPagerDevice() override {
    const OutsideCaptures outside;
    for (cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
    for (PagerQueue queue : {PagerQueue::In, PagerQueue::Out}) static_cast<void>(cudaStreamDestroy(stream(queue)));
    static_cast<void>(cudaGetLastError());
  }

  void use_as_main(Stream main) override { stream(PagerQueue::Main) = native(main); }

  void copy(PagerQueue queue, PagerCopy direction, void* to, const void* from, int64_t bytes) override {
    const DeviceGuard guard(device_, kOp);
    const auto kind = direction == PagerCopy::ToDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream(queue)), kOp);
  }

  void record(PagerQueue queue, int64_t event) override {
    const DeviceGuard guard(device_, kOp);
    check(cudaEventRecord(events_[event], stream(queue)), kOp);
  }

  void wait(PagerQueue queue, int64_t event) override {
    const DeviceGuard guard(device_, kOp);
    check(cudaStreamWaitEvent(stream(queue), events_[event], 0), kOp);
  }

  void finish(PagerQueue queue) override {
    const DeviceGuard guard(device_, kOp);
    const OutsideCaptures outside;
    check(cudaStreamSynchronize(stream(queue)), kOp);
  }

 private:
  cudaStream_t& stream(PagerQueue queue) { return streams_[static_cast<size_t>(queue)]; }

  Device device_;
  std::array<cudaStream_t, 3> streams_{};
  std::vector<cudaEvent_t> events_;
};

}  // namespace

std::unique_ptr<PagerDevice> make_pager_device(Device device, int events) {
  return std::make_unique<CudaPagerDevice>(device, events);
}

}  // namespace qbits::cuda
