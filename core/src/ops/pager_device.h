#pragma once

#include <cstdint>
#include <memory>

#include "ops/pager_plan.h"
#include "qbits/tensor.h"

namespace qbits {

enum class PagerCopy : uint8_t { ToDevice, ToHost };

// What a pager asks of a device: copies in the order of queues, and events between them.
class PagerDevice {
 public:
  PagerDevice() = default;
  virtual ~PagerDevice() = default;
  PagerDevice(const PagerDevice&) = delete;
  PagerDevice& operator=(const PagerDevice&) = delete;

  virtual void use_as_main(Stream stream) = 0;
  virtual void copy(PagerQueue queue, PagerCopy direction, void* to, const void* from, int64_t bytes) = 0;
  virtual void record(PagerQueue queue, int64_t event) = 0;
  virtual void wait(PagerQueue queue, int64_t event) = 0;
  virtual void finish(PagerQueue queue) = 0;  // the calling thread waits
};

namespace cuda {
std::unique_ptr<PagerDevice> make_pager_device(Device device, int events);
}  // namespace cuda

}  // namespace qbits
