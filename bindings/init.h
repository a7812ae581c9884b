#pragma once

#include <nanobind/nanobind.h>

namespace qbits {
class Pager;
}

namespace qbits::bindings {

// The pager in a Python object, null for None.
Pager* pager_of(nanobind::handle object);

void init_errors();
void init_format(nanobind::module_& m);
void init_int8(nanobind::module_& m);
void init_linear(nanobind::module_& m);
void init_linear_4bit(nanobind::module_& m);
void init_onlookers(nanobind::module_& m);
void init_optimizer(nanobind::module_& m);
void init_pager(nanobind::module_& m);
void init_quantize(nanobind::module_& m);
void init_runtime(nanobind::module_& m);

}  // namespace qbits::bindings
