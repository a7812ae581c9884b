#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "cuda/linear_int8_kernels.h"
#include "device.h"
#include "qbits/int8.h"

namespace qbits::test {
namespace {

struct Case {
  int64_t n;
  int64_t k;
  int64_t m;
  DType dtype = DType::BFloat16;
  bool bias = false;
  int64_t outliers = 0;    // columns
  int64_t offset = 0;      // elements by which pointers miss alignment
  int64_t x_offset = 0;    // x alone
  bool threshold = false;  // without outliers, too
};

std::string to_string(const Case& c) {
  return "N " + std::to_string(c.n) + ", K " + std::to_string(c.k) + ", M " + std::to_string(c.m) + ", " +
         std::string(name(c.dtype)) + (c.bias ? ", bias" : "") + ", " + std::to_string(c.outliers) +
         " outlier columns" + (c.threshold ? ", threshold" : "") + ", offset " + std::to_string(c.offset + c.x_offset);
}

// Device memory of exactly as many bytes, for memcheck to watch.
class DeviceBytes {
 public:
  DeviceBytes(size_t bytes, int fill) : bytes_(bytes) {
    check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)));
    check(cudaMemset(data_, fill, bytes));
  }
  ~DeviceBytes() { static_cast<void>(cudaFree(data_)); }
  DeviceBytes(const DeviceBytes&) = delete;
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return bytes_; }
  void write(const std::vector<uint8_t>& host, size_t at) {
    if (!host.empty()) check(cudaMemcpy(data() + at, host.data(), host.size(), cudaMemcpyHostToDevice));
  }
  std::vector<uint8_t> read() const {
    std::vector<uint8_t> host(bytes_);
    if (bytes_ > 0) check(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

constexpr float kThreshold = 6.0F;

// A product and its definition: the codes of x by the quantizer on the CPU, the rest in float64.
class Product {
 public:
  explicit Product(const Case& c, uint32_t seed = 1)
      : case_(c),
        threshold_(c.threshold || c.outliers > 0 ? kThreshold : 0.0F),
        lead_(static_cast<size_t>(c.offset * itemsize(c.dtype))),
        x_lead_(static_cast<size_t>((c.offset + c.x_offset) * itemsize(c.dtype))),
        x_(c.dtype, c.m * c.k),
        bias_(random_buffer(c.dtype, c.n, seed + 9)),
        codes_(static_cast<size_t>(c.n * c.k)),
        x_device_(x_.bytes.size() + x_lead_, 0),
        codes_device_(codes_.size() + static_cast<size_t>(c.offset), 0),
        scales_device_(static_cast<size_t>(c.n) * 4, 0),
        bias_device_(bias_.bytes.size(), 0),
        out_device_(static_cast<size_t>(c.m * c.n * itemsize(c.dtype)) + lead_, 0xff) {
    std::mt19937 random(seed);
    for (uint8_t& code : codes_) code = static_cast<uint8_t>(random());
    std::vector<uint8_t> scales(static_cast<size_t>(c.n) * 4);
    for (int64_t i = 0; i < c.n; ++i) {
      scales_.push_back(0.5F + static_cast<float>(random() % 1000) / 500.0F);
      std::memcpy(scales.data() + i * 4, &scales_.back(), 4);
    }
    codes_device_.write(codes_, static_cast<size_t>(c.offset));
    scales_device_.write(scales, 0);
    bias_device_.write(bias_.bytes, 0);
    refill(seed + 1);
  }

  void refill(uint32_t seed) {
    want_.clear();
    x_ = random_buffer(case_.dtype, case_.m * case_.k, seed);
    for (int64_t i = 0; i < case_.m * case_.k; ++i) x_.set(i, std::clamp(x_.get(i), -5.0F, 5.0F));
    const int64_t step = case_.outliers > 0 ? std::max<int64_t>(case_.k / case_.outliers, 1) : 1;
    for (int64_t j = 0; j < case_.outliers && case_.m > 0; ++j) {
      x_.set((j * 7 + 1) % case_.m * case_.k + j * step, j % 2 == 0 ? 30.0F : -6.0F);
    }
    x_device_.write(x_.bytes, x_lead_);
  }
  void set_x(int64_t i, float value) {
    want_.clear();
    x_.set(i, value);
    x_device_.write(x_.bytes, x_lead_);
  }
  // Outliers in `columns` columns, of which the first row has all: they are the same in every number of rows.
  void set_outliers(int64_t columns) {
    want_.clear();
    const int64_t step = case_.k / columns;
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t m = 0; m < case_.m; m += 1 + j % 9) {
        x_.set(m * case_.k + j * step, m % 2 == 0 ? static_cast<float>(7 + j % 50) : -31.0F);
      }
    }
    x_device_.write(x_.bytes, x_lead_);
  }

  LinearInt8Args args() {
    const LinearInt8Args args{.x = x_device_.data() + x_lead_,
                              .dtype = case_.dtype,
                              .m = case_.m,
                              .n = case_.n,
                              .k = case_.k,
                              .codes = reinterpret_cast<const int8_t*>(codes_device_.data() + case_.offset),
                              .scales = reinterpret_cast<const float*>(scales_device_.data()),
                              .bias = case_.bias ? bias_device_.data() : nullptr,
                              .threshold = threshold_,
                              .out = out_device_.data() + lead_,
                              .workspace = nullptr,
                              .device = {DeviceType::Cuda, 0}};
    return args;
  }
  int64_t workspace_bytes() const {
    return cuda::linear_int8_workspace(case_.m, case_.n, case_.k, case_.dtype, threshold_, {DeviceType::Cuda, 0});
  }
  void run(const LinearInt8Plan& plan) {
    DeviceBytes workspace(static_cast<size_t>(workspace_bytes()), 0xcd);
    LinearInt8Args a = args();
    a.workspace = workspace.data();
    // Twice in a row, in the same workspace.
    for (int i = 0; i < 2; ++i) cuda::run(a, plan, Stream{});
    check(cudaDeviceSynchronize());
  }
  LinearInt8Problem problem() { return cuda::problem_of(args()); }
  std::vector<LinearInt8Plan> plans() { return linear_int8_plans(problem()); }
  void poison() { check(cudaMemset(out_device_.data(), 0xff, out_device_.size())); }
  std::vector<uint8_t> result_bytes() const { return out_device_.read(); }

  // How the result differs from the definition; empty if it does not.
  std::string mismatch() {
    if (want_.empty()) define();
    const Case& c = case_;
    Buffer out(c.dtype, c.m * c.n);
    const std::vector<uint8_t> bytes = out_device_.read();
    std::copy(bytes.begin() + static_cast<ptrdiff_t>(lead_), bytes.end(), out.bytes.begin());
    for (size_t i = 0; i < lead_; ++i) {
      if (bytes[i] != 0xff) return "memory before the result was written";
    }
    for (int64_t i = 0; i < c.m * c.n; ++i) {
      const float got = out.get(i);
      const Want& want = want_[i];
      if (std::isnan(want.value) ? std::isnan(got) : std::fabs(got - want.value) <= want.bound) continue;
      return "got " + std::to_string(got) + ", want " + std::to_string(want.value) + " within " +
             std::to_string(want.bound) + " at row " + std::to_string(i / c.n) + ", column " + std::to_string(i % c.n);
    }
    return "";
  }

 private:
  struct Want {
    double value;
    double bound;  // 0 where no column is an outlier: bits are prescribed
  };

  int weight(int64_t n, int64_t k) const { return static_cast<int8_t>(codes_[n * case_.k + k]); }

  void define() {
    const Case& c = case_;
    std::vector<int8_t> codes(static_cast<size_t>(c.m * c.k));
    std::vector<float> scales(static_cast<size_t>(c.m));
    std::vector<int32_t> columns(static_cast<size_t>(c.k));
    int32_t count = 0;
    std::vector<uint8_t> workspace(static_cast<size_t>(quantize_int8_rowwise_workspace(c.m, c.k, threshold_, {})) + 1);
    std::optional<OutlierColumns> outliers;
    if (threshold_ > 0) {
      outliers = OutlierColumns{TensorView::contiguous(columns.data(), DType::Int32, {c.k}),
                                TensorView::contiguous(&count, DType::Int32, {1})};
    }
    quantize_int8_rowwise(TensorView::contiguous(x_.bytes.data(), c.dtype, {c.m, c.k}), threshold_,
                          TensorView::contiguous(codes.data(), DType::Int8, {c.m, c.k}),
                          TensorView::contiguous(scales.data(), DType::Float32, {c.m}), outliers,
                          TensorView::contiguous(workspace.data(), DType::UInt8, {std::ssize(workspace)}));
    const double ulp = c.dtype == DType::BFloat16 ? 0x1p-8 : c.dtype == DType::Float16 ? 0x1p-11 : 0x1p-24;
    for (int64_t m = 0; m < c.m; ++m) {
      for (int64_t n = 0; n < c.n; ++n) {
        int64_t dot = 0;
        for (int64_t k = 0; k < c.k; ++k) dot += int{codes[m * c.k + k]} * weight(n, k);
        double outlier = 0;
        double magnitude = 0;
        for (int32_t j = 0; j < count; ++j) {
          const double product = double{x_.get(m * c.k + columns[j])} * weight(n, columns[j]);
          outlier += product;
          magnitude += std::fabs(product);
        }
        const float a = scales[m] / 127.0F;
        const float b = scales_[n] / 127.0F;
        const float bias = c.bias ? bias_.get(n) : 0.0F;
        if (count == 0) {
          want_.push_back({rounded(std::fma(b, a * static_cast<float>(dot), bias), c.dtype), 0.0});
          continue;
        }
        const double want = double{b} * (double{a} * static_cast<double>(dot) + outlier) + bias;
        // Sums of float32, in any order: half a unit for each, of no more than the sum of magnitudes.
        const double sums = (count / 2 + 4) * 0x1p-24 * b * (a * std::fabs(static_cast<double>(dot)) + magnitude);
        want_.push_back({want, ulp * std::fabs(want) + sums + 0x1p-23 * std::fabs(bias)});
      }
    }
  }

  Case case_;
  float threshold_;
  size_t lead_;
  size_t x_lead_;
  Buffer x_;
  Buffer bias_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  std::vector<Want> want_;
  DeviceBytes x_device_, codes_device_, scales_device_, bias_device_, out_device_;
};

std::vector<Case> cases() {
  std::vector<Case> cases;
  constexpr int64_t kShapes[][3] = {{1, 1, 1},      {5, 7, 3},      {64, 16, 1},   {129, 48, 17},   {200, 272, 33},
                                    {131, 320, 65}, {256, 1040, 1}, {72, 2064, 9}, {260, 400, 140}, {136, 4096, 300},
                                    {40, 100, 70},  {3, 512, 16},   {128, 0, 5}};
  int turn = 0;
  for (const auto& s : kShapes) {
    for (const DType dtype : kFloats) {
      for (const int64_t outliers : {int64_t{0}, std::min<int64_t>(5, s[1]), std::min<int64_t>(100, s[1])}) {
        cases.push_back({.n = s[0],
                         .k = s[1],
                         .m = s[2],
                         .dtype = dtype,
                         .bias = turn % 3 != 0,
                         .outliers = outliers,
                         .offset = turn % 11 == 10 ? 1 : 0});
        ++turn;
      }
    }
  }
  cases.push_back({.n = 130, .k = 64, .m = 20, .bias = true, .outliers = 64});  // every column
  for (const int64_t outliers : {1, 15, 16, 17, 63, 65, 129}) {
    for (const DType dtype : kFloats)
      cases.push_back({.n = 140, .k = 1040, .m = 35, .dtype = dtype, .outliers = outliers});
  }
  // More outliers, and a deeper product, than tiles of few rows take at once.
  constexpr int64_t kMany[][4] = {{72, 2064, 9, 300}, {70, 1040, 20, 260}, {66, 16400, 5, 150},
                                  {65, 32768, 3, 40}, {72, 2064, 9, 1500}, {70, 2064, 70, 1500}};
  for (const auto& s : kMany) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      cases.push_back({.n = s[0], .k = s[1], .m = s[2], .dtype = dtype, .outliers = s[3]});
    }
  }
  cases.push_back({.n = 70, .k = 16400, .m = 70, .outliers = 150});
  cases.push_back({.n = 130, .k = 528, .m = 400, .dtype = DType::Float16, .bias = true, .outliers = 5});
  cases.push_back({.n = 140, .k = 2064, .m = 35, .outliers = 70, .x_offset = 2});
  // Every size odd, rows at any byte, none to all columns outliers.
  for (const int64_t outliers : {0, 1, 63, 65, 333}) {
    for (const DType dtype : kFloats) {
      for (const int64_t offset : {0, 1}) {
        cases.push_back(
            {.n = 261, .k = 333, .m = 67, .dtype = dtype, .bias = true, .outliers = outliers, .offset = offset});
      }
    }
  }
  for (const int64_t offset : {2, 3, 4})
    cases.push_back({.n = 77, .k = 1104, .m = 130, .outliers = 3, .offset = offset});
  for (const DType dtype : kFloats) {
    cases.push_back({.n = 140, .k = 512, .m = 35, .dtype = dtype, .threshold = true});
    cases.push_back({.n = 140, .k = 512, .m = 35, .dtype = dtype, .outliers = 5, .x_offset = 1});
  }
  return cases;
}

TEST(LinearInt8Cuda, EveryPlanOfEveryCase) {
  QBITS_NEEDS_GPU();
  uint32_t seed = 1;
  for (const Case& c : cases()) {
    Product product(c, seed++);
    for (const LinearInt8Plan& plan : product.plans()) {
      product.poison();
      ASSERT_NO_THROW(product.run(plan)) << to_string(c) << "; " << to_string(plan);
      EXPECT_EQ(product.mismatch(), "") << to_string(c) << "; " << to_string(plan);
      const std::vector<uint8_t> first = product.result_bytes();
      product.poison();
      product.run(plan);
      EXPECT_EQ(product.result_bytes(), first) << "bits differ from run to run: " << to_string(c);
    }
  }
}

// Whether a plan adds outliers to a sum in the order that all of a device's do: the others are dp4a's kernel and those
// of sm_75 on later devices, which round more often where x has 16 bits.
bool in_order(const LinearInt8Plan& plan, const LinearInt8Problem& p) {
  const MmaIsa isa = p.compute_capability < 80 ? MmaIsa::Sm75 : MmaIsa::Sm80;
  return p.dtype == DType::Float32 || plan.kernel == LinearInt8Kernel::Wgmma ||
         (plan.kernel == LinearInt8Kernel::Mma && plan.mma.isa == isa);
}

// The bits of a row depend neither on the number of rows nor on the plan.
TEST(LinearInt8Cuda, RowsAreTheSameInEveryNumberOfRows) {
  QBITS_NEEDS_GPU();
  std::vector<Case> cases;
  for (const DType dtype : {DType::BFloat16, DType::Float16}) {
    for (const int64_t outliers : {1, 5, 16, 17, 40, 70, 200}) {
      cases.push_back({.n = 136, .k = 1040, .m = 0, .dtype = dtype, .bias = true, .outliers = outliers});
    }
    cases.push_back({.n = 72, .k = 2064, .m = 0, .dtype = dtype, .outliers = 1500});
  }
  for (const int64_t outliers : {1, 40, 200}) {
    cases.push_back({.n = 136, .k = 1040, .m = 0, .dtype = DType::Float32, .bias = true, .outliers = outliers});
  }
  for (const Case& of_all : cases) {
    std::vector<uint8_t> want;
    for (const int64_t m : {300, 200, 128, 65, 64, 33, 17, 16, 5, 1}) {
      Case c = of_all;
      c.m = m;
      c.outliers = 0;
      c.threshold = true;
      Product product(c);
      product.set_outliers(of_all.outliers);
      const LinearInt8Plan used = linear_int8_plan(product.problem());
      EXPECT_TRUE(in_order(used, product.problem())) << to_string(c) << "; " << to_string(used);
      for (const LinearInt8Plan& plan : product.plans()) {
        if (!in_order(plan, product.problem())) continue;
        product.poison();
        product.run(plan);
        const std::vector<uint8_t> rows = product.result_bytes();
        if (want.empty()) {
          want = rows;
          EXPECT_EQ(product.mismatch(), "") << to_string(c) << "; " << to_string(plan);
        }
        const auto differs = std::mismatch(rows.begin(), rows.end(), want.begin()).first;
        EXPECT_EQ(differs, rows.end()) << "row " << (differs - rows.begin()) / (c.n * itemsize(c.dtype)) << " of "
                                       << to_string(c) << ", " << of_all.outliers << " in use; " << to_string(plan);
      }
    }
  }
}

// Several tiles of each thread block, whose rings of shared memory go round many times or not once.
TEST(LinearInt8Cuda, ManyTiles) {
  QBITS_NEEDS_GPU();
  std::vector<Case> cases;
  for (const int64_t outliers : {0, 41}) cases.push_back({.n = 18000, .k = 2048, .m = 3, .outliers = outliers});
  for (const int64_t outliers : {0, 1, 80}) {
    for (const DType dtype : kFloats) {
      cases.push_back({.n = 52000, .k = 160, .m = 33, .dtype = dtype, .outliers = outliers, .threshold = true});
    }
    cases.push_back({.n = 52000, .k = 128, .m = 100, .outliers = outliers, .threshold = true});
  }
  for (const Case& c : cases) {
    Product product(c);
    for (const LinearInt8Plan& plan : product.plans()) {
      product.poison();
      product.run(plan);
      EXPECT_EQ(product.mismatch(), "") << to_string(c) << "; " << to_string(plan);
    }
  }
}

// Sums that do not fit 32 bits.
TEST(LinearInt8Cuda, DeepSums) {
  QBITS_NEEDS_GPU();
  Product product({.n = 3, .k = 140000, .m = 2, .dtype = DType::Float32});
  for (const LinearInt8Plan& plan : product.plans()) {
    product.poison();
    product.run(plan);
    EXPECT_EQ(product.mismatch(), "") << to_string(plan);
  }
}

TEST(LinearInt8Cuda, NanReachesItsRowAlone) {
  QBITS_NEEDS_GPU();
  for (const int64_t m : {40, 140}) {
    for (const int64_t outliers : {0, 20}) {
      Product product({.n = 140, .k = 256, .m = m, .outliers = outliers});
      product.set_x(17 * 256 + 70, NAN);
      for (const LinearInt8Plan& plan : product.plans()) {
        product.poison();
        product.run(plan);
        EXPECT_EQ(product.mismatch(), "") << "M " << m << "; " << to_string(plan);
      }
    }
  }
}

TEST(LinearInt8Cuda, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (const int64_t outliers : {0, 9}) {
    Product product({.n = 272, .k = 1024, .m = 24, .bias = true, .outliers = outliers});
    for (const LinearInt8Plan& plan : product.plans()) {
      DeviceBytes workspace(static_cast<size_t>(product.workspace_bytes()), 0xcd);
      LinearInt8Args args = product.args();
      args.workspace = workspace.data();
      cudaStream_t stream = nullptr;
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
      cuda::run(args, plan, Stream{stream});
      check(cudaStreamEndCapture(stream, &graph));
      check(cudaGraphInstantiate(&executable, graph, 0));
      for (uint32_t round = 0; round < 3; ++round) {
        product.refill(round + 50);
        product.poison();
        check(cudaDeviceSynchronize());
        check(cudaGraphLaunch(executable, stream));
        check(cudaStreamSynchronize(stream));
        EXPECT_EQ(product.mismatch(), "") << "replay " << round << "; " << to_string(plan);
      }
      check(cudaGraphExecDestroy(executable));
      check(cudaGraphDestroy(graph));
      check(cudaStreamDestroy(stream));
    }
  }
}

}  // namespace
}  // namespace qbits::test
