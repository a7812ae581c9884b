"""Hostile arguments by the hundred (`make fuzz`: ten thousand per op): a result or one clear refusal."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import cases
from qbits import ops
from qbits.formats import FORMATS

MESSAGE = re.compile(r"^\[\w+\] .+: got .*, want .+", re.DOTALL)
DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int32, torch.int64,
    torch.float64, torch.bool, torch.complex64,
)  # fmt: skip
SIZES = st.integers(-1, 9) | st.sampled_from([16, 33, 64, 65, 255, 256, 257])
HUGE = st.sampled_from([-(2**63), -(2**31), -1, 0, 1, 2**31, 2**62, 2**63 - 1])


@st.composite
def tensors(draw):
    """Any dtype and up to 9 dimensions, in any layout, with whatever bits: NaN and infinity among them."""
    shape = draw(st.lists(st.integers(0, 5), max_size=3) | st.just([256]) | st.lists(st.just(1), max_size=9))
    dtype = draw(st.sampled_from(DTYPES))
    x = (
        torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        .mul(100)
        .to(dtype)
    )
    if dtype.is_floating_point and x.numel() and draw(st.booleans()):
        x.reshape(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.floats(allow_nan=True, width=16))
    return x.transpose(0, -1) if x.dim() > 1 and draw(st.booleans()) else x


KINDS = {
    "Tensor": tensors(),
    "Optional[Tensor]": st.none() | tensors(),
    "str": st.sampled_from([*FORMATS, "", "nf5", "NF4", "\0", "é" * 99]),
    "int": SIZES | HUGE | st.sampled_from(FORMATS["nf4"].block_sizes),
    "List[int]": st.lists(SIZES | HUGE, max_size=9),
    "float": st.floats(),
    "bool": st.booleans(),
    "ScalarType": st.sampled_from(DTYPES),
}


def kind(argument):
    return KINDS[str(argument.real_type)]


def check(op, arguments):
    """Runs the op: it may refuse, with the message of a refusal, and must otherwise give plain tensors."""
    before = [a.clone() if torch.is_tensor(a) else a for a in arguments]
    try:
        result = op(*arguments)
    except (ValueError, TypeError, IndexError) as error:
        assert MESSAGE.match(str(error)), f"{type(error).__name__}: {error}"
        return
    except RuntimeError as error:  # torch's own words for an output that no memory could hold
        assert re.search("can't allocate memory|out of memory|calculation overflowed", str(error)), error
        return
    for out in pytree.tree_leaves(result):
        assert out.is_contiguous() and not out.requires_grad
    for was, now in zip(before, arguments, strict=True):
        if torch.is_tensor(was):
            assert torch.equal(was.nan_to_num(7), now.nan_to_num(7)), "an input was written"


@pytest.mark.parametrize("name", ops.__all__)
def test_anything(name):
    op = getattr(ops, name)

    @given(st.tuples(*[kind(argument) for argument in op._schema.arguments]))
    def run(arguments):
        check(op, arguments)

    run()


@pytest.mark.parametrize("name", ops.__all__)
def test_one_wrong_argument(name):
    op = getattr(ops, name)
    chosen = cases.few(name)

    @given(st.data())
    def run(data):
        arguments = list(data.draw(st.sampled_from(chosen)).arguments("cpu"))
        at = data.draw(st.integers(0, len(arguments) - 1))
        arguments[at] = data.draw(kind(op._schema.arguments[at]))
        check(op, arguments)

    run()
