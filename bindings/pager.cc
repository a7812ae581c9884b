#include "qbits/pager.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <new>
#include <optional>
#include <string_view>
#include <utility>

#include "init.h"
#include "tensor_caster.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

const char* kind_name(PagerMemory kind) {
  if (kind == PagerMemory::Host) return "host";
  return kind == PagerMemory::Staging ? "staging" : "resident";
}

// `memory` has allocate(kind, bytes), which returns an address or None, and free(address).
PagerAllocator allocator_of(const nb::object& memory) {
  return {.allocate = [memory](PagerMemory kind, int64_t bytes) -> void* {
            const nb::gil_scoped_acquire held;
            const nb::object address = memory.attr("allocate")(kind_name(kind), bytes);
            return address.is_none() ? nullptr : reinterpret_cast<void*>(nb::cast<uintptr_t>(address));
          },
          .free =
              [memory](PagerMemory, void* address) {
                const nb::gil_scoped_acquire held;
                const nb::error_scope raised;  // a pager may die while an exception passes
                try {
                  memory.attr("free")(reinterpret_cast<uintptr_t>(address));
                } catch (nb::python_error& error) {
                  error.discard_as_unraisable("qbits.optim: freeing paged state");
                }
              }};
}

// A pager with its device, whose current stream its calls use.
struct BoundPager {
  BoundPager(const std::optional<int>& cuda, const nb::object& memory, const PagerOptions& options)
      : device(cuda ? Device{DeviceType::Cuda, *cuda} : Device{}), pager(device, allocator_of(memory), options) {}

  Stream stream() const { return current_stream(device); }

  Device device;
  Pager pager;
};

// By name: the address of an array of the state, and its bytes.
nb::dict state_of(const BoundPager& self, int64_t index) {
  const PagedState state = self.pager.state(index);
  nb::dict arrays;
  const auto add = [&](const char* name, const std::optional<TensorView>& view) {
    if (view) {
      arrays[name] = nb::make_tuple(reinterpret_cast<uintptr_t>(view->data), view->numel() * itemsize(view->dtype));
    }
  };
  add("state1", state.state1);
  add("state2", state.state2);
  add("absmax1", state.absmax1);
  add("absmax2", state.absmax2);
  return arrays;
}

}  // namespace

Pager* pager_of(nb::handle object) { return object.is_none() ? nullptr : &nb::cast<BoundPager&>(object).pager; }

void init_pager(nb::module_& m) {
  using namespace nb::literals;
  const PagerOptions usual;
  nb::class_<BoundPager>(m, "Pager")
      .def(
          "__init__",
          [](BoundPager* self, std::optional<int> cuda, const nb::object& memory, int64_t host_slab_bytes,
             int64_t staging_bytes, int buffers) {
            new (self) BoundPager(
                cuda, memory, {.host_slab_bytes = host_slab_bytes, .staging_bytes = staging_bytes, .buffers = buffers});
          },
          "cuda"_a.none(), "memory"_a, "host_slab_bytes"_a = usual.host_slab_bytes,
          "staging_bytes"_a = usual.staging_bytes, "buffers"_a = usual.buffers)
      .def(
          "add",
          [](BoundPager& self, std::string_view algorithm, int64_t numel, bool is_8bit, bool divisible) {
            return self.pager.add(optimizer_algorithm(algorithm), numel, is_8bit ? DType::UInt8 : DType::Float32,
                                  divisible);
          },
          "algorithm"_a, "numel"_a, "is_8bit"_a, "divisible"_a)
      .def("state", &state_of, "index"_a, nb::sig("def state(self, index: int) -> dict[str, tuple[int, int]]"))
      .def(
          "is_resident", [](const BoundPager& self, int64_t index) { return self.pager.is_resident(index); }, "index"_a)
      .def("resident_bytes", [](const BoundPager& self) { return self.pager.resident_bytes(); })
      .def("staging_bytes", [](const BoundPager& self) { return self.pager.staging_bytes(); })
      .def("host_bytes", [](const BoundPager& self) { return self.pager.host_bytes(); })
      .def(
          "place", [](BoundPager& self, int64_t budget) { return self.pager.place(budget, self.stream()); }, "budget"_a)
      .def("page_out", [](BoundPager& self) { self.pager.page_out(self.stream()); })
      .def("prefetch", [](BoundPager& self) { self.pager.prefetch(self.stream()); });
}

}  // namespace qbits::bindings
