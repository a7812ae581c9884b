#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "qbits/linear.h"
#include "qbits/quantize.h"
#include "qbits/runtime.h"

// Median times of the CPU ops, one JSON object per line, with the share of the memory bandwidth measured here that
// the bytes an op must move amount to, and the rate of multiplications and additions of a product.
//   qbits_cpu_bench [part of a name]

namespace {

using qbits::DType;
using qbits::TensorView;
using Bytes = std::vector<uint8_t>;

// Median of at least 5 runs and half a second, after one that warms up.
template <class F>
double median_seconds(F f) {
  f();
  std::vector<double> times;
  for (double total = 0; times.size() < 5 || (total < 0.5 && times.size() < 400); total += times.back()) {
    const auto start = std::chrono::steady_clock::now();
    f();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + std::ssize(times) / 2, times.end());
  return times[times.size() / 2];
}

// Bytes per second that as many threads as qbits uses read together from memory.
double measure_bandwidth() {
  const int threads = qbits::num_threads();
  const int64_t each = (int64_t{32} << 20) / threads;
  std::vector<uint64_t> data(static_cast<size_t>(each * threads), 3);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  const double time = median_seconds([&] {
    std::vector<std::thread> readers;
    for (int t = 0; t < threads; ++t) {
      readers.emplace_back([&, t] {
        uint64_t sum = 0;
        for (int64_t i = t * each; i < (t + 1) * each; ++i) sum += data[i];
        sums[t] = sum;
      });
    }
    for (std::thread& reader : readers) reader.join();
  });
  return static_cast<double>(data.size() * sizeof(uint64_t)) / time;
}

Bytes random_bytes(int64_t n) {
  std::mt19937_64 engine(1);
  std::vector<uint64_t> words(static_cast<size_t>(n / 8 + 1));
  for (uint64_t& word : words) word = engine();
  Bytes bytes(static_cast<size_t>(n));
  std::memcpy(bytes.data(), words.data(), bytes.size());
  return bytes;
}

// bfloat16 of random sign, exponent -1 or 0 and mantissa.
Bytes random_bfloat16(int64_t n) {
  Bytes bytes = random_bytes(2 * n);
  for (int64_t i = 0; i < n; ++i) bytes[2 * i + 1] = static_cast<uint8_t>((bytes[2 * i + 1] & 0x80) | 0x3f);
  return bytes;
}

TensorView view(Bytes& bytes, DType dtype, std::initializer_list<int64_t> shape) {
  return TensorView::contiguous(bytes.data(), dtype, shape);
}

class Bench {
 public:
  explicit Bench(std::string filter) : filter_(std::move(filter)), bandwidth_(measure_bandwidth()) {
    std::printf("{\"isa\": \"%s\", \"threads\": %d, \"read_gb_per_s\": %.1f}\n", qbits::isa().c_str(),
                qbits::num_threads(), bandwidth_ * 1e-9);
  }

  // `bytes` is what the op must read and write at least, `operations` its multiplications and additions.
  template <class F>
  void run(const std::string& name, int64_t bytes, double operations, F f) {
    if (name.find(filter_) == std::string::npos) return;
    const double time = median_seconds(f);
    const double floor = static_cast<double>(bytes) / bandwidth_;
    std::printf("{\"name\": \"%s\", \"ms\": %.3f, \"floor_ms\": %.3f, \"bandwidth_share\": %.3f, \"gflops\": %.1f}\n",
                name.c_str(), time * 1e3, floor * 1e3, floor / time, operations / time * 1e-9);
    std::fflush(stdout);
  }

 private:
  std::string filter_;
  double bandwidth_;
};

void bench_shape(Bench& bench, int64_t n, int64_t k) {
  constexpr int64_t kBlock = 64;
  const qbits::Format& format = qbits::format("nf4");
  const std::string shape = std::to_string(n) + "x" + std::to_string(k);
  Bytes dense = random_bfloat16(n * k);
  Bytes codes(static_cast<size_t>(n * k / 2));
  Bytes absmax(static_cast<size_t>(n * k / kBlock * 4));
  const TensorView dense_view = view(dense, DType::BFloat16, {n, k});
  const TensorView codes_view = view(codes, DType::UInt8, {n * k / 2});
  const TensorView absmax_view = view(absmax, DType::Float32, {n * k / kBlock});
  const int64_t packed = std::ssize(codes) + std::ssize(absmax);
  qbits::quantize_4bit(dense_view, format, kBlock, codes_view, absmax_view);

  bench.run("quantize_4bit " + shape, packed + std::ssize(dense), 0,
            [&] { qbits::quantize_4bit(dense_view, format, kBlock, codes_view, absmax_view); });
  bench.run("dequantize_4bit " + shape, packed + std::ssize(dense), 0,
            [&] { qbits::dequantize_4bit(codes_view, {.values = absmax_view}, format, kBlock, dense_view); });

  const qbits::Weight4bit weight{.format = &format,
                                 .rows = n,
                                 .cols = k,
                                 .block_size = kBlock,
                                 .codes = codes_view,
                                 .absmax = {.values = absmax_view}};
  for (int64_t m : {1, 2, 4, 8, 16, 64, 512}) {
    Bytes x = random_bfloat16(m * k);
    Bytes out(static_cast<size_t>(2 * m * n));
    Bytes workspace(static_cast<size_t>(qbits::linear_4bit_workspace(weight, m, DType::BFloat16)));
    Bytes grad_workspace(static_cast<size_t>(qbits::linear_4bit_grad_x_workspace(weight, m, DType::BFloat16)));
    const TensorView x_view = view(x, DType::BFloat16, {m, k});
    const TensorView out_view = view(out, DType::BFloat16, {m, n});
    const TensorView workspace_view = view(workspace, DType::UInt8, {std::ssize(workspace)});
    const TensorView grad_workspace_view = view(grad_workspace, DType::UInt8, {std::ssize(grad_workspace)});
    const int64_t bytes = packed + std::ssize(x) + std::ssize(out);
    const double operations = 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
    const std::string suffix = " M=" + std::to_string(m) + " " + shape;
    bench.run("linear_4bit" + suffix, bytes, operations,
              [&] { qbits::linear_4bit(x_view, weight, {}, out_view, workspace_view); });
    out = random_bfloat16(m * n);
    bench.run("linear_4bit_grad_x" + suffix, bytes, operations,
              [&] { qbits::linear_4bit_grad_x(out_view, weight, x_view, grad_workspace_view); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  Bench bench(argc > 1 ? argv[1] : "");
  bench_shape(bench, 4096, 4096);
  bench_shape(bench, 14336, 4096);
}
