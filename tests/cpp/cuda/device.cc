#include "device.h"

#include <numeric>

#include "qbits/runtime.h"

namespace qbits::test {

HostTensor::HostTensor(DType type, std::vector<int64_t> dims) : dtype(type), shape(std::move(dims)) {
  bytes.assign(static_cast<size_t>(numel() * itemsize(dtype)), 0xCD);
}

HostTensor::HostTensor(Buffer buffer, std::vector<int64_t> dims)
    : dtype(buffer.dtype), shape(std::move(dims)), bytes(std::move(buffer.bytes)) {
  if (shape.empty()) shape = {std::ssize(bytes) / itemsize(dtype)};
}

HostTensor HostTensor::floats(const std::vector<float>& values) {
  Buffer buffer(DType::Float32, std::ssize(values));
  for (int64_t i = 0; i < std::ssize(values); ++i) buffer.set(i, values[i]);
  return HostTensor(std::move(buffer));
}

int64_t HostTensor::numel() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

TensorView HostTensor::view() { return TensorView::contiguous(bytes.data(), dtype, shape); }

DeviceTensor::DeviceTensor(const HostTensor& host, int64_t offset) {
  const size_t skip = static_cast<size_t>(offset * itemsize(host.dtype));
  check(cudaMalloc(&allocation_, skip + host.bytes.size()));
  check(cudaMemset(allocation_, 0xcd, skip));  // kernels that read whole words begin with it
  void* data = static_cast<uint8_t*>(allocation_) + skip;
  check(cudaMemcpy(data, host.bytes.data(), host.bytes.size(), cudaMemcpyHostToDevice));
  view_ = TensorView::contiguous(data, host.dtype, host.shape, {DeviceType::Cuda, 0});
}

DeviceTensor::DeviceTensor(DeviceTensor&& other) noexcept
    : allocation_(std::exchange(other.allocation_, nullptr)), view_(other.view_) {}

DeviceTensor::~DeviceTensor() { static_cast<void>(cudaFree(allocation_)); }

std::vector<uint8_t> DeviceTensor::download() const {
  std::vector<uint8_t> bytes(static_cast<size_t>(view_.numel() * itemsize(view_.dtype)));
  check(cudaMemcpy(bytes.data(), view_.data, bytes.size(), cudaMemcpyDeviceToHost));
  return bytes;
}

namespace {

void run_on_gpu(const Op& op, const Tensors& in, const Tensors& out, Launch how) {
  check(cudaDeviceSynchronize());  // uploads from pageable memory may still be on their way
  if (how == Launch::DefaultStream) {
    op(in, out, Stream{});
    check(cudaDeviceSynchronize());
    return;
  }
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (how == Launch::SideStream) {
    op(in, out, Stream{stream});
  } else {
    // Global mode refuses any use of the legacy default stream while capturing.
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    op(in, out, Stream{stream});
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 2; ++replay) check(cudaGraphLaunch(executable, stream));
    check(cudaStreamSynchronize(stream));
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
  }
  check(cudaStreamSynchronize(stream));
  check(cudaStreamDestroy(stream));
}

void expect_equal_bytes(const std::string& what, const HostTensor& want, const std::vector<uint8_t>& got) {
  if (want.bytes == got) return;
  const size_t size = static_cast<size_t>(itemsize(want.dtype));
  size_t wrong = 0;
  size_t first = 0;
  for (size_t i = got.size() / size; i-- > 0;) {
    if (std::equal(got.begin() + i * size, got.begin() + (i + 1) * size, want.bytes.begin() + i * size)) continue;
    ++wrong;
    first = i;
  }
  auto hex = [&](const std::vector<uint8_t>& bytes) {
    std::string text;
    for (size_t k = size; k-- > 0;) {
      text += "0123456789abcdef"[bytes[first * size + k] >> 4];
      text += "0123456789abcdef"[bytes[first * size + k] & 15];
    }
    return text;
  };
  ADD_FAILURE() << what << ": " << wrong << " of " << got.size() / size << " elements differ, first at " << first
                << ": got " << hex(got) << " on the GPU, want " << hex(want.bytes) << " as on the CPU";
}

}  // namespace

void expect_same_bits(const std::string& what, std::vector<HostTensor>& in, std::vector<HostTensor>& out, const Op& op,
                      Run run) {
  std::vector<DeviceTensor> device;
  Tensors host_in, host_out, device_in, device_out;
  for (auto& t : in) {
    host_in.push_back(t.view());
    device_in.push_back(device.emplace_back(t, run.offset).view());
  }
  for (auto& t : out) {
    host_out.push_back(t.view());
    device_out.push_back(device.emplace_back(t, run.offset).view());
  }
  op(host_in, host_out, {});
  ASSERT_NO_THROW(run_on_gpu(op, device_in, device_out, run.launch)) << what;
  for (size_t i = 0; i < in.size(); ++i) {
    expect_equal_bytes(what + " input " + std::to_string(i), in[i], device[i].download());
  }
  for (size_t i = 0; i < out.size(); ++i) {
    expect_equal_bytes(what + " output " + std::to_string(i), out[i], device[in.size() + i].download());
  }
}

HostTensor test_data(DType dtype, std::vector<int64_t> shape, uint32_t seed, bool finite) {
  const int64_t n = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  Buffer x = random_buffer(dtype, n, seed, 0.05F);
  for (int64_t i = n / 3; i < std::min(n / 3 + 40, n); ++i) x.set(i, i % 2 ? 0.0F : -0.0F);
  if (n > 5) x.set(5, rounded(0x1p-24, dtype));
  if (n > 7) x.set(7, rounded(-0x1p-140, dtype));
  if (n > 9) x.set(9, 3.0F);
  if (!finite) {
    if (n > 11) x.set(11, NAN);
    if (n > 300) x.set(300, INFINITY);
    if (n > 900) x.set(900, -INFINITY);
  }
  return HostTensor(std::move(x), std::move(shape));
}

bool has_gpu() {
  int count = 0;
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  EXPECT_EQ(found, cuda_unavailable_reason().empty()) << cuda_unavailable_reason();
  return found;
}

bool has_hopper() {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  return major == 9;
}

}  // namespace qbits::test
