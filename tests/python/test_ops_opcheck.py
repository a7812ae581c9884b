"""torch.library.opcheck of every op: schema, fake kernel, autograd registration, AOT dispatch."""

import pytest
import torch
from torch.utils import _pytree as pytree

import cases
from qbits import ops


@pytest.mark.parametrize("case", cases.few(), ids=str)
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_opcheck(case, place):
    torch.library.opcheck(getattr(ops, case.op), case.arguments(place))


@pytest.mark.parametrize("name", ["linear_4bit", "linear_int8", "linear_int8_weight_only"])
def test_opcheck_of_the_op_for_export(name):
    for case in cases.few(name):
        arguments = case.arguments("cpu")
        arguments = (arguments[0].requires_grad_(), *arguments[1:])
        torch.library.opcheck(getattr(torch.ops.qbits, f"{name}_with_grad").default, arguments)


def test_every_op_has_cases():
    assert set(cases.OPS) == set(ops.__all__)
    assert {case.op for case in cases.few()} == set(cases.OPS)


@pytest.mark.parametrize("name", ops.__all__)
def test_runs_on_meta_tensors(name):
    case = next(case for case in cases.cases(name) if 0 not in case.shape)
    real, meta = (pytree.tree_leaves(case.call(place)) for place in ("cpu", "meta"))
    for want, got in zip(real, meta, strict=True):
        assert got.device.type == "meta"
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
