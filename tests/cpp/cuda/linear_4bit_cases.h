#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/linear_4bit.h"
#include "ops/linear_4bit_plan.h"
#include "qbits/format.h"

// Products with 4-bit weights for the CUDA tests: random operands on the host and the device, and the float64
// product of the float32-dequantized weights.

namespace qbits::test {

struct LinearCase {
  std::string format;
  int64_t block_size;
  int64_t n;
  int64_t k;
  int64_t m;
  DType dtype = DType::BFloat16;
  bool nested = false;
  bool bias = false;
  DType scale_dtype = DType::Float32;
  int offset = 0;  // elements of x and of the result, and bytes of codes, by which pointers miss alignment
  // If not 0, the scale of every fifth block; then x (or grad) is positive, and weights of a codebook format are, so
  // that their product overflows to infinity in whatever order it is summed.
  float odd_scale = 0;
  bool odd_zeros = false;  // of the zeros of affine groups every third is none of a code's
  // x (or grad) is positive, and affine zeros lie in the middle of the codes: what is summed cancels.
  bool one_sign = false;
};

std::string to_string(const LinearCase& c);

// Every shape with every format and dtype; block sizes, nesting, biases and scale dtypes take turns.
std::vector<LinearCase> linear_cases();

// Cases with scales that are infinite, NaN, next to overflow, large and subnormal, of int4 large, and with odd affine
// zeros.
std::vector<LinearCase> odd_scale_cases();

// A weight of n by k and m rows of x (or grad) in every format and dtype of 16 bits, x of both signs and of one.
std::vector<LinearCase> accuracy_cases(int64_t n, int64_t k, int64_t m);

// Device memory, filled with 0xff bytes (NaN) at first.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  uint8_t* data() const { return data_; }
  void write(const void* host, size_t bytes, size_t offset = 0);
  std::vector<uint8_t> read() const;
  void poison();

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Rounds to the dtype and back.
float rounded(float v, DType dtype);

class LinearProblem {
 public:
  LinearProblem(const LinearCase& c, bool grad_x, uint64_t seed) : LinearProblem(c, grad_x, seed, Empty{}) {
    refill(seed + 1);
  }

  // The call on the device, without workspace.
  Linear4bitArgs forward() const;
  Linear4bitGradXArgs grad_x() const;

  int64_t rows() const { return case_.m; }
  int64_t cols() const { return grad_x_ ? case_.k : case_.n; }
  int64_t depth() const { return grad_x_ ? case_.n : case_.k; }

  // What the device wrote.
  std::vector<float> result() const;
  std::vector<uint8_t> result_bytes() const { return out_.read(); }
  void poison() { out_.poison(); }
  // Replaces x (or grad) by other random values, on both sides.
  void refill(uint64_t seed);
  // Makes a scale NaN, on the device alone.
  void spoil_scale(int64_t block);

  // "" if the result is as close to the float64 product as rounding the weights to the dtype once, float32
  // sums and one rounding of the result can explain, and infinite or NaN where that product rounds to it; else the
  // first bad element.
  std::string mismatch() const;
  // How far element i of the product may be from want_[i].
  double bound(int64_t i) const;
  // Root mean square error of the result, and of a product of weights rounded to the dtype, summed exactly and
  // rounded once: better than any matrix library that is fed those weights.
  double error() const;
  double reference_error() const;

 protected:
  struct Empty {};
  // Without x (or grad).
  LinearProblem(const LinearCase& c, bool grad_x, uint64_t seed, Empty empty);

  float a(int64_t m, int64_t r) const { return a_[m * depth() + r]; }
  float weight(int64_t r, int64_t c) const { return grad_x_ ? w_[r * case_.k + c] : w_[c * case_.k + r]; }
  void multiply();
  // Random values of x (or grad) on the host, and any on the device.
  void draw_a(uint64_t seed);
  void write_a(const std::vector<float>& values);
  Weight4bitArgs weight_args() const;

  LinearCase case_;
  bool grad_x_;
  std::vector<float> a_;
  std::vector<float> w_;  // dequantized
  std::vector<float> bias_;
  std::vector<double> want_;       // the product
  std::vector<double> magnitude_;  // sum of |a w|
  std::vector<double> square_;     // sum of (a w)^2
  std::vector<double> rounded_;    // the product with rounded weights
  DeviceBuffer a_device_, codes_, scales_, zeros_, nested_absmax_, nested_code_, offset_, bias_device_, out_;
};

// Captures the call of each plan in a graph and replays them with inputs that came later. `run` gets the plan and its
// workspace.
void expect_graph_replays(LinearProblem& problem, const std::vector<Linear4bitPlan>& plans,
                          const std::function<void(const Linear4bitPlan&, void*, Stream)>& run);

}  // namespace qbits::test
