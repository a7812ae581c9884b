#include <algorithm>
#include <random>

#include "cuda/igemm_kernels.h"
#include "device.h"

namespace qbits::test {
namespace {

struct Case {
  int64_t batch;
  int64_t m;
  int64_t n;
  int64_t k;
  bool transpose_a = false;
  bool transpose_b = false;
  int64_t offset = 0;  // elements by which pointers miss alignment
};

std::string to_string(const Case& c) {
  return "batch " + std::to_string(c.batch) + ", M " + std::to_string(c.m) + ", N " + std::to_string(c.n) + ", K " +
         std::to_string(c.k) + (c.transpose_a ? ", A transposed" : "") + (c.transpose_b ? ", B transposed" : "") +
         ", offset " + std::to_string(c.offset);
}

HostTensor random_codes(int64_t count, uint32_t seed) {
  HostTensor codes(DType::Int8, {count});
  std::mt19937 random(seed);
  for (uint8_t& code : codes.bytes) code = static_cast<uint8_t>(random());
  return codes;
}

// A batch of products and their definition.
class Products {
 public:
  Products(const Case& c, const HostTensor& a, const HostTensor& b)
      : case_(c),
        out_host_(DType::Int32, {c.batch * c.m * c.n}),
        a_(a, c.offset),
        b_(b, c.offset),
        out_(out_host_, c.offset) {
    // Column j of B times row i of A, with neighbours in k side by side.
    const auto at = [](const HostTensor& t, int64_t i) { return int{static_cast<int8_t>(t.bytes[i])}; };
    std::vector<int> columns(static_cast<size_t>(c.batch * c.n * c.k));
    for (int64_t p = 0; p < c.batch; ++p) {
      for (int64_t j = 0; j < c.n; ++j) {
        for (int64_t k = 0; k < c.k; ++k) {
          columns[(p * c.n + j) * c.k + k] = at(b, c.transpose_b ? (p * c.n + j) * c.k + k : (p * c.k + k) * c.n + j);
        }
      }
    }
    std::vector<int> row(static_cast<size_t>(c.k));
    for (int64_t i = 0; i < c.batch * c.m; ++i) {
      const int64_t p = i / c.m;
      for (int64_t k = 0; k < c.k; ++k) {
        row[k] = at(a, c.transpose_a ? (p * c.k + k) * c.m + i % c.m : i * c.k + k);
      }
      for (int64_t j = 0; j < c.n; ++j) {
        int64_t sum = 0;
        for (int64_t k = 0; k < c.k; ++k) sum += row[k] * columns[(p * c.n + j) * c.k + k];
        want_.push_back(static_cast<uint32_t>(sum));
      }
    }
  }

  IgemmArgs args() const {
    return {.a = a_.view().as<const int8_t>(),
            .b = b_.view().as<const int8_t>(),
            .out = out_.view().as<int32_t>(),
            .batch = case_.batch,
            .m = case_.m,
            .n = case_.n,
            .k = case_.k,
            .transpose_a = case_.transpose_a,
            .transpose_b = case_.transpose_b,
            .workspace = nullptr,
            .device = {DeviceType::Cuda, 0}};
  }

  // Computes, by a plan or by the one in use, twice in the same workspace; how the result differs, empty if it does
  // not.
  std::string mismatch(const Int8MmaPlan* plan) {
    check(cudaMemset(out_.view().data, 0xcd, out_host_.bytes.size()));
    IgemmArgs call = args();
    const DeviceTensor workspace(HostTensor(DType::UInt8, {cuda::igemm_workspace(call)}), 0);
    call.workspace = workspace.view().data;
    for (int i = 0; i < 2; ++i) plan != nullptr ? cuda::run(call, *plan, Stream{}) : cuda::igemm(call, Stream{});
    check(cudaDeviceSynchronize());
    const std::vector<uint8_t> bytes = out_.download();
    const auto* const got = reinterpret_cast<const uint32_t*>(bytes.data());
    for (size_t i = 0; i < want_.size(); ++i) {
      if (got[i] == want_[i]) continue;
      return "got " + std::to_string(got[i]) + ", want " + std::to_string(want_[i]) + " at element " +
             std::to_string(i);
    }
    return "";
  }

 private:
  Case case_;
  HostTensor out_host_;
  DeviceTensor a_, b_, out_;
  std::vector<uint32_t> want_;  // modulo 2^32
};

std::vector<Case> cases() {
  constexpr int64_t kShapes[][4] = {{1, 1, 1, 1},        {3, 5, 7, 9},      {2, 40, 33, 64},  {2, 130, 131, 80},
                                    {1, 17, 300, 200},   {5, 1, 4, 48},     {2, 64, 1, 33},   {1, 260, 12, 530},
                                    {1, 129, 257, 1040}, {4, 16, 128, 128}, {1, 3, 8, 20000}, {2, 8, 400, 0}};
  std::vector<Case> cases;
  int turn = 0;
  for (const auto& s : kShapes) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        for (const int64_t offset : {int64_t{0}, int64_t{1 + turn++ % 3}}) {
          cases.push_back({s[0], s[1], s[2], s[3], transpose_a, transpose_b, offset});
        }
      }
    }
  }
  return cases;
}

void expect_products_of_every_plan(const Case& c, uint32_t seed) {
  Products products(c, random_codes(c.batch * c.m * c.k, seed), random_codes(c.batch * c.n * c.k, seed + 1));
  EXPECT_EQ(products.mismatch(nullptr), "") << to_string(c);
  if (c.k == 0) return;
  for (const Int8MmaPlan& plan : int8_mma_plans(cuda::problem_of(products.args()))) {
    EXPECT_EQ(products.mismatch(&plan), "") << to_string(c) << "; " << to_string(plan);
  }
}

TEST(IgemmMmaCuda, EveryPlanOfEveryCase) {
  QBITS_NEEDS_GPU();
  uint32_t seed = 1;
  for (const Case& c : cases()) {
    expect_products_of_every_plan(c, seed);
    seed += 2;
  }
}

// What racecheck has the time for.
TEST(IgemmMmaCuda, EveryPlanOfASmallCase) {
  QBITS_NEEDS_GPU();
  expect_products_of_every_plan({.batch = 2, .m = 40, .n = 33, .k = 64}, 1);
  expect_products_of_every_plan({.batch = 1, .m = 20, .n = 70, .k = 200, .transpose_a = true, .transpose_b = true}, 3);
}

// Sums past 2^31 and past 2^32 go round.
TEST(IgemmMmaCuda, SumsAreModulo) {
  QBITS_NEEDS_GPU();
  for (const int64_t k : {140'000, 280'016}) {
    const Case c{.batch = 1, .m = 3, .n = 5, .k = k, .transpose_b = true};
    HostTensor a(DType::Int8, {c.m * k});
    HostTensor b(DType::Int8, {c.n * k});
    std::fill(a.bytes.begin(), a.bytes.end(), uint8_t{0x80});
    std::fill(b.bytes.begin(), b.bytes.end(), uint8_t{0x80});
    Products products(c, a, b);
    for (const Int8MmaPlan& plan : int8_mma_plans(cuda::problem_of(products.args()))) {
      EXPECT_EQ(products.mismatch(&plan), "") << to_string(c) << "; " << to_string(plan);
    }
  }
}

}  // namespace
}  // namespace qbits::test
