"""Bad arguments: refused with one message, by the real kernels and by the fake ones torch.compile asks."""

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cases
from cases import Case
from qbits import ops

BASE = {
    "quantize_4bit": Case("quantize_4bit", (3, 65)),
    "dequantize_4bit": Case("dequantize_4bit", (3, 65)),
    "dequantize_4bit nested": Case("dequantize_4bit", (3, 65), nested=True),
    "quantize_absmax": Case("quantize_absmax", (300,)),
    "dequantize_absmax": Case("dequantize_absmax", (300,)),
    "quantize_affine": Case("quantize_affine", (3, 65), format="int4"),
    "dequantize_affine": Case("dequantize_affine", (3, 65), format="int4"),
    "quantize_blockwise": Case("quantize_blockwise", (3, 65), format="dynamic"),
    "dequantize_blockwise": Case("dequantize_blockwise", (3, 65), format="dynamic"),
    "estimate_quantiles": Case("estimate_quantiles", (3, 65)),
    "linear_4bit": Case("linear_4bit", (7, 65), lead=(2,), bias=True),
    "linear_4bit nested": Case("linear_4bit", (7, 65), lead=(2,), nested=True),
    "linear_4bit int4": Case("linear_4bit", (7, 65), lead=(2,), format="int4"),
    "linear_4bit_grad_x": Case("linear_4bit_grad_x", (7, 65), lead=(2,)),
    "linear_4bit_grad_x int4": Case("linear_4bit_grad_x", (7, 65), lead=(2,), format="int4"),
    "grouped_linear_4bit": Case("grouped_linear_4bit", (7, 65), lead=(5,), experts=3, bias=True),
    "grouped_linear_4bit nested": Case("grouped_linear_4bit", (7, 65), lead=(5,), experts=3, nested=True),
    "grouped_linear_4bit int4": Case("grouped_linear_4bit", (7, 65), lead=(5,), experts=3, format="int4"),
    "grouped_linear_4bit_grad_x": Case("grouped_linear_4bit_grad_x", (7, 65), lead=(5,), experts=3),
    "embedding_4bit": Case("embedding_4bit", (7, 65), lead=(2,)),
    "embedding_4bit nested": Case("embedding_4bit", (7, 65), lead=(2,), nested=True),
    "quantize_int8_rowwise": Case("quantize_int8_rowwise", (3, 65)),
    "quantize_int8_rowwise threshold": Case("quantize_int8_rowwise", (3, 65), threshold=6.0),
    "quantize_int8_colwise": Case("quantize_int8_colwise", (3, 65), threshold=6.0),
    "dequantize_int8_rowwise": Case("dequantize_int8_rowwise", (3, 65)),
    "dequantize_int8_product": Case("dequantize_int8_product", (3, 65), bias=True),
    "dequantize_int8_product 16 bits": Case("dequantize_int8_product", (3, 65), torch.float16),
    "igemm": Case("igemm", (7, 65), lead=(2,)),
    "igemm batch": Case("igemm", (7, 65), lead=(3, 2), transposed=(True, False)),
    "linear_int8": Case("linear_int8", (7, 65), lead=(2,), bias=True),
    "linear_int8_weight_only": Case("linear_int8_weight_only", (7, 65), lead=(2,), bias=True),
    "linear_int8 threshold": Case("linear_int8", (7, 65), lead=(2,), threshold=6.0),
}
BIG = 2**62
QUANTIZED = (
    "absmax",
    "scales",
    "row_scales",
    "column_scales",
    "zeros",
    "nested_absmax",
    "nested_code",
    "code",
    "bias",
    "values",
)
ANY_LENGTH = {
    ("quantize_absmax", "absmax"),
    ("dequantize_absmax", "values"),
    ("dequantize_blockwise", "codes"),
}
MESSAGE = re.compile(r"^\[\w+\] .+: got .+, want .+", re.DOTALL)


def wrong_dtype(t):
    return t.to(torch.int32)


def double(t):
    return t.double()


def as_int8(t):
    return t.view(torch.int8)


def longer(t):
    return torch.cat([t.reshape(-1), t.reshape(-1)[:1]])


def shorter(t):
    return t.reshape(-1)[1:]


def deep(t):
    return t.reshape(*[1] * (9 - t.dim()), *t.shape)


# (base, what replaces which argument, the exception)
REFUSED = [
    *[(op, {"format": name}, ValueError) for op in BASE for name in ("nf5", "NF4", "int8", "quantile")],
    *[(op, {size: value}, ValueError)
      for op in BASE for size in ("block_size", "group_size") for value in (-1, 1, 48, 63, 8192, BIG)],
    *[(op, {"block_size": 0}, ValueError) for op in BASE],
    *[(op, {"x": change}, TypeError) for op in BASE for change in (wrong_dtype, double)],
    *[(op, {"grad": change}, TypeError) for op in BASE for change in (wrong_dtype, double)],
    *[(op, {"codes": wrong_dtype}, TypeError) for op in BASE],
    *[(op, {"codes": as_int8}, TypeError) for op in BASE if "int8" not in op],
    *[(op, {name: wrong_dtype}, TypeError)
      for op in BASE
      for name in (*QUANTIZED, "offset")],
    *[(op, {name: change}, ValueError)
      for op in BASE
      for name in ("codes", *QUANTIZED)
      for change in (longer, shorter)
      if (op, name) not in ANY_LENGTH],
    *[(op, {name: deep}, ValueError) for op in BASE for name in ("x", "grad", "indices")],
    *[(op, {"dtype": dtype}, TypeError) for op in BASE for dtype in (torch.float64, torch.uint8, torch.bool)],
    *[(op, {"scale_dtype": torch.float64}, TypeError) for op in BASE],
    *[(op, {"shape": shape}, ValueError)
      for op in BASE for shape in ([3, 67], [-3, -65], [3, 65, 2], [1] * 7 + [3, 65], [-1])],
    *[(op, {"offset": longer}, ValueError) for op in BASE],
    *[(op, {name: None}, ValueError)
      for op in BASE if "nested" in op for name in ("nested_absmax", "nested_code", "offset")],
    *[(op, {name: value}, ValueError) for op in BASE for name in ("n", "k") for value in (-1, 6, 66, 2**40)],
    *[(op, {"zeros": None}, ValueError) for op in BASE if "int4" in op],
    ("estimate_quantiles", {"num_quantiles": 0}, ValueError),
    ("estimate_quantiles", {"num_quantiles": 65537}, ValueError),
    ("estimate_quantiles", {"offset": 0.5}, ValueError),
    ("estimate_quantiles", {"offset": -0.1}, ValueError),
    ("estimate_quantiles", {"offset": float("nan")}, ValueError),
    ("estimate_quantiles", {"x": lambda t: t[:0]}, ValueError),
    ("quantize_affine", {"x": lambda t: t[0, 0]}, ValueError),
    ("linear_4bit", {"x": lambda t: t[0, 0]}, ValueError),
    ("linear_4bit", {"x": lambda t: t[:, 1:]}, ValueError),
    ("linear_4bit", {"bias": lambda t: t.half()}, TypeError),
    ("linear_4bit_grad_x", {"grad": lambda t: t[:, 1:]}, ValueError),
    *[(op, {"offsets": change}, error)
      for op in BASE if "grouped" in op
      for change, error in ((double, TypeError), (torch.Tensor.long, TypeError), (longer, ValueError),
                            (shorter, ValueError), (lambda t: t[:1], ValueError),
                            (lambda t: t[None], ValueError))],
    ("grouped_linear_4bit", {"x": lambda t: t[0]}, ValueError),
    ("grouped_linear_4bit", {"x": lambda t: t[:, 1:]}, ValueError),
    ("grouped_linear_4bit", {"bias": lambda t: t.half()}, TypeError),
    ("grouped_linear_4bit_grad_x", {"grad": lambda t: t[:, 1:]}, ValueError),
    ("embedding_4bit", {"indices": lambda t: t.float()}, TypeError),
    ("embedding_4bit", {"indices": lambda t: t.short()}, TypeError),
    *[(op, {"threshold": value}, ValueError)
      for op in BASE if "int8" in op
      for value in (-1.0, -1e-30, 1e-50, 1e39, float("nan"), float("inf"), -float("inf"))],
    *[(op, {"codes": torch.Tensor.byte}, TypeError) for op in BASE if "int8" in op],
    *[(op, {name: change}, TypeError)
      for op in BASE if "int8" in op
      for name in ("scales", "row_scales", "column_scales") for change in (torch.Tensor.half, double)],
    *[(op, {name: lambda t: t[None]}, ValueError)
      for op in BASE if "int8" in op for name in ("scales", "row_scales", "column_scales")],
    *[(op, {"bias": lambda t: t[None]}, ValueError)
      for op in BASE if "int8" in op or op.startswith("linear_4bit")],
    *[("dequantize_int8_product", {"dots": change}, error)
      for change, error in ((torch.Tensor.long, TypeError), (torch.Tensor.float, TypeError),
                            (deep, ValueError), (lambda t: t[0, 0], ValueError),
                            (lambda t: t.mT, ValueError))],
    ("dequantize_int8_product", {"bias": torch.Tensor.half}, TypeError),
    ("dequantize_int8_product", {"dtype": torch.float16}, TypeError),
    ("quantize_int8_rowwise", {"x": lambda t: t[0, 0]}, ValueError),
    ("quantize_int8_colwise", {"x": lambda t: t[0, 0]}, ValueError),
    ("dequantize_int8_rowwise", {"codes": lambda t: t[0, 0]}, ValueError),
    ("dequantize_int8_rowwise", {"codes": lambda t: t.mT}, ValueError),
    ("dequantize_int8_rowwise", {"codes": deep}, ValueError),
    *[(op, {name: change}, error)
      for op in BASE if "igemm" in op for name in "ab"
      for change, error in ((torch.Tensor.byte, TypeError), (torch.Tensor.float, TypeError),
                            (wrong_dtype, TypeError), (lambda t: t.mT, ValueError),
                            (lambda t: t[0], ValueError),
                            (lambda t: t[None], ValueError), (deep, ValueError))],
    ("igemm", {"a": lambda t: t[:, 1:]}, ValueError),
    ("igemm batch", {"b": lambda t: t[1:]}, ValueError),
    *[(op, {name: change}, ValueError)
      for op in ("linear_int8", "linear_int8_weight_only")
      for name, change in (("x", lambda t: t[0, 0]), ("x", lambda t: t[:, 1:]),
                           ("codes", lambda t: t[:, 1:]), ("codes", lambda t: t.mT),
                           ("codes", lambda t: t[None]), ("codes", lambda t: t[0]))],
    *[(op, {"bias": lambda t: t.half()}, TypeError) for op in ("linear_int8", "linear_int8_weight_only")],
]  # fmt: skip


def position(case, name):
    return [argument.name for argument in getattr(ops, case.op)._schema.arguments].index(name)


def applies(base, replaced, _):
    """Whether the op has this argument and the replacement is wrong for it."""
    case = BASE[base]
    ((name, value),) = replaced.items()
    if name not in [argument.name for argument in getattr(ops, case.op)._schema.arguments]:
        return False
    if name == "format":
        return value not in [row.name for row in cases.formats_of(case.op)]
    if name == "block_size":
        return value not in cases.block_sizes_of(case.row)
    if callable(value):
        arguments = case.arguments("cpu")
        return position(case, name) < len(arguments) and torch.is_tensor(arguments[position(case, name)])
    return True


def describe(refused):
    base, replaced, _ = refused
    ((name, value),) = replaced.items()
    return f"{base}-{name}-{getattr(value, '__name__', value)}"


REFUSED = [refused for refused in REFUSED if applies(*refused)]


def bad_arguments(base, replaced, device="cpu"):
    case = BASE[base]
    arguments = list(case.arguments(device))
    for name, value in replaced.items():
        at = position(case, name)
        arguments[at] = value(arguments[at]) if callable(value) else value
    return getattr(ops, case.op), arguments


@pytest.mark.parametrize("refused", REFUSED, ids=describe)
def test_eager_refuses(refused, device):
    base, replaced, error = refused
    op, arguments = bad_arguments(base, replaced, device)
    with pytest.raises(error) as raised:
        op(*arguments)
    assert MESSAGE.match(str(raised.value)), raised.value


@pytest.mark.parametrize("refused", REFUSED, ids=describe)
def test_fake_kernels_refuse_the_same(refused):
    base, replaced, error = refused
    op, arguments = bad_arguments(base, replaced)
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(a) if torch.is_tensor(a) else a for a in arguments]
        with pytest.raises(error) as raised:
            op(*arguments)
    assert MESSAGE.match(str(raised.value)), raised.value


@pytest.mark.parametrize("base", BASE)
def test_the_unchanged_arguments_are_accepted(base, device):
    op, arguments = bad_arguments(base, {}, device)
    op(*arguments)


def test_an_empty_shape_whose_strides_overflow_is_refused():
    with pytest.raises(
        ValueError, match=r"\[dequantize_4bit\] shape: got \[0, 2, .*, want sizes whose strides fit"
    ):
        ops.dequantize_4bit(
            torch.empty(0, dtype=torch.uint8), torch.empty(0), "nf4", 64, [0, 2, BIG], torch.float32
        )


FLOAT_INPUTS = (
    "x",
    "grad",
    "bias",
    "absmax",
    "scales",
    "row_scales",
    "column_scales",
    "zeros",
    "nested_absmax",
    "code",
)


@pytest.mark.parametrize("base", BASE)
def test_an_input_that_requires_grad_is_refused_with_advice(base, device):
    case = BASE[base]
    arguments = list(case.arguments(device))
    op = getattr(ops, case.op)
    tried = 0
    for i, argument in enumerate(op._schema.arguments[: len(arguments)]):
        if (
            argument.name not in FLOAT_INPUTS
            or not torch.is_tensor(arguments[i])
            or not arguments[i].is_floating_point()
        ):
            continue
        tried += 1
        with_grad = [*arguments[:i], arguments[i].clone().requires_grad_(), *arguments[i + 1 :]]
        with pytest.raises(
            RuntimeError, match=rf"\[{case.op}\] gradient: got .* requires grad, want .*, or torch.no_grad"
        ):
            op(*with_grad)
        with torch.no_grad():
            op(*with_grad)
    assert tried or case.op in ("dequantize_absmax", "igemm")


def test_the_advice_names_functions_that_exist():
    import qbits.functional

    for path in Path(ops.__file__).parent.glob("*.py"):
        for name in re.findall(r"qbits\.functional\.(\w+)", path.read_text()):
            assert hasattr(qbits.functional, name)


@pytest.mark.parametrize("bad", [-1.0, -1e-45, float("nan")])
@pytest.mark.parametrize("name", ["linear_int8", "linear_int8_weight_only"])
def test_int8_scales_that_are_no_absmax(name, bad, device):
    op, (x, codes, scales, *rest) = getattr(ops, name), BASE[name].arguments(device)
    scales[5] = bad
    if device.type == "cpu":
        with pytest.raises(ValueError, match=rf"\[{name}\] weight scales: got .* at 5, want numbers"):
            op(x, codes, scales, *rest)
    else:  # looking would synchronise
        assert op(x, codes, scales, *rest).shape == (2, 7)


@pytest.mark.gpu
@pytest.mark.parametrize("base", BASE)
def test_tensors_on_two_devices_are_refused(base, gpu):
    op, arguments = bad_arguments(base, {}, gpu)
    tensors = [i for i, argument in enumerate(arguments) if torch.is_tensor(argument)]
    for i in tensors if len(tensors) > 1 else ():
        mixed = [*arguments[:i], arguments[i].cpu(), *arguments[i + 1 :]]
        with pytest.raises(ValueError, match=r"\[.*\] .*: got .* on .*, want a tensor on"):
            op(*mixed)
