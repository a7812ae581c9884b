#include "qbits/pager.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "optimizer_cases.h"
#include "pager_cases.h"
#include "refusal.h"

namespace qbits {
namespace {

using test::PagedProblem;
using test::PlainMemory;

constexpr PagerOptions kSmall = {.host_slab_bytes = 300'000, .staging_bytes = 150'000};

// Three steps with one budget after the other write the bits of optimizer_step.
void check_same_bits(const PagedProblem::Choice& choice, std::vector<int64_t> budgets) {
  PagedProblem plain(choice);
  PagedProblem paged(choice);
  PlainMemory memory;
  {
    Pager pager({}, memory.allocator(), kSmall);
    paged.add_to(pager);
    for (int64_t budget : budgets) {
      pager.place(budget);
      pager.prefetch();
      for (int i = 0; i < 3; ++i) {
        plain.step();
        paged.step(pager);
      }
      EXPECT_EQ(paged.snapshot(pager), plain.snapshot()) << choice.algorithm << " budget " << budget;
    }
    pager.page_out();
    EXPECT_EQ(pager.resident_bytes() + pager.staging_bytes(), 0);
    EXPECT_EQ(memory.bytes(PagerMemory::Resident) + memory.bytes(PagerMemory::Staging), 0);
    EXPECT_EQ(memory.bytes(PagerMemory::Host), pager.host_bytes());
    EXPECT_EQ(paged.snapshot(pager), plain.snapshot());
  }
  EXPECT_TRUE(memory.is_empty());
}

TEST(Pager, SameBitsAsOptimizerStep) {
  for (const OptimizerAlgorithm& algorithm : optimizer_algorithms()) {
    if (algorithm.first + algorithm.second == 0) continue;
    for (bool is_8bit : {false, true}) {
      check_same_bits({.algorithm = algorithm.name, .is_8bit = is_8bit}, {0, 500'000, int64_t{1} << 40, 500'000, 0});
    }
  }
}

TEST(Pager, RandomBitsOfPartsAreThoseOfTheWhole) {
  check_same_bits({.algorithm = "adam", .is_8bit = true, .stochastic_rounding = true}, {0, 500'000});
}

TEST(Pager, ScaledLayersAreUpdatedWhole) {
  check_same_bits({.algorithm = "adam", .is_8bit = true, .scaling = LayerScaling::TrustRatio}, {0, 500'000});
  PagedProblem problem({.algorithm = "adam", .scaling = LayerScaling::TrustRatio});
  PlainMemory memory;
  Pager pager({}, memory.allocator(), kSmall);
  problem.divisible = true;
  problem.add_to(pager);
  pager.place(0);
  EXPECT_EQ(test::refusal(ErrorCode::InvalidArgument, [&] { problem.step(pager); }),
            "[pager] scaling: got one of layers for a tensor that is updated in parts, want divisible = false");
}

TEST(Pager, StepsAreSkippedAndTensorsLeftOut) {
  PagedProblem plain({.algorithm = "adam", .is_8bit = true});
  PagedProblem paged({.algorithm = "adam", .is_8bit = true});
  PlainMemory memory;
  Pager pager({}, memory.allocator(), kSmall);
  paged.add_to(pager);
  pager.place(200'000);
  for (int i = 0; i < 6; ++i) {
    for (PagedProblem* problem : {&plain, &paged}) {
      problem->left_out = i;      // other windows each time
      problem->skip(i % 3 == 2);  // found_inf
    }
    if (i % 2 == 0) pager.prefetch();
    plain.step();
    paged.step(pager);
  }
  EXPECT_EQ(paged.snapshot(pager), plain.snapshot());
}

TEST(Pager, WhereThereIsNoDeviceMemoryStateStaysOnTheHost) {
  PagedProblem plain({.algorithm = "lion"});
  PagedProblem paged({.algorithm = "lion"});
  PlainMemory memory;
  Pager pager({}, memory.allocator(), kSmall);
  paged.add_to(pager);
  pager.place(int64_t{1} << 40);
  const int64_t all = pager.resident_bytes();
  pager.page_out();
  memory.most_resident = all / 2;
  pager.place(int64_t{1} << 40);
  EXPECT_LE(pager.resident_bytes(), all / 2);
  EXPECT_GT(pager.resident_bytes(), 0);
  EXPECT_GT(pager.staging_bytes(), 0);
  plain.step();
  paged.step(pager);
  EXPECT_EQ(paged.snapshot(pager), plain.snapshot());
}

TEST(Pager, Refusals) {
  PagedProblem problem({.algorithm = "adam"});
  PlainMemory memory;
  Pager pager({}, memory.allocator(), kSmall);
  problem.add_to(pager);
  EXPECT_NE(test::refusal(ErrorCode::InvalidArgument, [&] { problem.step(pager); }).find("want one tensor with each"),
            std::string::npos);
  pager.place(0);
  const auto before = problem.snapshot(pager);
  problem.break_last_gradient();
  EXPECT_NE(test::refusal(ErrorCode::InvalidArgument, [&] { problem.step(pager); }).find("grad: got"),
            std::string::npos);
  EXPECT_EQ(problem.snapshot(pager), before);
  test::refusal(ErrorCode::InvalidIndex, [&] { static_cast<void>(pager.state(1000)); });
  test::refusal(ErrorCode::InvalidArgument, [&] { pager.add(optimizer_algorithm("adam"), 0, DType::UInt8); });
  test::refusal(ErrorCode::InvalidType, [&] { pager.add(optimizer_algorithm("adam"), 5, DType::Int8); });
  test::refusal(ErrorCode::InvalidArgument,
                [&] { pager.add(optimizer_algorithm("gradient_descent"), 5, DType::UInt8); });
  test::refusal(ErrorCode::InvalidArgument, [&] { Pager({}, {}); });
  test::refusal(ErrorCode::InvalidArgument, [&] { Pager({}, memory.allocator(), {.buffers = 0}); });
}

}  // namespace
}  // namespace qbits
