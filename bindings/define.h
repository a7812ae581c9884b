#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "qbits/format.h"
#include "tensor_caster.h"

namespace qbits::bindings {

// The row called `name`; the Error if there is none names the op and the argument.
const Format& find_format(std::string_view name, const char* op, const char* argument);

// What the arguments of one call share: names for messages, and the device of the first tensor.
struct Call {
  const char* op;
  std::optional<Device> device;

  const TensorView& view(const TensorArg& arg, const char* name) {
    if (arg.refused != nullptr) throw_refusal(arg.refused, op, name);
    if (!device) device = arg.view.device;
    return arg.view;
  }
};

// How a parameter of a C++ function is written in Python.
template <class T>
struct Param {
  using Python = T;
  static T convert(T value, const char*, Call&) { return value; }
};

template <>
struct Param<const TensorView&> {
  using Python = const TensorArg&;
  static const TensorView& convert(const TensorArg& arg, const char* name, Call& call) { return call.view(arg, name); }
};

template <>
struct Param<const std::optional<TensorView>&> {
  using Python = const std::optional<TensorArg>&;
  static std::optional<TensorView> convert(const std::optional<TensorArg>& arg, const char* name, Call& call) {
    if (!arg) return std::nullopt;
    return call.view(*arg, name);
  }
};

template <>
struct Param<const Format&> {
  using Python = std::string_view;
  static const Format& convert(std::string_view format_name, const char* name, Call& call) {
    return find_format(format_name, call.op, name);
  }
};

template <class... Args, std::size_t... I, class R, class... Names>
void define(nanobind::module_& m, const char* op, R (*function)(Args...), std::index_sequence<I...>,
            const Names&... names) {
  using Params = std::tuple<Args...>;
  const std::array<const char*, sizeof...(Names)> argument_names{names.name_...};
  m.def(
      op,
      [op, function, argument_names](typename Param<std::tuple_element_t<I, Params>>::Python... args) -> R {
        Call call{op, std::nullopt};
        // Braces fix the order, so that the first bad argument is the one reported.
        std::tuple<decltype(Param<std::tuple_element_t<I, Params>>::convert(args, "", call))...> converted{
            Param<std::tuple_element_t<I, Params>>::convert(args, argument_names[I], call)...};
        if constexpr (sizeof...(I) < sizeof...(Args)) {
          const Stream stream = current_stream(call.device.value_or(Device{}));
          const nanobind::gil_scoped_release release;
          return function(std::get<I>(converted)..., stream);
        } else {
          const nanobind::gil_scoped_release release;
          return function(std::get<I>(converted)...);
        }
      },
      names...);
}

// Binds `function` under the name `op`: tensors are torch's, formats are named, a Stream in last place is
// torch's current one on the device of the first tensor, and the GIL is released while libqbits works.
template <class R, class... Args, class... Names>
void define(nanobind::module_& m, const char* op, R (*function)(Args...), const Names&... names) {
  constexpr bool kHasStream = std::is_same_v<std::tuple_element_t<sizeof...(Args) - 1, std::tuple<Args...>>, Stream>;
  static_assert(sizeof...(Names) == sizeof...(Args) - kHasStream, "one name per Python argument");
  define(m, op, function, std::make_index_sequence<sizeof...(Names)>(), names...);
}

}  // namespace qbits::bindings
