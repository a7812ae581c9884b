#include "qbits/runtime.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "init.h"

namespace qbits::bindings {

using namespace nanobind::literals;

void init_runtime(nanobind::module_& m) {
  m.def("available_isas", &available_isas);
  m.def("isa", &isa);
  m.def("set_isa", &set_isa, "name"_a);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, "count"_a);
  m.def("cuda_archs", &cuda_archs);
  m.def("cuda_unavailable_reason", &cuda_unavailable_reason);
  m.def("cuda_driver_version", &cuda_driver_version);
  m.def("cuda_runtime_version", &cuda_runtime_version);
}

}  // namespace qbits::bindings
