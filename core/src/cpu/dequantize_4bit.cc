#include "cpu/absmax.h"
#include "cpu/dequantize_4bit_kernel.h"
#include "cpu/large_output.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void dequantize_4bit(const Dequantize4bitArgs& args) {
  constexpr int64_t kRun = 4096;  // blocks whose scales are reconstructed at a time
  const int64_t blocks = (args.n - 1) / args.block_size + 1;
  const int64_t grain = std::clamp<int64_t>(65536 / args.block_size, 1, kRun);
  const bool stream = prepare_output(args.out, args.n * itemsize(args.out_dtype));
  parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
    float buffer[kRun];
    for (int64_t run = begin; run < end; run += kRun) {
      const int64_t run_end = std::min(run + kRun, end);
      dequantize_4bit_blocks_isa(args, absmax_run(args.absmax, run, run_end, buffer), run, run_end, stream);
    }
  });
}

}  // namespace qbits::cpu
