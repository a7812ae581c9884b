"""torch.compile with inductor: one graph for every op, one compilation for all sizes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree

import cases
from case_parts import THRESHOLDS
from cases import Case
from qbits import ops


def same(got, want):
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def fullgraph(function, dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    return torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic), counter


ONE_EACH = {case.op: case for case in reversed(cases.few()) if 0 not in case.shape and case.shape}


@pytest.mark.parametrize("name", ops.__all__)
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiles_to_one_graph(name, place):
    op = getattr(ops, name)
    arguments = ONE_EACH[name].arguments(place)
    compiled, counter = fullgraph(lambda *a: op(*a), dynamic=True)
    same(compiled(*arguments), op(*arguments))
    # Dynamo first takes a float for a variable and starts anew when the op wants its value.
    floats = any(isinstance(argument, float) for argument in arguments)
    assert counter.frame_count <= 1 + floats


def weight(n, k):
    codes, absmax = ops.quantize_4bit(torch.randn(n, k), "nf4", 64)
    return codes, absmax, n, k


def test_quantizers_compile_once_for_all_sizes():
    code = cases.code_of("dynamic")

    def roundtrip(x):
        codes, absmax = ops.quantize_4bit(x + 1, "nf4", 64)
        values, nested, offset = ops.quantize_absmax(absmax, code)
        out = ops.dequantize_4bit(codes, values, "nf4", 64, x.shape, x.dtype, nested, code, offset)
        affine = ops.quantize_affine(out, "int4", 32, torch.float32)
        out = ops.dequantize_affine(*affine, "int4", 32, x.shape, x.dtype)
        codes, absmax = ops.quantize_blockwise(out, code, 64)
        return ops.dequantize_blockwise(codes, absmax, code, 64, x.dtype) * 2

    compiled, counter = fullgraph(roundtrip, dynamic=True)
    for shape in ((3, 65), (8, 64), (17, 257), (200, 33)):
        x = torch.randn(shape)
        same(compiled(x), roundtrip(x))
    assert counter.frame_count == 1


def test_products_compile_once_for_all_batches():
    codes, absmax, n, k = weight(33, 130)

    def linear(x):
        y = ops.linear_4bit(x * 2, codes, absmax, None, "nf4", 64, n, k)
        return ops.linear_4bit_grad_x(y + 1, codes, absmax, "nf4", 64, n, k)

    compiled, counter = fullgraph(linear, dynamic=True)
    for lead in ((2, 3), (5, 7), (4, 64)):
        x = torch.randn(*lead, k)
        same(compiled(x), linear(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_int8_compiles_once_for_all_batches(threshold):
    codes, scales, _, _ = ops.quantize_int8_rowwise(torch.randn(33, 130))

    def linear(x):
        y = ops.linear_int8(x * 2, codes, scales, None, threshold)
        rows = ops.quantize_int8_rowwise(y + 1, threshold)
        return ops.dequantize_int8_rowwise(*rows[:2], torch.bfloat16), *rows[2:]

    compiled, counter = fullgraph(linear, dynamic=True)
    for lead in ((2, 3), (5, 7), (4, 64)):
        x = torch.randn(*lead, 130) * 4
        same(compiled(x), linear(x))
    assert counter.frame_count <= 2  # as in test_compiles_to_one_graph


def test_lookups_compile_once_for_all_lengths():
    codes, absmax, n, k = weight(33, 130)

    def embedding(indices):
        return ops.embedding_4bit(indices, codes, absmax, "nf4", 64, n, k, torch.float32) + 1

    compiled, counter = fullgraph(embedding, dynamic=True)
    for length in (3, 7, 64):
        indices = torch.randint(n, (length,))
        same(compiled(indices), embedding(indices))
    assert counter.frame_count == 1


def test_sizes_known_only_at_run_time():
    codes, absmax, n, k = weight(33, 130)

    def chosen(x, keep):
        return ops.linear_4bit(x[keep.nonzero().squeeze(1)], codes, absmax, None, "nf4", 64, n, k)

    x, keep = torch.randn(9, k), torch.rand(9) < 0.5
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled, _ = fullgraph(chosen, dynamic=True)
        same(compiled(x, keep), chosen(x, keep))


@pytest.mark.parametrize("change", [{"format": "nf5"}, {"block_size": 63}])
def test_refuses_what_eager_refuses(change):
    arguments = {"format": "nf4", "block_size": 64} | change
    compiled, _ = fullgraph(lambda x: ops.quantize_4bit(x, **arguments), dynamic=False)
    with pytest.raises(Exception, match=r"\[quantize_4bit\] .*: got .*, want "):
        compiled(torch.randn(3, 65))


def test_an_input_that_requires_grad_is_refused():
    codes, absmax, n, k = weight(33, 130)
    compiled, _ = fullgraph(lambda x: ops.linear_4bit(x, codes, absmax, None, "nf4", 64, n, k), dynamic=False)
    with pytest.raises(Exception, match=r"\[linear_4bit\] gradient: "):
        compiled(torch.randn(2, k, requires_grad=True))


def test_case_of_every_op():
    assert set(ONE_EACH) == set(ops.__all__)
    assert all(isinstance(case, Case) for case in ONE_EACH.values())
