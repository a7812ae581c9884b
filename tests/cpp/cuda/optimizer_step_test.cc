#include "optimizer_cases.h"

#include "device.h"
#include "qbits/optim.h"

namespace qbits::test {
namespace {

// Scratch memory on the device of the tensors, for one call.
class Workspace {
 public:
  Workspace(int64_t bytes, Device device) : device_(device) {
    if (device.type == DeviceType::Cuda) {
      check(cudaMalloc(&data_, static_cast<size_t>(bytes)));
    } else {
      data_ = ::operator new(static_cast<size_t>(bytes));
    }
    view = TensorView::contiguous(data_, DType::UInt8, {bytes}, device);
  }
  ~Workspace() {
    if (device_.type == DeviceType::Cuda) {
      static_cast<void>(cudaFree(data_));  // waits for the kernels that use it
    } else {
      ::operator delete(data_);
    }
  }
  Workspace(const Workspace&) = delete;

  TensorView view;

 private:
  Device device_;
  void* data_ = nullptr;
};

struct Choice {
  std::string_view algorithm;
  bool is_8bit;
  Decay decay = Decay::Before;
  bool stochastic_rounding = false;
  LayerScaling scaling = LayerScaling::None;
  bool by_row = false;
  bool compensated = false;
};

// One tensor of each size, of all dtypes in turn, with some numbers that are not finite.
void check_same_bits(const Choice& choice, Run run, int steps = 2) {
  const OptimizerAlgorithm& algorithm = optimizer_algorithm(choice.algorithm);
  std::vector<HostTensor> in = {HostTensor(as_bytes(any_row()))};
  std::vector<HostTensor> out = {HostTensor(filled(DType::Int64, 1, 0))};
  uint32_t seed = 0;
  for (int64_t n : kSizes) {
    in.push_back(test_data(kFloats[seed % 3], {n}, 50 + seed, n % 2 == 0));
    const DType dtype = kFloats[seed / 3 % 3];
    out.push_back(HostTensor(random_buffer(dtype, n, seed)));
    const DType compensated = choice.compensated ? dtype : DType::Float32;
    StateBuffers state(algorithm, n, choice.is_8bit, row_of(n, choice.by_row), compensated);
    for (Buffer* buffer : state.all()) out.push_back(HostTensor(std::move(*buffer)));
    ++seed;
  }
  const Op op = [&](const Tensors& i, const Tensors& o, Stream stream) {
    OptimizerStep step{.algorithm = &algorithm,
                       .decay = choice.decay,
                       .scaling = choice.scaling,
                       .stochastic_rounding = choice.stochastic_rounding,
                       .seed = 7,
                       .groups = i[0],
                       .skipped = o[0]};
    std::vector<OptimizerTensor> tensors;
    for (size_t k = 0; k + 1 < i.size(); ++k) {
      const auto* t = &o[1 + 7 * k];
      tensors.push_back(optimizer_tensor({t[0], i[k + 1], t[1], t[2], t[3], t[4], t[5], t[6]}));
      tensors.back().id = static_cast<uint32_t>(k);
      tensors.back().row = row_of(tensors.back().param.numel(), choice.by_row);
      tensors.back().offset = choice.by_row ? (int64_t{1} << 32) - 500 : 0;
    }
    const Workspace workspace(optimizer_step_workspace(step, tensors), i[0].device);
    for (int s = 0; s < steps; ++s) optimizer_step(step, tensors, workspace.view, stream);
  };
  expect_same_bits(std::string(choice.algorithm) + (choice.is_8bit ? " 8 bit" : " 32 bit"), in, out, op, run);
}

TEST(CudaOptimizerStep, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (const OptimizerAlgorithm& algorithm : optimizer_algorithms()) {
    for (bool is_8bit : {false, true}) {
      if (is_8bit && algorithm.first == 0) continue;
      for (Decay decay : {Decay::Coupled, Decay::Before, Decay::After}) {
        check_same_bits({.algorithm = algorithm.name, .is_8bit = is_8bit, .decay = decay}, {});
      }
      for (bool by_row : {false, true}) {
        check_same_bits(
            {.algorithm = algorithm.name, .is_8bit = is_8bit, .stochastic_rounding = true, .by_row = by_row}, {});
        check_same_bits({.algorithm = algorithm.name, .is_8bit = is_8bit, .by_row = by_row, .compensated = true}, {});
      }
    }
  }
}

// Pointers that allow no vectors. The group table and the counter must stay aligned: 8 elements of a byte.
TEST(CudaOptimizerStep, UnalignedTensors) {
  QBITS_NEEDS_GPU();
  for (bool is_8bit : {false, true}) {
    check_same_bits({.algorithm = "adam", .is_8bit = is_8bit, .compensated = true}, {.offset = 8});
    check_same_bits({.algorithm = "ademamix", .is_8bit = is_8bit}, {.offset = 8});
  }
}

TEST(CudaOptimizerStep, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (bool is_8bit : {false, true}) {
    check_same_bits({.algorithm = "adam", .is_8bit = is_8bit}, {.launch = Launch::SideStream});
  }
}

TEST(CudaOptimizerStep, GroupsAreWritten) {
  QBITS_NEEDS_GPU();
  std::vector<double> values;
  for (int row = 0; row < 40; ++row) {  // more than one launch takes
    for (double value : any_row()) values.push_back(value + row);
  }
  std::vector<HostTensor> in;
  std::vector<HostTensor> out = {HostTensor(DType::UInt8, {8 * std::ssize(values)})};
  for (Launch how : {Launch::DefaultStream, Launch::Graph}) {
    expect_same_bits(
        "groups", in, out,
        [&](const Tensors&, const Tensors& o, Stream stream) { write_optimizer_groups(values, o[0], stream); },
        {.launch = how});
  }
}

}  // namespace
}  // namespace qbits::test
