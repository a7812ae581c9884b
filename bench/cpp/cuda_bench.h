#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "qbits/tensor.h"

// Times GPU work alone: calls captured in a CUDA graph, operands rotated through three times the L2 cache, random
// data, medians, next to the copy bandwidth of the same run.

namespace qbits::bench {

void check(cudaError_t status);

// Device memory of random normal floats, or random bits for integers. Copies share it.
class Memory {
 public:
  Memory(DType dtype, std::vector<int64_t> shape);
  static Memory floats(const std::vector<float>& values);
  TensorView view() const { return view_; }

 private:
  std::shared_ptr<void> data_;
  TensorView view_;
};

using Call = std::function<void(Stream)>;

struct Case {
  std::string op;
  std::string what;                // format, dtype, shape
  int64_t bytes;                   // codes, scales, inputs and outputs, each moved once
  double flops = 0;                // 0 where memory is the only limit
  double target_share = 0;         // of copy bandwidth; 0: none
  std::function<Call()> operands;  // a call on operands of its own
};

class Runner {
 public:
  // `tflops`: the rate of matrix products behind the rows' limits; 0: an H200's.
  explicit Runner(std::string filter, double tflops = 0);
  void run(const Case& c);
  std::string json() const;

 private:
  double measure(const std::vector<Call>& calls);
  void measure_copy();

  std::string filter_;
  std::vector<std::string> rows_;
  cudaStream_t stream_ = nullptr;
  int64_t l2_bytes_ = 0;
  double tflops_ = 0;
  double copy_bandwidth_ = 0;  // bytes read and written a second
};

// The rows of each family, in <family>_rows.cc.
void linear_4bit_rows(Runner& runner);
void quantize_rows(Runner& runner);

}  // namespace qbits::bench
