"""Which tensors optimizers take, subclasses among them, and what they say about others."""

import copy

import pytest
import torch

from optim_cases import gradients, make, parameter
from qbits import optim


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


class OwnParameter(torch.nn.Parameter):
    """As libraries make them to keep something beside the values."""


class OwnTensor(torch.Tensor):
    """Operators give this type, too."""


class Traced(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def of_kind(kind, param):
    data = param.detach().clone()
    return kind(data) if issubclass(kind, torch.nn.Parameter) else data.as_subclass(kind).requires_grad_()


@pytest.mark.parametrize("kind", [OwnParameter, OwnTensor])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"optim_bits": 8, "min_8bit_size": 0, "max_grad_norm": 0.5, "percentile_clipping": 50}),
        ("Lion", {"is_paged": True}),
        ("Adagrad", {"initial_accumulator_value": 0.1}),
        ("LAMB", {}),
        ("Muon", {"optim_bits": 8, "min_8bit_size": 0}),
    ],
)
def test_subclasses_are_stepped_as_tensors(name, options, kind, place):
    plain = [parameter((30, 40), dtype, place) for dtype in (torch.float32, torch.bfloat16)]
    own = [of_kind(kind, param) for param in plain]
    own[0].data = own[0].data.t().contiguous().t()  # with gaps
    pair = [getattr(optim, name)(params, **options) for params in (plain, own)]
    for seed in range(3):
        for i, param in enumerate(plain):
            param.grad = next(gradients(param.shape, 1, param.dtype, seed=10 * seed + i)).to(place)
            own[i].grad = param.grad.as_subclass(OwnTensor)
        for optimizer in pair:
            optimizer.step()
    for a, b in zip(plain, own, strict=True):
        assert type(b) is kind and torch.equal(a, b.as_subclass(torch.Tensor))
    for a, b in zip(plain, own, strict=True):
        for key, value in pair[0].state[a].items():
            assert torch.equal(value, pair[1].state[b][key])


def test_state_of_subclasses_is_saved(place):
    param = of_kind(OwnParameter, parameter(5000, device=place))
    optimizer = optim.AdamW8bit([param])
    (param.sum() * 2).backward()
    optimizer.step()
    again = copy.deepcopy(optimizer)
    fresh = make("AdamW", [param], optim_bits=8)
    fresh.load_state_dict(optimizer.state_dict())
    (twin,) = again.param_groups[0]["params"]
    assert type(twin) is OwnParameter
    for other, own in ((again, twin), (fresh, param)):
        own.grad = torch.ones_like(own)
        other.step()
        assert float(other.state[own]["step"]) == 2


def test_subclasses_that_act_on_operators_are_refused(place):
    param = of_kind(Traced, parameter(10, device=place))
    param.grad = torch.ones(10, device=place)
    with pytest.raises(TypeError, match=r"\[optimizer_step\] param: got Traced, want torch.Tensor"):
        optim.AdamW([param]).step()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("AdamW", {}, r"\[optimizer_step\] grad: got a tensor of layout torch.sparse_coo, want a dense"),
        ("AdamW", {"max_grad_norm": 1.0}, r"\[clipping\] grad: got a sparse gradient, want a dense one"),
        ("Muon", {}, r"\[Muon\] grad: got a sparse gradient, want a dense one"),
    ],
)
def test_sparse_gradients_are_refused(name, options, message, place):
    table = torch.nn.Embedding(10, 4, sparse=True, device=place)
    optimizer = getattr(optim, name)(table.parameters(), **options)
    table(torch.tensor([1, 2], device=place)).sum().backward()
    with pytest.raises(TypeError, match=message) as refusal:
        optimizer.step()
    assert len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [torch.nn.Parameter, OwnParameter])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float8_e5m2])
def test_dtypes_that_are_refused(dtype, kind, place):
    param = kind(torch.zeros(4, dtype=dtype, device=place))
    param.grad = torch.zeros_like(param)
    message = rf"\[optimizer_step\] param: got dtype {dtype}, want float32, bfloat16 or float16"
    with pytest.raises(TypeError, match=message):
        optim.AdamW([param]).step()
