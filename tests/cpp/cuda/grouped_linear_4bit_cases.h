#pragma once

#include <string>
#include <vector>

#include "cuda/linear_4bit_cases.h"
#include "ops/grouped_linear_4bit.h"

// Products of experts for the CUDA tests: one LinearProblem with the weights of all experts, of whose product each row
// of x has the columns of its expert.

namespace qbits::test {

struct GroupedCase {
  LinearCase linear;  // n: rows of one expert's weight
  std::vector<int32_t> offsets;

  int64_t experts() const { return std::ssize(offsets) - 1; }
};

// A function, for GCC 12 takes the members of a nested initializer for uninitialized.
GroupedCase grouped_case(LinearCase linear, std::vector<int32_t> offsets);

std::string to_string(const GroupedCase& c);

// Every shape and way to spread the rows, with formats, dtypes, block sizes, nesting and biases taking turns.
std::vector<GroupedCase> grouped_cases();

class GroupedProblem : public LinearProblem {
 public:
  GroupedProblem(const GroupedCase& c, bool grad_x, uint64_t seed);

  // The call on the device, without workspace.
  GroupedLinear4bitArgs forward() const;
  GroupedLinear4bitGradXArgs grad_x() const;

  // Other offsets, and other random values of x (or grad), where the device finds them already.
  void refill(const std::vector<int32_t>& offsets, uint64_t seed);
  // Offsets for the device alone, sensible or not.
  void write_offsets(const std::vector<int32_t>& offsets);

  // As LinearProblem::mismatch; besides, rows of no expert and memory past the result must be as poison() left them.
  std::string mismatch() const;
  // What mismatch says of memory past the result alone.
  std::string stray_write() const;

  int64_t n() const { return case_.n / experts_; }
  int64_t out_cols() const { return grad_x_ ? case_.k : n(); }
  // The expert of a row of x, or -1.
  int64_t expert_of(int64_t row) const;

 private:
  int64_t experts_;
  std::vector<int32_t> offsets_;
  DeviceBuffer offsets_device_;
};

}  // namespace qbits::test
