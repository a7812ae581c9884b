"""qbits.functional.igemm: operands that lie any way, torch.vmap, torch.compile and what is refused."""

import pytest
import torch
from torch.func import vmap

import qbits.functional as F
import reference
from qbits import _C


def codes(*shape, seed=0):
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def test_transposed_views_are_read_where_they_lie(device, monkeypatch):
    seen = []

    def record(a, transpose_a, b, transpose_b, out, call=_C.igemm):
        seen.append((a.data_ptr(), transpose_a, b.data_ptr(), transpose_b))
        call(a, transpose_a, b, transpose_b, out)

    monkeypatch.setattr(_C, "igemm", record)
    for batch in ((), (3,)):
        a, b = codes(*batch, 5, 70).to(device), codes(*batch, 9, 70, seed=1).to(device)
        at, bt = a.mT.contiguous(), b.mT.contiguous()
        want = reference.igemm(a.cpu(), b.cpu(), False, True)
        for left, right, *flags in (
            (a, b, False, True), (a, b.mT, False, False), (at.mT, bt, False, False), (at, bt.mT, True, True),
            (a.mT, b, True, True),
        ):  # fmt: skip
            assert torch.equal(F.igemm(left, right, *flags).cpu(), want)
            ptr, transpose_a, other, transpose_b = seen.pop()
            assert ptr == left.data_ptr() and other == right.data_ptr()
            assert transpose_a == (flags[0] != (not left.is_contiguous()))
            assert transpose_b == (flags[1] != (not right.is_contiguous()))
        gaps = torch.stack([a, a], -1)[..., 0]
        assert torch.equal(F.igemm(gaps, b, transpose_b=True).cpu(), want)
        assert torch.equal(F.igemm(a.flip(-1), torch._neg_view(-b.flip(-1)), False, True).cpu(), want)


def test_a_batch_that_is_one_matrix_repeated(device):
    a, b = codes(3, 4, 33).to(device), codes(33, 6, seed=1).to(device)
    assert torch.equal(F.igemm(a, b.expand(3, 33, 6)), torch.stack([F.igemm(one, b) for one in a]))


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("size", [3, 0])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap(batch, size, flags):
    a = codes(size, *batch, *((33, 4) if flags[0] else (4, 33)))
    b = codes(size, *batch, *((6, 33) if flags[1] else (33, 6)), seed=1)
    one = codes(*a.shape[1:], seed=2), codes(*b.shape[1:], seed=3)
    for left, right, dims in ((a, b, (0, 0)), (a, one[1], (0, None)), (one[0], b, (None, 0))):
        out = vmap(lambda x, y: F.igemm(x, y, *flags), in_dims=dims)(left, right)
        pairs = zip(
            left if dims[0] == 0 else [left] * size, right if dims[1] == 0 else [right] * size, strict=True
        )
        want = [F.igemm(x, y, *flags) for x, y in pairs]
        assert torch.equal(
            out, torch.stack(want) if size else torch.empty(0, *batch, 4, 6, dtype=torch.int32)
        )
    moved = vmap(lambda x, y: F.igemm(x, y, *flags), in_dims=(-1, 1))(a.movedim(0, -1), b.movedim(0, 1))
    assert torch.equal(moved, vmap(lambda x, y: F.igemm(x, y, *flags))(a, b))


def test_compiles_once_for_all_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    function = lambda a, b: F.igemm(a, b.mT) + 1  # noqa: E731
    fast = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for m, n, k in ((3, 5, 33), (4, 7, 64), (130, 6, 19)):
        a, b = codes(m, k), codes(n, k, seed=1)
        assert torch.equal(fast(a, b), function(a, b))
    assert counter.frame_count == 1


def test_refusals_say_what_it_takes():
    a, b = codes(4, 33), codes(33, 6)
    for bad in (None, [1], 3):
        for name, call in (("a", lambda x: F.igemm(x, b)), ("b", lambda x: F.igemm(a, x))):
            with pytest.raises(
                TypeError, match=rf"^\[igemm\] {name}: got {type(bad).__name__}, want a tensor$"
            ):
                call(bad)
    for flags in ((1, False), (None, False), (False, "yes")):
        with pytest.raises(TypeError, match=r"^\[igemm\] transpose_[ab]: got .*, want a bool$"):
            F.igemm(a, b, *flags)
    with pytest.raises(ValueError, match=r"b: got int8\[33, 6\] on cpu, transposed, want a depth of 33$"):
        F.igemm(a, b, transpose_b=True)
    with pytest.raises(ValueError, match=r"b: got int8\[33, 6\] on cpu, want 3 dimensions$"):
        F.igemm(a[None], b)
    with pytest.raises(ValueError, match=r"b: got int8\[2, 33, 6\] on cpu, want a batch of \[1\]$"):
        F.igemm(a[None], torch.stack([b, b]))
