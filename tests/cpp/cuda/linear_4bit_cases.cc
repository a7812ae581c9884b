#include "cuda/linear_4bit_cases.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <iterator>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>

namespace qbits::test {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

std::vector<uint8_t> encode(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * itemsize(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::Float32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else if (dtype == DType::BFloat16) {
      const __nv_bfloat16 v(values[i]);
      std::memcpy(&bytes[2 * i], &v, 2);
    } else {
      const __half v(values[i]);
      std::memcpy(&bytes[2 * i], &v, 2);
    }
  }
  return bytes;
}

float decode(const uint8_t* bytes, DType dtype) {
  if (dtype == DType::Float32) {
    float v;
    std::memcpy(&v, bytes, 4);
    return v;
  }
  if (dtype == DType::BFloat16) {
    __nv_bfloat16 v;
    std::memcpy(&v, bytes, 2);
    return __bfloat162float(v);
  }
  __half v;
  std::memcpy(&v, bytes, 2);
  return __half2float(v);
}

int64_t scale_count(const LinearCase& c) {
  const bool affine = format(c.format).coding == Coding::Affine;
  return affine ? c.n * ((c.k + c.block_size - 1) / c.block_size) : (c.n * c.k + c.block_size - 1) / c.block_size;
}

size_t bytes_of(int64_t elements, DType dtype) { return static_cast<size_t>(elements * itemsize(dtype)); }

}  // namespace

std::string to_string(const LinearCase& c) {
  std::ostringstream text;
  text << c.format << " block " << c.block_size << ", N " << c.n << ", K " << c.k << ", M " << c.m << ", "
       << name(c.dtype) << (c.nested ? ", nested" : "") << (c.bias ? ", bias" : "");
  if (c.format == "int4") text << ", scales " << name(c.scale_dtype);
  if (c.offset != 0) text << ", pointers off by " << c.offset;
  if (c.odd_scale != 0) text << ", some scales " << c.odd_scale;
  if (c.odd_zeros) text << ", odd zeros";
  if (c.one_sign) text << ", x of one sign";
  return text.str();
}

std::vector<LinearCase> linear_cases() {
  struct Shape {
    int64_t n, k, m;
  };
  constexpr Shape kShapes[] = {{1, 1, 1},     {3, 5, 2},       {33, 31, 7},   {64, 64, 1},    {65, 96, 3},
                               {8, 2048, 8},  {100, 160, 17},  {257, 512, 5}, {40, 1056, 33}, {130, 320, 70},
                               {72, 1280, 1}, {200, 576, 129}, {40, 8256, 5}, {2200, 4160, 3}};
  constexpr int64_t kBlocks[] = {64, 32, 128, 16, 256, 4096, 512};
  constexpr DType kDtypes[] = {DType::BFloat16, DType::Float16, DType::Float32};
  std::vector<LinearCase> cases;
  int turn = 0;
  for (const Shape& s : kShapes) {
    for (const char* format : {"nf4", "fp4", "int4"}) {
      for (const DType dtype : kDtypes) {
        const bool affine = std::string(format) == "int4";
        LinearCase c{.format = format, .block_size = kBlocks[turn % 7], .n = s.n, .k = s.k, .m = s.m, .dtype = dtype};
        c.nested = !affine && turn % 2 == 1;
        c.bias = turn % 3 != 0;
        c.scale_dtype = kDtypes[turn / 3 % 3];
        if (affine && turn % 5 == 0) c.block_size = s.k;  // one group per row
        if (turn % 11 == 10) c.offset = 1;
        cases.push_back(c);
        ++turn;
      }
    }
  }
  return cases;
}

std::vector<LinearCase> odd_scale_cases() {
  constexpr float kScales[] = {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 3e38F,
                               1e36F, 1e-40F};
  std::vector<LinearCase> cases;
  for (const float scale : kScales) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const int64_t m : {1, 24, 200}) {
        LinearCase c{.format = "nf4", .block_size = 64, .n = 72, .k = 256, .m = m, .dtype = dtype};
        c.odd_scale = scale;
        cases.push_back(c);
      }
    }
  }
  for (const DType scale_dtype : {DType::Float32, DType::BFloat16}) {
    for (const int64_t m : {1, 24, 60, 200}) {
      LinearCase c{.format = "int4", .block_size = 64, .n = 72, .k = 256, .m = m};
      c.scale_dtype = scale_dtype;
      c.odd_scale = 1e31F;
      cases.push_back(c);
    }
  }
  for (const DType scale_dtype : {DType::Float32, DType::BFloat16, DType::Float16}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const int64_t m : {1, 24, 60, 200}) {
        LinearCase c{.format = "int4", .block_size = 64, .n = 200, .k = 512, .m = m, .dtype = dtype};
        c.scale_dtype = scale_dtype;
        c.odd_zeros = true;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

std::vector<LinearCase> accuracy_cases(int64_t n, int64_t k, int64_t m) {
  std::vector<LinearCase> cases;
  for (const char* format : {"nf4", "fp4", "int4"}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const bool one_sign : {false, true}) {
        LinearCase c{.format = format, .block_size = 64, .n = n, .k = k, .m = m, .dtype = dtype};
        c.one_sign = one_sign;
        cases.push_back(c);
        if (format == std::string_view("int4")) {
          c.scale_dtype = dtype;
          cases.push_back(c);
        }
      }
    }
  }
  return cases;
}

DeviceBuffer::DeviceBuffer(size_t bytes) : bytes_(bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, std::max<size_t>(bytes, 1)));
  data_ = static_cast<uint8_t*>(p);
  poison();
}

DeviceBuffer::~DeviceBuffer() { static_cast<void>(cudaFree(data_)); }

void DeviceBuffer::write(const void* host, size_t bytes, size_t offset) {
  if (bytes == 0) return;
  check(cudaMemcpy(data_ + offset, host, bytes, cudaMemcpyHostToDevice));
  check(cudaDeviceSynchronize());  // other streams do not wait for it
}

std::vector<uint8_t> DeviceBuffer::read() const {
  std::vector<uint8_t> bytes(bytes_);
  check(cudaDeviceSynchronize());
  if (bytes_ > 0) check(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost));
  return bytes;
}

void DeviceBuffer::poison() {
  if (bytes_ == 0) return;
  check(cudaMemset(data_, 0xff, bytes_));
  check(cudaDeviceSynchronize());
}

float rounded(float v, DType dtype) { return decode(encode({v}, dtype).data(), dtype); }

LinearProblem::LinearProblem(const LinearCase& c, bool grad_x, uint64_t seed, Empty)
    : case_(c),
      grad_x_(grad_x),
      a_device_(bytes_of(c.m * depth() + c.offset, c.dtype)),
      codes_(static_cast<size_t>((c.n * c.k + 1) / 2 + c.offset)),
      scales_(bytes_of(scale_count(c), DType::Float32)),
      zeros_(bytes_of(scale_count(c), DType::Float32)),
      nested_absmax_(bytes_of(scale_count(c) / 256 + 1, DType::Float32)),
      nested_code_(bytes_of(256, DType::Float32)),
      offset_(bytes_of(1, DType::Float32)),
      bias_device_(bytes_of(c.n, c.dtype)),
      out_(bytes_of(c.m * cols() + c.offset, c.dtype)) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  const Format& f = format(c.format);
  const bool affine = f.coding == Coding::Affine;
  const int64_t count = c.n * c.k;
  std::vector<uint8_t> codes((count + 1) / 2);
  for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random());
  if (c.odd_scale != 0 && !affine) {
    std::vector<uint8_t> positive;
    for (uint8_t code = 0; code < 16; ++code) {
      if (f.codebook[code] > 0) positive.push_back(code);
    }
    for (uint8_t& byte : codes) byte = positive[byte % positive.size()] << 4 | positive[(byte >> 4) % positive.size()];
  }
  const int64_t blocks = scale_count(c);

  // Scales as the contract of struct Absmax and of dequantize_affine reads them.
  std::vector<float> scale(blocks);
  std::vector<float> zero(blocks);
  if (affine) {
    for (int64_t i = 0; i < blocks; ++i) {
      scale[i] = rounded(0.01f + 0.05f * uniform(random), c.scale_dtype);
      if (c.odd_scale != 0 && i % 5 == 0) scale[i] = rounded(c.odd_scale, c.scale_dtype);
      zero[i] = rounded(15 * uniform(random), c.scale_dtype);  // not an integer
      constexpr float kOddZeros[] = {-3.3F, 16.0F, -0.0F, 200.3F, -150.7F, 17.25F, 1e-3F};
      if (c.one_sign) zero[i] = 7.5F;
      if (c.odd_zeros && i % 3 == 0) zero[i] = rounded(kOddZeros[i / 3 % std::size(kOddZeros)], c.scale_dtype);
    }
    const std::vector<uint8_t> scale_bytes = encode(scale, c.scale_dtype);
    const std::vector<uint8_t> zero_bytes = encode(zero, c.scale_dtype);
    scales_.write(scale_bytes.data(), scale_bytes.size());
    zeros_.write(zero_bytes.data(), zero_bytes.size());
  } else if (c.nested) {
    std::vector<uint8_t> values(blocks);
    std::vector<float> nested(blocks / 256 + 1);
    std::vector<float> code(256);
    for (uint8_t& v : values) v = static_cast<uint8_t>(random());
    for (float& v : nested) v = 0.2f + 0.1f * uniform(random);
    for (int i = 0; i < 256; ++i) code[i] = static_cast<float>(i - 127) / 128;
    const float offset = 0.61f;
    for (int64_t i = 0; i < blocks; ++i) {
      const float product = code[values[i]] * nested[i / 256];
      scale[i] = product + offset;
    }
    scales_.write(values.data(), values.size());
    nested_absmax_.write(nested.data(), 4 * nested.size());
    nested_code_.write(code.data(), 4 * code.size());
    offset_.write(&offset, 4);
  } else {
    for (float& v : scale) v = 0.5f + uniform(random);
    for (int64_t i = 0; c.odd_scale != 0 && i < blocks; i += 5) scale[i] = c.odd_scale;
    scales_.write(scale.data(), 4 * scale.size());
  }

  codes_.write(codes.data(), codes.size(), static_cast<size_t>(c.offset));
  w_.resize(count);
  const int64_t groups = affine ? (c.k + c.block_size - 1) / c.block_size : 0;
  for (int64_t i = 0; i < count; ++i) {
    const int code = codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
    if (affine) {
      const int64_t s = i / c.k * groups + i % c.k / c.block_size;
      const float difference = static_cast<float>(code) - zero[s];
      w_[i] = difference * scale[s];
    } else {
      w_[i] = f.codebook[code] * scale[i / c.block_size];
    }
  }
  if (c.bias) {
    bias_.resize(c.n);
    for (float& v : bias_) v = rounded(normal(random), c.dtype);
    const std::vector<uint8_t> bytes = encode(bias_, c.dtype);
    bias_device_.write(bytes.data(), bytes.size());
  }
}

void LinearProblem::refill(uint64_t seed) {
  draw_a(seed);
  write_a(a_);
  multiply();
}

void LinearProblem::draw_a(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  a_.resize(case_.m * depth());
  for (float& v : a_) v = rounded(normal(random), case_.dtype);
  if (case_.odd_scale != 0 || case_.one_sign) {
    for (float& v : a_) v = std::fabs(v);
  }
}

void LinearProblem::write_a(const std::vector<float>& values) {
  const std::vector<uint8_t> bytes = encode(values, case_.dtype);
  a_device_.write(bytes.data(), bytes.size(), bytes_of(case_.offset, case_.dtype));
}

void LinearProblem::spoil_scale(int64_t block) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  scales_.write(&nan, sizeof nan, static_cast<size_t>(block) * sizeof nan);
}

void LinearProblem::multiply() {
  const int64_t size = rows() * cols();
  want_.assign(size, 0);
  magnitude_.assign(size, 0);
  square_.assign(size, 0);
  rounded_.assign(size, 0);
  std::vector<float> column(depth());
  std::vector<float> column_rounded(depth());
  for (int64_t c = 0; c < cols(); ++c) {
    for (int64_t r = 0; r < depth(); ++r) {
      column[r] = weight(r, c);
      column_rounded[r] = rounded(column[r], case_.dtype);
    }
    const double bias = case_.bias && !grad_x_ ? bias_[c] : 0;
    for (int64_t m = 0; m < rows(); ++m) {
      double sum = bias;
      double rounded_sum = bias;
      double magnitude = std::fabs(bias);
      double square = 0;
      for (int64_t r = 0; r < depth(); ++r) {
        const double product = double{a(m, r)} * column[r];
        sum += product;
        rounded_sum += double{a(m, r)} * column_rounded[r];
        magnitude += std::fabs(product);
        square += product * product;
      }
      const int64_t i = m * cols() + c;
      want_[i] = sum;
      magnitude_[i] = magnitude;
      square_[i] = square;
      rounded_[i] = rounded(static_cast<float>(rounded_sum), case_.dtype);
    }
  }
}

Weight4bitArgs LinearProblem::weight_args() const {
  const Format& f = format(case_.format);
  Weight4bitArgs w{.format = &f, .rows = case_.n, .cols = case_.k, .block_size = case_.block_size};
  w.codes = codes_.data() + case_.offset;
  if (f.coding == Coding::Affine) {
    w.scales = scales_.data();
    w.zeros = zeros_.data();
    w.scale_dtype = case_.scale_dtype;
  } else {
    w.absmax.values = scales_.data();
    if (case_.nested) {
      w.absmax.nested_absmax = reinterpret_cast<const float*>(nested_absmax_.data());
      w.absmax.nested_code = reinterpret_cast<const float*>(nested_code_.data());
      w.absmax.offset = reinterpret_cast<const float*>(offset_.data());
    }
  }
  return w;
}

Linear4bitArgs LinearProblem::forward() const {
  return {.x = a_device_.data() + bytes_of(case_.offset, case_.dtype),
          .dtype = case_.dtype,
          .m = case_.m,
          .weight = weight_args(),
          .bias = case_.bias ? bias_device_.data() : nullptr,
          .out = out_.data() + bytes_of(case_.offset, case_.dtype),
          .workspace = nullptr,
          .device = {DeviceType::Cuda, 0}};
}

Linear4bitGradXArgs LinearProblem::grad_x() const {
  return {.grad = a_device_.data() + bytes_of(case_.offset, case_.dtype),
          .dtype = case_.dtype,
          .m = case_.m,
          .weight = weight_args(),
          .out = out_.data() + bytes_of(case_.offset, case_.dtype),
          .workspace = nullptr,
          .device = {DeviceType::Cuda, 0}};
}

std::vector<float> LinearProblem::result() const {
  const std::vector<uint8_t> bytes = out_.read();
  std::vector<float> values(rows() * cols());
  const size_t size = itemsize(case_.dtype);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = decode(&bytes[(i + static_cast<size_t>(case_.offset)) * size], case_.dtype);
  return values;
}

double LinearProblem::bound(int64_t i) const {
  const double ulp = case_.dtype == DType::BFloat16 ? 0x1p-8 : case_.dtype == DType::Float16 ? 0x1p-11 : 0x1p-24;
  return ulp * (std::fabs(want_[i]) + 3 * std::sqrt(square_[i])) + 1e-6 * magnitude_[i] + 1e-7;
}

std::string LinearProblem::mismatch() const {
  const std::vector<float> got = result();
  int64_t bad = 0;
  std::ostringstream text;
  for (size_t i = 0; i < got.size(); ++i) {
    const float limit = rounded(static_cast<float>(want_[i]), case_.dtype);
    if (std::isfinite(limit) ? std::fabs(got[i] - want_[i]) <= bound(static_cast<int64_t>(i))
                             : got[i] == limit || (std::isnan(got[i]) && std::isnan(limit))) {
      continue;
    }
    if (bad++ == 0) {
      text << "first bad element: row " << i / cols() << ", column " << i % cols() << ": got " << got[i] << ", want "
           << want_[i] << " within " << bound(static_cast<int64_t>(i));
    }
  }
  if (bad == 0) return "";
  text << "; " << bad << " of " << got.size() << " are bad";
  return text.str();
}

double LinearProblem::error() const {
  const std::vector<float> got = result();
  double sum = 0;
  for (size_t i = 0; i < got.size(); ++i) sum += (got[i] - want_[i]) * (got[i] - want_[i]);
  return std::sqrt(sum / static_cast<double>(got.size()));
}

double LinearProblem::reference_error() const {
  double sum = 0;
  for (size_t i = 0; i < want_.size(); ++i) sum += (rounded_[i] - want_[i]) * (rounded_[i] - want_[i]);
  return std::sqrt(sum / static_cast<double>(want_.size()));
}

void expect_graph_replays(LinearProblem& problem, const std::vector<Linear4bitPlan>& plans,
                          const std::function<void(const Linear4bitPlan&, void*, Stream)>& run) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::deque<DeviceBuffer> workspaces;
  std::vector<cudaGraphExec_t> executables(plans.size());
  for (size_t i = 0; i < plans.size(); ++i) {
    void* const workspace = workspaces.emplace_back(static_cast<size_t>(plans[i].workspace_bytes)).data();
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    run(plans[i], workspace, Stream{stream});
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << to_string(plans[i]);
    ASSERT_EQ(cudaGraphInstantiate(&executables[i], graph, 0), cudaSuccess) << to_string(plans[i]);
    check(cudaGraphDestroy(graph));
  }
  for (uint64_t round = 0; round < 2; ++round) {
    problem.refill(40 + round);
    for (size_t i = 0; i < plans.size(); ++i) {
      problem.poison();
      check(cudaDeviceSynchronize());
      ASSERT_EQ(cudaGraphLaunch(executables[i], stream), cudaSuccess);
      EXPECT_EQ(problem.mismatch(), "") << "replay " << round << ", m " << problem.rows() << "; plan "
                                        << to_string(plans[i]);
    }
  }
  for (cudaGraphExec_t executable : executables) check(cudaGraphExecDestroy(executable));
  check(cudaStreamDestroy(stream));
}

}  // namespace qbits::test
