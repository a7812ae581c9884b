#include "qbits/runtime.h"

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "ops/runtime.h"

namespace qbits {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (cpu::Isa isa : cpu::available()) names.emplace_back(cpu::name(isa));
  return names;
}

std::string isa() { return std::string(cpu::name(cpu::active_isa())); }
void set_isa(std::string_view name) { cpu::set_isa(name); }

int num_threads() { return cpu::num_threads(); }
void set_num_threads(int count) { cpu::set_num_threads(count); }

std::vector<std::string> cuda_archs() { return cuda::archs(); }
std::string cuda_unavailable_reason() { return cuda::unavailable_reason(); }
int cuda_driver_version() { return cuda::driver_version(); }
int cuda_runtime_version() { return cuda::runtime_version(); }

}  // namespace qbits
