#include "qbits/format.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "define.h"
#include "init.h"
#include "qbits/error.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

constexpr int kMapSize = 256;

template <class T>
std::vector<T> list(std::span<const T> values) {
  return {values.begin(), values.end()};
}

std::vector<std::string_view> names(std::span<const DType> dtypes) {
  std::vector<std::string_view> result;
  for (const DType dtype : dtypes) result.push_back(name(dtype));
  return result;
}

const char* coding(const Format& format) {
  switch (format.coding) {
    case Coding::Codebook:
      return "codebook";
    case Coding::Affine:
      return "affine";
    case Coding::Symmetric:
      return "symmetric";
  }
  return "";
}

const char* ties(const Format& format) {
  switch (format.ties) {
    case Ties::Lower:
      return "lower";
    case Ties::TowardZero:
      return "toward_zero";
    case Ties::Even:
      return "even";
  }
  return "";
}

// Calls a create_*_map function and returns its 256 values.
template <auto Create, class... Args>
std::vector<float> map(Args... args) {
  std::vector<float> values(kMapSize);
  Create(args..., values);
  return values;
}

}  // namespace

const Format& find_format(std::string_view format_name, const char* op, const char* argument) {
  for (const Format& row : formats()) {
    if (row.name == format_name) return row;
  }
  std::string known;
  for (const Format& row : formats()) known.append(known.empty() ? "" : ", ").append(row.name);
  const nb::object shown = nb::repr(nb::str(format_name.data(), format_name.size()));
  throw Error(ErrorCode::InvalidArgument, "[" + std::string(op) + "] " + argument + ": got " +
                                              nb::cast<std::string>(shown) + ", want one of " + known);
}

void init_format(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Format>(m, "Format", "One row of the format table.")
      .def_prop_ro("name", [](const Format& f) { return f.name; })
      .def_prop_ro("summary", [](const Format& f) { return f.summary; })
      .def_ro("bits", &Format::bits)
      .def_prop_ro("coding", &coding)
      .def_prop_ro("codebook", [](const Format& f) { return list(f.codebook); })
      .def_prop_ro("ties", &ties)
      .def_prop_ro("block_sizes", [](const Format& f) { return list(f.block_sizes); })
      .def_ro("whole_rows", &Format::whole_rows)
      .def_prop_ro("scale_dtypes", [](const Format& f) { return names(f.scale_dtypes); })
      .def_prop_ro("tensors", [](const Format& f) { return list(f.tensors); });
  m.def(
      "formats",
      [] {
        nb::list rows;
        for (const Format& row : formats()) rows.append(nb::cast(&row, nb::rv_policy::reference));
        return rows;
      },
      nb::sig("def formats() -> list[Format]"));
  define(m, "codes_size", &codes_size, "format"_a, "numel"_a);
  define(m, "num_scales", &num_scales, "format"_a, "rows"_a, "cols"_a, "block_size"_a);
  m.attr("NESTED_BLOCK_SIZE") = kNestedBlockSize;
  m.def("create_dynamic_map", &map<create_dynamic_map, bool, int, int>, "signed"_a, "max_exponent_bits"_a,
        "total_bits"_a);
  m.def("create_linear_map", &map<create_linear_map, bool, int, bool>, "signed"_a, "total_bits"_a, "add_zero"_a);
  m.def("create_fp8_map", &map<create_fp8_map, bool, int, int, int>, "signed"_a, "exponent_bits"_a, "precision_bits"_a,
        "total_bits"_a);
  m.def("create_normal_map", &map<create_normal_map, double, bool>, "offset"_a, "use_extra_value"_a);
}

}  // namespace qbits::bindings
