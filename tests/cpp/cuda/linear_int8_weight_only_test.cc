#include <algorithm>
#include <cmath>
#include <random>

#include "cuda/linear_int8_weight_only_kernels.h"
#include "device.h"
#include "qbits/int8.h"

namespace qbits::test {
namespace {

using Plan = LinearInt8WeightOnlyPlan;

struct Case {
  int64_t n;
  int64_t k;
  int64_t m;
  DType dtype = DType::BFloat16;
  bool bias = false;
  int64_t offset = 0;     // elements by which pointers miss alignment
  bool integers = false;  // x of small integers, whose sums are exact
};

std::string to_string(const Case& c) {
  return "N " + std::to_string(c.n) + ", K " + std::to_string(c.k) + ", M " + std::to_string(c.m) + ", " +
         std::string(name(c.dtype)) + (c.bias ? ", bias" : "") + ", offset " + std::to_string(c.offset);
}

HostTensor codes_of(const Case& c) {
  std::mt19937 random(static_cast<uint32_t>(c.n + c.k));
  HostTensor codes(DType::Int8, {c.n, c.k});
  for (uint8_t& code : codes.bytes) code = static_cast<uint8_t>(random());
  return codes;
}

HostTensor scales_of(const Case& c) {
  std::vector<float> scales;
  for (int64_t i = 0; i < c.n; ++i) scales.push_back(0.5F + static_cast<float>(i % 37) / 50.0F);
  return HostTensor::floats(scales);
}

Buffer x_of(const Case& c) {
  Buffer x = random_buffer(c.dtype, c.m * c.k, 1);
  for (int64_t i = 0; c.integers && i < c.m * c.k; ++i) x.set(i, static_cast<float>(i % 7 - 3));
  return x;
}

// One product, whose result is compared with the sum in float64.
class Product {
 public:
  explicit Product(const Case& c)
      : case_(c),
        x_(x_of(c)),
        codes_(codes_of(c)),
        scales_(scales_of(c)),
        bias_(random_buffer(c.dtype, c.n, 3)),
        device_x_(HostTensor(x_, {c.m, c.k}), c.offset),
        device_codes_(codes_, c.offset),
        device_scales_(scales_, 0),
        device_bias_(HostTensor(bias_, {c.n}), c.offset),
        device_out_(HostTensor(c.dtype, {c.m, c.n}), c.offset) {}

  LinearInt8WeightOnlyArgs args() const {
    return {.x = device_x_.view().data,
            .dtype = case_.dtype,
            .m = case_.m,
            .n = case_.n,
            .k = case_.k,
            .codes = device_codes_.view().as<const int8_t>(),
            .scales = device_scales_.view().as<const float>(),
            .bias = case_.bias ? device_bias_.view().data : nullptr,
            .out = device_out_.view().data,
            .workspace = nullptr,
            .device = {DeviceType::Cuda, 0}};
  }

  // Every plan that computes the problem here, those of sm_75 among them.
  std::vector<Plan> plans() const {
    LinearInt8WeightOnlyProblem problem = cuda::problem_of(args());
    std::vector<Plan> plans = linear_int8_weight_only_plans(problem);
    problem.compute_capability = 75;
    for (const Plan& plan : linear_int8_weight_only_plans(problem)) {
      if (plan.isa == MmaIsa::Sm75) plans.push_back(plan);
    }
    return plans;
  }

  void set_x(int64_t i, float value) {
    sums_.clear();
    x_.set(i, value);
    check(cudaMemcpy(device_x_.view().data, x_.bytes.data(), x_.bytes.size(), cudaMemcpyHostToDevice));
  }

  std::vector<uint8_t> run(const Plan& plan) {
    check(cudaMemset(device_out_.view().data, 0xff, static_cast<size_t>(case_.m * case_.n * itemsize(case_.dtype))));
    cuda::run(args(), plan, {});
    check(cudaDeviceSynchronize());
    return device_out_.download();
  }

  // What is wrong with the result, or nothing.
  std::string mismatch(const std::vector<uint8_t>& bytes) {
    if (sums_.empty()) add_up();
    Buffer out(case_.dtype, case_.m * case_.n);
    out.bytes = bytes;
    const double unit = case_.dtype == DType::Float32 ? 0x1p-24 : case_.dtype == DType::BFloat16 ? 0x1p-8 : 0x1p-11;
    const auto* const scales = reinterpret_cast<const float*>(scales_.bytes.data());
    for (int64_t i = 0; i < case_.m * case_.n; ++i) {
      const int64_t m = i / case_.n, n = i % case_.n;
      const auto [sum, size] = sums_[static_cast<size_t>(i)];
      const float got = out.get(i), bias = case_.bias ? bias_.get(n) : 0.0F, scale = scales[n] / 127.0F;
      bool right = false;
      if (std::isnan(sum)) {
        right = std::isnan(got);
      } else if (case_.integers) {
        right = got == rounded(std::fma(scale, static_cast<float>(sum), bias), case_.dtype);
      } else {
        const double want = scale * sum + bias;
        const double roundings = 2.0 * static_cast<double>(case_.k) + 3;
        right = std::fabs(got - want) <=
                roundings * 0x1p-24 * (scale * size + std::fabs(bias)) + 1.01 * unit * std::fabs(want) + 0x1p-25;
      }
      if (!right) {
        return "at " + std::to_string(m) + ", " + std::to_string(n) + ": got " + std::to_string(got) + ", want " +
               std::to_string(scale * sum + bias);
      }
    }
    return "";
  }

 private:
  // The sums in float64 and those of magnitudes, once for all plans.
  void add_up() {
    const auto* const codes = reinterpret_cast<const int8_t*>(codes_.bytes.data());
    std::vector<double> x;
    for (int64_t i = 0; i < case_.m * case_.k; ++i) x.push_back(x_.get(i));
    for (int64_t i = 0; i < case_.m * case_.n; ++i) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < case_.k; ++k) {
        const double product = x[i / case_.n * case_.k + k] * codes[i % case_.n * case_.k + k];
        sum += product;
        size += std::fabs(product);
      }
      sums_.emplace_back(sum, size);
    }
  }

  Case case_;
  Buffer x_;
  HostTensor codes_, scales_;
  Buffer bias_;
  std::vector<std::pair<double, double>> sums_;
  DeviceTensor device_x_, device_codes_, device_scales_, device_bias_, device_out_;
};

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const DType dtype : kFloats) {
    for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1},
                        {3, 16},
                        {33, 77},
                        {32, 512},
                        {100, 528},
                        {130, 1040},
                        {257, 2064},
                        {5, 0}}) {
      for (const int64_t m : {1, 7, 8, 9, 17, 33, 65, 130}) {
        cases.push_back({.n = n, .k = k, .m = m, .dtype = dtype, .bias = m % 2 == 1});
        cases.push_back({.n = n, .k = k, .m = m, .dtype = dtype, .bias = m % 2 == 0, .integers = true});
      }
    }
    for (const int64_t offset : {1, 8}) cases.push_back({.n = 70, .k = 512, .m = 9, .dtype = dtype, .offset = offset});
    cases.push_back({.n = 1000, .k = 4096, .m = 3, .dtype = dtype, .bias = true});
    cases.push_back({.n = 300, .k = 4112, .m = 70, .dtype = dtype, .bias = true});
  }
  return cases;
}

TEST(LinearInt8WeightOnlyCuda, EveryPlanOfEveryCase) {
  QBITS_NEEDS_GPU();
  for (const Case& c : cases()) {
    Product product(c);
    for (const Plan& plan : product.plans()) {
      std::vector<uint8_t> first;
      ASSERT_NO_THROW(first = product.run(plan)) << to_string(c) << "; " << to_string(plan);
      EXPECT_EQ(product.mismatch(first), "") << to_string(c) << "; " << to_string(plan);
      EXPECT_EQ(product.run(plan), first) << "bits differ from run to run: " << to_string(c) << "; " << to_string(plan);
    }
  }
}

TEST(LinearInt8WeightOnlyCuda, NanReachesItsRowAlone) {
  QBITS_NEEDS_GPU();
  for (const DType dtype : kFloats) {
    Product product({.n = 140, .k = 1040, .m = 40, .dtype = dtype});
    product.set_x(17 * 1040 + 1039, NAN);
    for (const Plan& plan : product.plans()) EXPECT_EQ(product.mismatch(product.run(plan)), "") << to_string(plan);
  }
}

// The public op, on streams and in graphs; by integers, so that the CPU's sums are the same.
TEST(LinearInt8WeightOnlyCuda, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (const Launch how : {Launch::DefaultStream, Launch::SideStream, Launch::Graph}) {
    for (const int64_t m : {3, 24}) {
      const Case c{.n = 272, .k = 1024, .m = m, .integers = true};
      std::vector<HostTensor> in = {HostTensor(x_of(c), {c.m, c.k}), codes_of(c), scales_of(c),
                                    HostTensor(random_buffer(c.dtype, c.n, 3), {c.n})};
      std::vector<HostTensor> out = {HostTensor(c.dtype, {c.m, c.n})};
      std::vector<uint8_t> workspace(static_cast<size_t>(
          linear_int8_weight_only_workspace({.codes = in[1].view(), .scales = in[2].view()}, c.m, c.dtype)));
      expect_same_bits(to_string(c), in, out,
                       [&](const Tensors& i, const Tensors& o, Stream stream) {
                         const WeightInt8 weight{.codes = i[1], .scales = i[2]};
                         const bool cuda = i[0].device.type == DeviceType::Cuda;
                         const int64_t bytes = linear_int8_weight_only_workspace(weight, c.m, c.dtype);
                         ASSERT_EQ(bytes, cuda ? 0 : std::ssize(workspace));
                         const TensorView scratch = TensorView::contiguous(cuda ? nullptr : workspace.data(),
                                                                           DType::UInt8, {bytes}, i[0].device);
                         linear_int8_weight_only(i[0], weight, i[3], o[0], scratch, stream);
                       },
                       {.launch = how});
    }
  }
}

}  // namespace
}  // namespace qbits::test
