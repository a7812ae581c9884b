#include <nanobind/nanobind.h>

#include "init.h"
#include "qbits/version.h"
#include "tensor_caster.h"

NB_MODULE(_C, m) {
  m.doc() = "libqbits for Python. Private: qbits.ops and qbits.functional validate and allocate.";
  m.attr("VERSION") = QBITS_VERSION;
  qbits::bindings::load_torch();
  qbits::bindings::init_errors();
  qbits::bindings::init_onlookers(m);
  qbits::bindings::init_format(m);
  qbits::bindings::init_quantize(m);
  qbits::bindings::init_linear(m);
  qbits::bindings::init_linear_4bit(m);
  qbits::bindings::init_int8(m);
  qbits::bindings::init_optimizer(m);
  qbits::bindings::init_pager(m);
  qbits::bindings::init_runtime(m);
}
