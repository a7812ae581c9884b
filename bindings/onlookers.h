#pragma once

#include <nanobind/nanobind.h>

#include <initializer_list>

// What of torch may look on when an op is called. Asked once per layer and token: torch's own functions are looked up
// once, at import.

namespace qbits::bindings {

// Whether torch's dispatcher would only take its time before it calls the kernel of an op.
//
// That is so where nothing looks on (a mode, a transform of torch.func, a tracer, the profiler); `first`, the op's
// first argument, is exactly a torch.Tensor; each of `others` is that, a Parameter or None; and none is negated.
// Tensors without plain memory are left for the kernel to refuse, and gradients for the caller to see to. Kernels and
// observers that other libraries register with the dispatcher do not see such a call.
bool bypasses_dispatcher(nanobind::handle first, std::initializer_list<nanobind::handle> others);

// Whether autograd records what is done now.
bool is_grad_enabled();

// Whether autograd follows a tensor, or None, which it does not.
bool requires_grad(nanobind::handle tensor);

}  // namespace qbits::bindings
