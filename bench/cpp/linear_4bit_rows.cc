#include "cuda_bench.h"
#include "qbits/linear.h"

namespace qbits::bench {
namespace {

struct Shape {
  int64_t n;
  int64_t k;
};

constexpr Shape kShapes[] = {{28672, 8192}, {8192, 8192}, {4096, 14336}, {14336, 4096}, {4096, 4096}};

std::string describe(const std::string& weight, Shape s, int64_t m) {
  return weight + " bfloat16 " + std::to_string(s.n) + "x" + std::to_string(s.k) + " M " + std::to_string(m);
}

// A weight in bfloat16's company; what it is made of lives as long as the copies of the struct.
struct BenchWeight {
  Memory codes;
  Memory scales;  // or zeros' companion in affine formats
  Memory zeros;
  Memory nested_absmax;
  Memory nested_code;
  Memory offset;
  Weight4bit view;
};

BenchWeight make_weight(const Format& f, Shape s, int64_t block_size, bool nested) {
  const bool affine = f.coding == Coding::Affine;
  const int64_t blocks = num_scales(f, s.n, s.k, block_size);
  BenchWeight w{.codes = Memory(DType::UInt8, {codes_size(f, s.n * s.k)}),
                .scales = affine ? Memory(DType::Float32, {s.n, blocks / s.n})
                                 : Memory(nested ? DType::UInt8 : DType::Float32, {blocks}),
                .zeros = Memory(DType::Float32, {s.n, affine ? blocks / s.n : 1}),
                .nested_absmax = Memory(DType::Float32, {(blocks + kNestedBlockSize - 1) / kNestedBlockSize}),
                .nested_code = Memory(DType::Float32, {256}),
                .offset = Memory(DType::Float32, {1}),
                .view = {.format = &f, .rows = s.n, .cols = s.k, .block_size = block_size}};
  w.view.codes = w.codes.view();
  if (affine) {
    w.view.scales = w.scales.view();
    w.view.zeros = w.zeros.view();
  } else {
    w.view.absmax.values = w.scales.view();
    if (nested) {
      w.view.absmax.nested_absmax = w.nested_absmax.view();
      w.view.absmax.nested_code = w.nested_code.view();
      w.view.absmax.offset = w.offset.view();
    }
  }
  return w;
}

int64_t weight_bytes(const Format& f, Shape s, int64_t block_size, bool nested) {
  const int64_t blocks = num_scales(f, s.n, s.k, block_size);
  return s.n * s.k / 2 + blocks * (nested ? 1 : f.coding == Coding::Affine ? 8 : 4);
}

void rows(Runner& runner, const Format& f, bool nested, Shape s, std::initializer_list<int64_t> ms) {
  constexpr int64_t kBlock = 64;
  const std::string weight = std::string(f.name) + " b64" + (nested ? " nested" : "");
  for (const int64_t m : ms) {
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(s.n) * static_cast<double>(s.k);
    runner.run({.op = "linear_4bit",
                .what = describe(weight, s, m),
                .bytes = weight_bytes(f, s, kBlock, nested) + m * (s.n + s.k) * 2,
                .flops = flops,
                .operands = [&, m]() -> Call {
                  const BenchWeight w = make_weight(f, s, kBlock, nested);
                  const Memory x(DType::BFloat16, {m, s.k}), out(DType::BFloat16, {m, s.n});
                  const Memory workspace(DType::UInt8, {linear_4bit_workspace(w.view, m, DType::BFloat16)});
                  return [=](Stream stream) {
                    linear_4bit(x.view(), w.view, std::nullopt, out.view(), workspace.view(), stream);
                  };
                }});
  }
}

void rows_grad_x(Runner& runner, const Format& f, Shape s, std::initializer_list<int64_t> ms) {
  constexpr int64_t kBlock = 64;
  for (const int64_t m : ms) {
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(s.n) * static_cast<double>(s.k);
    runner.run({.op = "linear_4bit_grad_x",
                .what = describe(std::string(f.name) + " b64", s, m),
                .bytes = weight_bytes(f, s, kBlock, false) + m * (s.n + s.k) * 2,
                .flops = flops,
                .operands = [&, m]() -> Call {
                  const BenchWeight w = make_weight(f, s, kBlock, false);
                  const Memory grad(DType::BFloat16, {m, s.n}), out(DType::BFloat16, {m, s.k});
                  const Memory workspace(DType::UInt8, {linear_4bit_grad_x_workspace(w.view, m, DType::BFloat16)});
                  return [=](Stream stream) {
                    linear_4bit_grad_x(grad.view(), w.view, out.view(), workspace.view(), stream);
                  };
                }});
  }
}

}  // namespace

void linear_4bit_rows(Runner& runner) {
  const Format& nf4 = format("nf4");
  for (const Shape& s : kShapes) rows(runner, nf4, false, s, {1, 4, 16, 32, 64, 128, 256, 1024, 4096});
  for (const Shape& s : {kShapes[1], kShapes[4]}) {
    rows(runner, nf4, true, s, {1, 16, 1024});
    rows(runner, format("fp4"), false, s, {1, 16, 1024});
    rows(runner, format("int4"), false, s, {1, 16, 1024});
    rows_grad_x(runner, nf4, s, {512, 2048, 8192});
  }
}

}  // namespace qbits::bench
