"""Views of a QuantizedTensor that are dense: what is written into them is kept, and reading them is free."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qbits
from test_quantized_tensor import OPTIONS, dense, same


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request):
    return request.param


OTHER = qbits.quantize(dense(64, 64, seed=9), "int8_affine")
WRITES = {
    "a column": lambda w: w[:, 0:1].zero_(),
    "a row": lambda w: w[3].mul_(2),
    "the transpose": lambda w: w.t().index_fill_(0, torch.tensor([1, 2]), 0.5),
    "the property T": lambda w: w.T.add_(1),
    "a view of a view": lambda w: w.t()[5, :7].zero_(),
    "all of it as one row": lambda w: w.view(-1).zero_(),
    "part of that": lambda w: w.flatten()[3:70].zero_(),
    "the diagonal": lambda w: w.diagonal().zero_(),
    "fill_diagonal_": lambda w: w.fill_diagonal_(0),
    "the elements of a column": lambda w: w.t().__setitem__(0, 3.0),
    "an operator": lambda w: w[:, 9].__imul__(0.5),
    "out": lambda w: torch.add(torch.ones(64), 1, out=w[:, 3]),
    "out beside a quantized argument": lambda w: torch.sum(OTHER, 1, out=w[:, 3]),
    "nn.init": lambda w: nn.init.ones_(w[:, 3]),
    "data": lambda w: w.data[:, 2].copy_(torch.ones(64)),
    "an aten op": lambda w: torch.ops.aten.zero_(w[:, 4]),
}


# Written one after the other, and rounded after each.
SEVERAL_WRITES = {
    "each row of a loop": lambda w: [row.mul_(2) for row in w],
    "columns of unbind": lambda w: [column.fill_(1) for column in w.unbind(1)[:2]],
    "two columns at once": lambda w: torch._foreach_zero_([w[:, 0], w[:, 1]]),
    "two views that overlap": lambda w: [v.add_(1) for v in (w[:, 0], w[0])],
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_is_written_into_a_view_is_kept(write, mode, options):
    with mode():
        q = qbits.quantize(dense(64, 64), **options)
        before, want, codes = q.dequantize(), q.dequantize(), q.codes.data_ptr()
        write(want)
        write(q)
    assert not torch.equal(want, before)
    assert same(q, qbits.quantize(want, **options)) and q.codes.data_ptr() == codes


@pytest.mark.parametrize("write", SEVERAL_WRITES.values(), ids=SEVERAL_WRITES.keys())
def test_what_is_written_into_several_views_is_kept(write):
    q = qbits.quantize(dense(64, 64), "int8")
    before, want = q.dequantize(), q.dequantize()
    write(want)
    write(q)
    assert not torch.allclose(want, before, atol=0.1)
    torch.testing.assert_close(q.dequantize(), want, atol=0.05, rtol=0)


def test_what_is_written_into_rows_inside_a_block_is_kept():
    q = qbits.quantize(dense(8, 40))
    want = q.dequantize()
    q[1:3].zero_()
    want[1:3].zero_()
    assert same(q, qbits.quantize(want))


def test_a_view_shows_what_came_of_a_write_and_of_writes_by_others_before():
    q = qbits.quantize(dense(64, 64))
    column, row = q[:, 3], q[5]
    q.zero_()
    column.fill_(1)
    assert torch.equal(q.dequantize().nonzero()[:, 1].unique(), torch.tensor([3]))
    assert torch.equal(column, q.dequantize()[:, 3])
    row.add_(0.25)
    assert torch.equal(row, q.dequantize()[5]) and q.dequantize()[5, 3] == 1.25
    q.data = dense(64, 64, seed=1)  # the views stay with the memory they were taken of
    before = q.dequantize()
    column.zero_()
    assert torch.equal(q.dequantize(), before)


def test_reading_a_view_writes_nothing():
    q = qbits.quantize(dense(64, 64, dtype=torch.bfloat16), double_quant=True)
    versions = [t._version for t in q.tensors().values()]
    view = q.t()
    assert isinstance(view, torch.Tensor) and torch.equal(view, q.dequantize().t())
    x = torch.randn(64, 64, dtype=torch.bfloat16)
    torch.matmul(x, q, out=torch.empty_like(x))
    torch.add(view, 1, out=x)
    x.add_(view).copy_(q[:, :1].expand(64, 64))
    q.clone().copy_(view)
    torch.cat([q, view])
    view.detach().requires_grad_()
    assert torch.equal(view.contiguous(), q.dequantize().t())
    assert type(view + 1) is torch.Tensor and type(view @ q) is torch.Tensor
    assert [t._version for t in q.tensors().values()] == versions


def test_views_are_tensors_like_others():
    q = qbits.quantize(dense(64, 64))
    view, want = q.t(), q.dequantize().t()
    x = dense(4, 64, seed=1).requires_grad_()
    torch.testing.assert_close(F.linear(x, view), F.linear(x, want))
    torch.testing.assert_close(F.linear(view, q), F.linear(want, q.dequantize()))
    (grad,) = torch.autograd.grad((x @ view).square().sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad((x @ want).square().sum(), x)[0])
    assert torch.equal(qbits.quantize(view).codes, qbits.quantize(want).codes)
    assert torch.equal(torch.compile(torch.add)(view, 1), want + 1)
    for clone in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert type(clone) is torch.Tensor and torch.equal(clone, want)
    parameter = nn.Parameter(view)
    assert isinstance(parameter, nn.Parameter) and isinstance(copy.deepcopy(parameter), nn.Parameter)
    parameter.sum().backward()
    torch.optim.SGD([parameter], lr=0.5).step()
    torch.testing.assert_close(q.dequantize(), qbits.quantize(want.t() - 0.5).dequantize())
