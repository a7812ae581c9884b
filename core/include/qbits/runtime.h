#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qbits/export.h"

namespace qbits {

// The CPU instruction sets this machine and build can use, slowest first: "scalar", "avx2", "avx512".
QBITS_API std::vector<std::string> available_isas();

// The one in use: the best available, or what QBITS_ISA or set_isa chose.
QBITS_API std::string isa();

// Uses `name` from now on; "" goes back to the default choice. Throws InvalidArgument for an unknown
// name and Unsupported for one this machine lacks.
QBITS_API void set_isa(std::string_view name);

// Size of the CPU thread pool, the calling thread included. Default: the OMP_NUM_THREADS environment
// variable, else the number of physical cores this process may run on.
QBITS_API int num_threads();
QBITS_API void set_num_threads(int count);

// What this build holds: "9.0a" style compute capabilities compiled in, empty without CUDA.
QBITS_API std::vector<std::string> cuda_archs();

// "" if CUDA can run here, else one sentence saying why not (no CUDA in the build, no driver, a driver
// too old, no device).
QBITS_API std::string cuda_unavailable_reason();

// The version of the CUDA driver and runtime as 13000 for 13.0; 0 where there is none.
QBITS_API int cuda_driver_version();
QBITS_API int cuda_runtime_version();

}  // namespace qbits
