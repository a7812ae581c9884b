"""accelerate moves quantized weights to and fro: offload hooks, empty weights and the Accelerator."""

import copy

import pytest
import torch
from torch import nn

import qbits
from quantized_layers import embedding, linear

accelerate = pytest.importorskip("accelerate")


def model(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32, bias=False))
    return qbits.quantize_(net, qbits.QuantizeConfig(**options), progress=False)


@pytest.fixture
def execution_device(device):
    return torch.device(device)


OPTIONS = {
    "nf4": {},
    "nf4dq": {"double_quant": True},
    "int4": {"format": "int4", "scale_dtype": torch.bfloat16},
    "int8": {"format": "int8"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cpu_offload(options, execution_device):
    net = model(**options)
    x = torch.randn(5, 64)
    want = copy.deepcopy(net).to(execution_device)(x.to(execution_device))
    accelerate.cpu_offload(net, execution_device=execution_device)
    assert net[0].weight.is_meta
    for _ in range(2):  # weights leave again after each forward
        got = net(x.to(execution_device))
        assert torch.equal(got, want)
        assert net[0].weight.is_meta


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_disk_offload(options, tmp_path, execution_device):
    net = model(**options)
    x = torch.randn(5, 64)
    want = copy.deepcopy(net).to(execution_device)(x.to(execution_device))
    accelerate.disk_offload(net, str(tmp_path), execution_device=execution_device)
    for _ in range(2):
        assert torch.equal(net(x.to(execution_device)), want)
        assert net[0].weight.is_meta


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_empty_weights(options):
    with accelerate.init_empty_weights():
        layers = [linear(options, 64, 32), embedding(options, 64, 32), *model(**options)[::2]]
    for layer in layers:
        weight = layer.weight
        assert isinstance(weight, qbits.QuantizedTensor) and isinstance(weight, nn.Parameter)
        assert all(t.is_meta for t in weight.tensors().values()) and not weight.requires_grad
    full = linear(options, 64, 32)
    layers[0].load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(3, 64)
    assert torch.equal(layers[0](x), full(x))


def test_accelerator_trains_around_it():
    torch.manual_seed(0)
    net = nn.Sequential(model(), nn.Linear(32, 4))
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net, optimizer = accelerator.prepare(net, optimizer)
    x = torch.randn(8, 64)
    before = net(x).square().mean()
    for _ in range(3):
        loss = net(x).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    assert net(x).square().mean() < before
