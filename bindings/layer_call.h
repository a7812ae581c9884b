#pragma once

#include <nanobind/nanobind.h>

#include <optional>

// A layer's call as its __call__ in Python may take it over from nn.Module's: that and the layer's forward take as long
// as the product's launch.

namespace qbits::bindings {

struct LayerTensors {
  nanobind::object weight;
  nanobind::object bias;  // may be None
};

// What layer(x) multiplies, if nn.Module's __call__ would find nothing to do but to call `forward`, a function that is
// the layer's for plain calls, and that nothing but to multiply x, exactly a torch.Tensor, by the layer's
// QuantizedTensor: there are no hooks, none of the three functions is replaced, x has the dtype to compute in, and
// autocast is off.
std::optional<LayerTensors> layer_call(nanobind::handle layer, nanobind::handle forward, nanobind::handle x);

void load_layer_call();

}  // namespace qbits::bindings
