#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#include "float_bits.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"
#include "qbits/runtime.h"

// What holds for any input: random shapes, dtypes and block sizes, with zeros, NaN and infinities strewn in.

namespace qbits {
namespace {

using test::Buffer;

constexpr std::array kFloats = {DType::Float32, DType::BFloat16, DType::Float16};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  template <class List>
  auto of(const List& list) {
    return list[static_cast<size_t>(below(std::ssize(list)))];
  }
  float normal() { return normal_(engine_); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// A tensor between guard bytes, at any address its dtype allows.
class Guarded {
 public:
  Guarded(Random& random, DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view = TensorView::contiguous(nullptr, dtype, shape);
    size_ = static_cast<size_t>(view.numel() * itemsize(dtype));
    start_ = 64 + static_cast<size_t>(random.below(64) * itemsize(dtype));
    bytes_.assign(start_ + size_ + 64, kGuard);
    view.data = bytes_.data() + start_;
    view_ = view;
  }
  Guarded(Guarded&&) = default;

  const TensorView& view() const { return view_; }
  float get(int64_t i) const {
    Buffer one(view_.dtype, 1);
    std::memcpy(one.bytes.data(), bytes_.data() + start_ + i * itemsize(view_.dtype), one.bytes.size());
    return one.get(0);
  }
  void set(int64_t i, float x) {
    Buffer one(view_.dtype, 1);
    one.set(0, test::rounded(x, view_.dtype));
    std::memcpy(bytes_.data() + start_ + i * itemsize(view_.dtype), one.bytes.data(), one.bytes.size());
  }
  // Appends the contents to `all`.
  void collect(std::vector<uint8_t>& all) const {
    const auto* data = bytes_.data();
    for (const uint8_t* p = data; p < data + start_; ++p) ASSERT_EQ(*p, kGuard) << "written before the tensor";
    for (const uint8_t* p = data + start_ + size_; p < data + bytes_.size(); ++p) {
      ASSERT_EQ(*p, kGuard) << "written behind the tensor";
    }
    all.insert(all.end(), data + start_, data + start_ + size_);
  }

 private:
  static constexpr uint8_t kGuard = 0xA5;
  std::vector<uint8_t> bytes_;
  size_t start_, size_;
  TensorView view_;
};

// One in four is large enough to be split among threads.
std::pair<int64_t, int64_t> random_shape(Random& random) {
  if (random.below(4) == 0) return {random.below(300) + 300, random.below(400) + 200};
  return {random.below(9) + 1, random.below(700) + 1};
}

void fill(Random& random, Guarded& x, bool finite) {
  const float scale = std::ldexp(1.0F, static_cast<int>(random.below(20)) - 15);
  const float shift = random.below(3) == 0 ? 3.0F * scale * random.normal() : 0.0F;
  const int64_t n = x.view().numel();
  const int64_t special = finite ? 0 : random.below(4);
  for (int64_t i = 0; i < n; ++i) x.set(i, scale * random.normal() + shift);
  for (int64_t i = 0; i < n; ++i) {
    if (random.below(40) == 0) x.set(i, 0.0F);
  }
  for (int64_t i = 0; i < special; ++i) x.set(random.below(n), random.of(std::array{NAN, INFINITY, -INFINITY, -NAN}));
  if (random.below(4) == 0) {  // a stretch of zeros
    const int64_t begin = random.below(n);
    for (int64_t i = begin; i < std::min(n, begin + 300); ++i) x.set(i, 0.0F);
  }
}

Guarded dynamic_map(Random& random) {
  Guarded code(random, DType::Float32, {256});
  create_dynamic_map(true, 7, 8, std::span(code.view().as<float>(), 256));
  return code;
}

void run_4bit(Random& random, std::vector<uint8_t>& all) {
  const Format& f = format(random.of(std::array{"nf4", "fp4"}));
  const auto [rows, cols] = random_shape(random);
  const int64_t block_size = random.of(f.block_sizes);
  const int64_t blocks = num_scales(f, rows, cols, block_size);
  Guarded x(random, random.of(kFloats), {rows, cols});
  fill(random, x, random.below(2) == 0);
  Guarded codes(random, DType::UInt8, {codes_size(f, rows * cols)});
  Guarded absmax(random, DType::Float32, {blocks});
  quantize_4bit(x.view(), f, block_size, codes.view(), absmax.view());
  Guarded out(random, random.of(kFloats), {rows, cols});
  dequantize_4bit(codes.view(), {.values = absmax.view()}, f, block_size, out.view());

  Guarded code = dynamic_map(random);
  Guarded values(random, DType::UInt8, {blocks});
  Guarded nested(random, DType::Float32, {(blocks + 255) / 256});
  Guarded offset(random, DType::Float32, {});
  quantize_absmax(absmax.view(), code.view(), values.view(), nested.view(), offset.view());
  const Absmax scales{
      .values = values.view(), .nested_absmax = nested.view(), .nested_code = code.view(), .offset = offset.view()};
  Guarded restored(random, DType::Float32, {blocks});
  dequantize_absmax(scales, restored.view());
  Guarded out_nested(random, random.of(kFloats), {rows, cols});
  dequantize_4bit(codes.view(), scales, f, block_size, out_nested.view());

  Guarded indices(random, DType::Int64, {5});
  for (int i = 0; i < 5; ++i) indices.view().as<int64_t>()[i] = random.below(rows);
  Guarded gathered(random, random.of(kFloats), {5, cols});
  const Weight4bit weight{
      .format = &f, .rows = rows, .cols = cols, .block_size = block_size, .codes = codes.view(), .absmax = scales};
  embedding_4bit(indices.view(), weight, gathered.view());
  for (const Guarded* t : {&codes, &absmax, &out, &values, &nested, &offset, &restored, &out_nested, &gathered}) {
    t->collect(all);
  }
}

void run_affine(Random& random, std::vector<uint8_t>& all) {
  const Format& f = format(random.of(std::array{"int4", "int8_affine"}));
  const auto [rows, cols] = random_shape(random);
  const int64_t group_size = random.below(4) == 0 ? 0 : random.of(f.block_sizes);
  const int64_t groups = num_scales(f, rows, cols, group_size);
  Guarded x(random, random.of(kFloats), {rows, cols});
  fill(random, x, random.below(2) == 0);
  const DType scale_dtype = random.of(f.scale_dtypes);
  Guarded codes(random, DType::UInt8, {codes_size(f, rows * cols)});
  Guarded scales(random, scale_dtype, {groups});
  Guarded zeros(random, scale_dtype, {groups});
  quantize_affine(x.view(), f, group_size, codes.view(), scales.view(), zeros.view());
  Guarded out(random, random.of(kFloats), {rows, cols});
  dequantize_affine(codes.view(), scales.view(), zeros.view(), f, group_size, out.view());
  for (const Guarded* t : {&codes, &scales, &zeros, &out}) t->collect(all);
}

void run_blockwise(Random& random, std::vector<uint8_t>& all) {
  const auto [rows, cols] = random_shape(random);
  const int64_t n = rows * cols;
  const int64_t block_size = int64_t{16} << random.below(9);
  Guarded x(random, random.of(kFloats), {rows, cols});
  fill(random, x, random.below(2) == 0);
  Guarded code = dynamic_map(random);
  if (random.below(2) == 0) {  // any ascending code
    float* values = code.view().as<float>();
    for (int i = 0; i < 256; ++i) values[i] = random.below(9) == 0 ? 0.0F : std::ldexp(random.normal(), -i / 9);
    std::sort(values, values + 256);
  }
  Guarded codes(random, DType::UInt8, {n});
  Guarded absmax(random, DType::Float32, {(n + block_size - 1) / block_size});
  quantize_blockwise(x.view(), code.view(), block_size, codes.view(), absmax.view());
  Guarded out(random, random.of(kFloats), {rows, cols});
  dequantize_blockwise(codes.view(), absmax.view(), code.view(), block_size, out.view());
  Guarded quantiles(random, DType::Float32, {random.below(300) + 1});
  Guarded workspace(random, DType::UInt8, {estimate_quantiles_workspace(x.view())});
  estimate_quantiles(x.view(), random.below(50) / 101.0, quantiles.view(), workspace.view());
  for (const Guarded* t : {&codes, &absmax, &out, &quantiles}) t->collect(all);
}

// The outputs of every op whose bits are promised, for inputs drawn from `seed`.
std::vector<uint8_t> outputs(uint32_t seed) {
  Random random(seed);
  std::vector<uint8_t> all;
  run_4bit(random, all);
  run_affine(random, all);
  run_blockwise(random, all);
  return all;
}

// Puts the settings back that a test changes.
struct Settings {
  std::string isa = qbits::isa();
  int threads = num_threads();
  ~Settings() {
    set_isa(isa);
    set_num_threads(threads);
  }
};

TEST(Properties, EveryInstructionSetAndThreadCountWritesTheSameBits) {
  const Settings settings;
  for (uint32_t seed = 0; seed < 25; ++seed) {
    set_isa("scalar");
    set_num_threads(1);
    const std::vector<uint8_t> want = outputs(seed);
    for (const std::string& isa : available_isas()) {
      set_isa(isa);
      for (int threads : {1, 3}) {
        set_num_threads(threads);
        ASSERT_EQ(outputs(seed) == want, true) << "seed " << seed << " " << isa << " " << threads << " threads";
      }
    }
  }
}

TEST(Properties, CallersInTwoThreadsDoNotDisturbEachOther) {
  constexpr uint32_t kSeeds = 12;
  const Settings settings;
  set_num_threads(2);
  std::vector<std::vector<uint8_t>> want;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) want.push_back(outputs(seed));
  int wrong[2] = {};
  auto call = [&](int caller) {
    for (uint32_t i = 0; i < kSeeds; ++i) {
      const uint32_t seed = caller == 0 ? i : kSeeds - 1 - i;
      wrong[caller] += outputs(seed) != want[seed];
    }
  };
  std::thread other(call, 1);
  call(0);
  other.join();
  EXPECT_EQ(wrong[0] + wrong[1], 0);
}

TEST(Properties, ForkedChildrenComputeWithAPoolOfTheirOwn) {
  const Settings settings;
  const int threads = num_threads() + 1;
  set_num_threads(threads);
  const std::vector<uint8_t> want = outputs(3);
  for (int child = 0; child < 3; ++child) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      alarm(60);  // a pool that waits for threads of the parent would wait for ever
      _exit(outputs(3) == want && num_threads() == threads ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_EQ(outputs(3) == want, true);
  }
}

TEST(Properties, RequantizingChangesNothing) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    Random random(seed);
    const Format& f = format(random.of(std::array{"nf4", "fp4"}));
    const auto [rows, cols] = random_shape(random);
    const int64_t block_size = random.of(f.block_sizes);
    Guarded x(random, DType::Float32, {rows, cols});
    fill(random, x, true);
    std::vector<uint8_t> bits[2];
    for (std::vector<uint8_t>& all : bits) {
      Guarded codes(random, DType::UInt8, {codes_size(f, rows * cols)});
      Guarded absmax(random, DType::Float32, {num_scales(f, rows, cols, block_size)});
      quantize_4bit(x.view(), f, block_size, codes.view(), absmax.view());
      dequantize_4bit(codes.view(), {.values = absmax.view()}, f, block_size, x.view());
      absmax.collect(all);
      x.collect(all);
    }
    ASSERT_EQ(bits[0] == bits[1], true) << seed;
  }
}

TEST(Properties, AffineErrorIsWithinAStep) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    const Format& f = format(random.of(std::array{"int4", "int8_affine"}));
    const auto [rows, cols] = random_shape(random);
    Guarded x(random, DType::Float32, {rows, cols});
    fill(random, x, true);
    Guarded codes(random, DType::UInt8, {codes_size(f, rows * cols)});
    Guarded scales(random, DType::Float32, {rows});
    Guarded zeros(random, DType::Float32, {rows});
    Guarded out(random, DType::Float32, {rows, cols});
    quantize_affine(x.view(), f, 0, codes.view(), scales.view(), zeros.view());
    dequantize_affine(codes.view(), scales.view(), zeros.view(), f, 0, out.view());
    for (int64_t i = 0; i < rows * cols; ++i) {
      // The zero point is rounded too, so an element at the end of the range may lie a whole step away.
      ASSERT_LE(std::fabs(out.get(i) - x.get(i)), 1.001F * scales.get(i / cols)) << seed << " " << i;
      if (x.get(i) == 0.0F) {
        ASSERT_EQ(out.get(i), 0.0F) << seed << " " << i;
      }
    }
  }
}

TEST(Properties, ProductsMatchDequantizedWeights) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    const Format& f = format(random.of(std::array{"nf4", "fp4", "int4"}));
    const bool affine = f.coding == Coding::Affine;
    const int64_t rows = random.below(70) + 1, cols = random.below(300) + 1, m = random.below(7) + 1;
    const int64_t block_size = random.of(f.block_sizes);
    const int64_t blocks = num_scales(f, rows, cols, block_size);
    Guarded w(random, DType::Float32, {rows, cols});
    fill(random, w, true);
    Guarded codes(random, DType::UInt8, {codes_size(f, rows * cols)});
    Guarded scales(random, DType::Float32, {blocks}), zeros(random, DType::Float32, {blocks});
    Weight4bit weight{.format = &f, .rows = rows, .cols = cols, .block_size = block_size, .codes = codes.view()};
    if (affine) {
      quantize_affine(w.view(), f, block_size, codes.view(), scales.view(), zeros.view());
      dequantize_affine(codes.view(), scales.view(), zeros.view(), f, block_size, w.view());
      weight.scales = scales.view();
      weight.zeros = zeros.view();
    } else {
      quantize_4bit(w.view(), f, block_size, codes.view(), scales.view());
      weight.absmax.values = scales.view();
      dequantize_4bit(codes.view(), weight.absmax, f, block_size, w.view());
    }
    const DType dtype = random.of(kFloats);
    const bool forward = random.below(2) == 0;
    const int64_t in = forward ? cols : rows, width = forward ? rows : cols;
    Guarded x(random, dtype, {m, in}), out(random, dtype, {m, width});
    for (int64_t i = 0; i < m * in; ++i) x.set(i, random.normal());
    const int64_t bytes =
        forward ? linear_4bit_workspace(weight, m, dtype) : linear_4bit_grad_x_workspace(weight, m, dtype);
    Guarded workspace(random, DType::UInt8, {bytes});
    forward ? linear_4bit(x.view(), weight, {}, out.view(), workspace.view())
            : linear_4bit_grad_x(x.view(), weight, out.view(), workspace.view());
    std::vector<uint8_t> all;
    workspace.collect(all);
    out.collect(all);
    const double unit = dtype == DType::Float32 ? 0.0 : dtype == DType::BFloat16 ? 0x1p-8 : 0x1p-11;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < in; ++k) {
          const double term = static_cast<double>(x.get(i * in + k)) * w.get(forward ? j * cols + k : k * cols + j);
          sum += term;
          magnitude += std::fabs(term);
        }
        const double bound = unit * std::fabs(sum) + 1e-5 * magnitude + (dtype == DType::Float16 ? 0x1p-24 : 0.0);
        ASSERT_NEAR(out.get(i * width + j), sum, bound) << "seed " << seed << " " << f.name << " " << i << "," << j;
      }
    }
  }
}

}  // namespace
}  // namespace qbits
