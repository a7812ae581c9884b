"""Optimizers of DTensors (FSDP2, tensor parallelism): state is sharded as parameters are, and saved whole."""

import copy
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import optim_cases
import qbits
from optim_cases import gradients, make, parameter
from qbits import optim

NEEDS_GLOO = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
)
# Rows that are no whole number of blocks; neither 2 nor 4 divides the number of rows.
SHAPES = {"matrix": (9, 576), "small": (7, 300), "vector": (5001,), "cube": (5, 30, 40), "bfloat": (11, 600)}


class Params(nn.Module):
    def __init__(self, device):
        super().__init__()
        for i, (name, shape) in enumerate(SHAPES.items()):
            dtype = torch.bfloat16 if name == "bfloat" else torch.float32
            setattr(self, name, parameter(shape, dtype, device, seed=i))


def distribute(tensor, mesh, *placements):
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def step(model, optimizer, seeds):
    """Steps whose gradients do not depend on who computes them."""
    for seed in seeds:
        for i, param in enumerate(model.parameters()):
            (grad,) = gradients(param.shape, 1, param.dtype, seed=100 * seed + i)
            grad = grad.to(param.device)
            if optim.sharding.as_dtensor(param) is not None:
                grad = distribute(grad, param.device_mesh, *param.placements)
            param.grad = grad
        optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def snapshot(model, optimizer):
    everything = {}
    for name, param in model.named_parameters():
        everything[name] = whole(param.detach()).clone()
        for key, value in optimizer.state[param].items():
            everything[f"{name}.{key}"] = whole(value).clone()
    return everything


def assert_equal(got, want):
    assert got.keys() == want.keys(), (got.keys(), want.keys())
    for key, value in want.items():
        assert got[key].dtype == value.dtype and torch.equal(got[key], value), key


def sharded(mesh):
    from torch.distributed.fsdp import fully_shard

    model = Params(mesh.device_type)
    fully_shard(model, mesh=mesh)
    return model


def options(name):
    rounding = "kahan_sum" if name == "AdEMAMix" else "stochastic_rounding"
    return {**optim_cases.HYPERPARAMETERS[name], "optim_bits": 8, rounding: True}


def saves(mesh, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    for name in ("AdamW", "AdEMAMix"):
        model = sharded(mesh)
        optimizer = getattr(optim, name)(model.parameters(), **options(name))
        step(model, optimizer, range(3))
        states = {key: optimizer.state[param] for key, param in model.named_parameters()}
        dtypes = {key: state["state1"].dtype for key, state in states.items()}
        # By the global size, 5184 elements for the first; shards of vectors would cut through blocks.
        eight = {"matrix", "cube", "bfloat"}
        assert dtypes == {key: torch.uint8 if key in eight else torch.float32 for key in SHAPES}
        lead = (2,) if name == "AdEMAMix" else ()
        for key, blocks in (("matrix", 3), ("cube", 5), ("bfloat", 3)):
            rows = SHAPES[key][0]
            assert states[key]["absmax1"].shape == (*lead, rows, blocks)
            assert states[key]["absmax2"].placements == getattr(model, key).placements
            local = getattr(model, key).to_local().shape[0]
            assert states[key]["absmax1"].to_local().shape == (*lead, local, blocks)
        compensated = [key for key, state in states.items() if "kahan_comp" in state]
        assert compensated == (["bfloat"] if name == "AdEMAMix" else [])
        for key in compensated:
            assert states[key]["kahan_comp"].placements == getattr(model, key).placements
        own, state = get_state_dict(model, optimizer)
        dcp.save({"model": own, "optim": state}, checkpoint_id=folder / name)
        full = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
        full = copy.deepcopy(full)
        step(model, optimizer, range(3, 6))
        result = snapshot(model, optimizer)
        if dist.get_rank() == 0:
            torch.save({"full": full, "result": result}, folder / f"{name}.pt")


def loads(mesh, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    for name in ("AdamW", "AdEMAMix"):
        saved = torch.load(folder / f"{name}.pt", weights_only=False)
        model = sharded(mesh)
        # A checkpoint is read into the tensors there are.
        kahan = name == "AdEMAMix"
        optimizer = getattr(optim, name)(model.parameters(), lr=123.0, optim_bits=8, kahan_sum=kahan)
        own, state = get_state_dict(model, optimizer)
        dcp.load({"model": own, "optim": state}, checkpoint_id=folder / name)
        set_state_dict(model, optimizer, model_state_dict=own, optim_state_dict=state)
        step(model, optimizer, range(3, 6))
        assert_equal(snapshot(model, optimizer), saved["result"])

        # Plain parameters go on with what was saved whole, and keep its blocks.
        plain = Params(mesh.device_type)
        plain.load_state_dict(saved["full"][0])
        alone = getattr(optim, name)(plain.parameters(), lr=123.0)
        set_state_dict(plain, alone, model_state_dict=saved["full"][0], optim_state_dict=saved["full"][1])
        step(plain, alone, range(3, 6))
        assert_equal(snapshot(plain, alone), saved["result"])


def whole_states_are_sharded(mesh, folder):
    """A state dict of plain parameters is loaded for DTensors."""
    for name in ("AdamW", "AdEMAMix", "Lion"):
        plain, model = Params(mesh.device_type), sharded(mesh)
        one = getattr(optim, name)(plain.parameters(), **options(name))
        step(plain, one, range(3))
        other = getattr(optim, name)(model.parameters(), **options(name))
        other.load_state_dict(one.state_dict())
        got = snapshot(model, other)
        rows = optim.rows_of_state(one.state_dict())["state"]
        for i, key in enumerate(("matrix", "small", "vector", "cube", "bfloat")):
            for part, value in rows[i].items():
                if key != "vector":
                    assert torch.equal(got[f"{key}.{part}"], value), (key, part)
        assert got["vector.state1"].dtype == torch.float32
        table = torch.tensor(qbits.formats.FORMATS["dynamic"].codebook, device=mesh.device_type)
        codes, scales = one.state[plain.vector]["state1"], one.state[plain.vector]["absmax1"]
        first, own = (codes[0], scales[0]) if name == "AdEMAMix" else (codes, scales)
        want = table[first.long()] * own.repeat_interleave(256)[: len(first)]
        wide = got["vector.state1"]
        assert torch.equal(wide[0] if name == "AdEMAMix" else wide, want)
        step(model, other, [3])


def trains(mesh, folder):
    """FSDP2 as users call it. Rows are whole blocks, so that plain parameters have the same ones."""
    from torch.distributed.fsdp import fully_shard

    def build():
        torch.manual_seed(0)
        layers = qbits.nn.StableEmbedding(101, 256), nn.Linear(256, 512), nn.Linear(512, 101)
        return nn.Sequential(*layers).to(mesh.device_type)

    alone, model = build(), build()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizers = [optim.AdamW8bit(m.parameters(), lr=1e-3) for m in (alone, model)]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokens = torch.randint(101, (4 * ranks, 9), generator=torch.Generator().manual_seed(1))
    tokens = tokens.to(mesh.device_type)
    for _ in range(5):
        for m, optimizer, own in (
            (alone, optimizers[0], tokens),
            (model, optimizers[1], tokens[4 * rank : 4 * rank + 4]),
        ):
            loss = nn.functional.cross_entropy(m(own[:, :-1]).flatten(0, 1), own[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    table, matrix = model[0].weight, model[1].weight
    assert optimizers[1].state[table]["state1"].dtype == torch.float32  # as the module wants it
    assert optimizers[1].state[matrix]["state1"].dtype == torch.uint8
    for a, b in zip(alone.parameters(), model.parameters(), strict=True):
        # Of gradients next to zero the sign decides about a step of 1e-3, and ranks sum in another order.
        assert (whole(b) - a).abs().mean() < 2e-6


def columns(mesh, folder):
    """Tensor parallelism: columns cut between blocks keep 8 bits; gradients may come in other placements."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    for shape, placement, bits in (
        ((6, 1024), Shard(1), 8),
        ((8, 600), Shard(1), 32),
        ((5, 1024), Replicate(), 8),
        ((4096,), Replicate(), 8),
        ((5, 4, 512), Shard(1), 32),
    ):
        plain = parameter(shape, device=mesh.device_type)
        param = nn.Parameter(distribute(plain.detach().clone(), mesh, placement))
        pair = [make("AdamW", [p], optim_bits=bits, min_8bit_size=0) for p in (plain, param)]
        grads = [grad.to(mesh.device_type) for grad in gradients(shape, 3)]
        for i, grad in enumerate(grads):
            plain.grad = grad
            param.grad = distribute(grad, mesh, placement if i else Replicate())
            for optimizer in pair:
                optimizer.step()
        pair[1].param_groups[0]["optim_bits"] = 8
        assert torch.equal(whole(param), plain), shape
        assert pair[1]._bits(pair[1].param_groups[0], param) == bits, shape
        state = [optimizer.state[p] for optimizer, p in zip(pair, (plain, param), strict=True)]
        for key, value in state[0].items():
            assert torch.equal(whole(state[1][key]).flatten(), value.flatten()), (shape, key)

    param = nn.Parameter(distribute(torch.ones(4, 4, device=mesh.device_type), mesh, Shard(0)))
    param.grad = param.detach().clone()
    for name in ("LAMB", "LARS"):
        with pytest.raises(TypeError, match=rf"\[{name}\] param: got a sharded one, want whole tensors"):
            getattr(optim, name)([param]).step()
    adagrad = optim.Adagrad8bit([param], initial_accumulator_value=0.5, min_8bit_size=0)
    adagrad.step()
    assert torch.allclose(whole(param).cpu(), torch.full((4, 4), 1 - 0.01 / 1.5**0.5))
    partial = nn.Parameter(
        qbits.optim.sharding.as_dtensor(param).from_local(
            torch.ones(2, device=mesh.device_type), mesh, [Partial()]
        )
    )
    partial.grad = partial.detach().clone()
    with pytest.raises(TypeError, match="param: got a DTensor of P"):
        optim.AdamW([partial]).step()
    param.grad = torch.ones(4, 4, device=mesh.device_type)
    with pytest.raises(TypeError, match="grad: got a plain tensor, want a DTensor, as param is"):
        optim.AdamW([param]).step()


def clips(mesh, folder):
    """Norms are those of whole gradients."""
    from torch.distributed.tensor import Replicate, Shard

    sets = [
        [parameter(s, device=mesh.device_type, seed=i) for i, s in enumerate(((9, 64), (301,), (6, 8)))]
        for _ in range(2)
    ]
    kinds = (Shard(0), Shard(0), Replicate())
    pairs = zip(sets[1], kinds, strict=True)
    sets[1] = [nn.Parameter(distribute(p.detach(), mesh, kind)) for p, kind in pairs]
    pair = [optim.AdamW(s, lr=0.1, max_grad_norm=0.5, percentile_clipping=40) for s in sets]
    for t in range(6):
        for params, optimizer in zip(sets, pair, strict=True):
            for i, (param, kind) in enumerate(zip(params, kinds, strict=True)):
                (grad,) = gradients(param.shape, 1, seed=10 * t + i)
                grad = grad.to(mesh.device_type)
                param.grad = grad if params is sets[0] else distribute(grad, mesh, kind)
            optimizer.step()
    for a, b in zip(*sets, strict=True):
        torch.testing.assert_close(whole(b), a, rtol=1e-4, atol=1e-5)
    sets[1][0].grad = distribute(torch.full((9, 64), torch.nan, device=mesh.device_type), mesh, Shard(0))
    before = whole(sets[1][2].detach()).clone()
    pair[1].step()
    assert torch.equal(whole(sets[1][2]), before) and pair[1].skipped() == 1


def worker(rank, port, ranks, folder, tasks, backend):
    from torch.distributed.device_mesh import init_device_mesh

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device = "cpu" if backend == "gloo" else "cuda"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=ranks)
    try:
        for task in tasks:
            task(init_device_mesh(device, (ranks,)), folder)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # test_fsdp.py says why


def spawn(ranks, folder, *tasks, backend="gloo"):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (port, ranks, folder, tasks, backend), nprocs=ranks, join=True)


@NEEDS_GLOO
def test_checkpoints_are_for_any_number_of_processes(tmp_path):
    spawn(2, tmp_path, saves)
    for ranks in (1, 4):
        spawn(ranks, tmp_path, loads)


@NEEDS_GLOO
def test_two_processes(tmp_path):
    spawn(2, tmp_path, whole_states_are_sharded, trains, columns, clips)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(tmp_path):
    spawn(2, tmp_path, saves, whole_states_are_sharded, trains, columns, clips, backend="nccl")
    spawn(1, tmp_path, loads, backend="nccl")


@pytest.mark.parametrize("name", ["AdamW", "AdEMAMix", "Lion"])
def test_layouts_turn_into_each_other(name):
    params = [parameter(shape) for shape in ((9, 576), (6, 512), (5, 30, 40), (300,), (0, 7), (3, 10))]
    optimizer = make(name, params, optim_bits=8, min_8bit_size=0)
    for seed in range(3):
        for param in params:
            (param.grad,) = gradients(param.shape, 1, seed=seed)
        optimizer.step()
    flat = optimizer.state_dict()
    rows = optim.rows_of_state(flat)
    back = optim.flat_state(rows)
    for i, param in enumerate(params):
        own, by_row, again = (saved["state"][i] for saved in (flat, rows, back))
        exact = param.ndim < 2 or param.shape[1:].numel() % 256 == 0
        for key, value in own.items():
            assert again[key].shape == value.shape and again[key].dtype == value.dtype
            assert not exact or torch.equal(again[key], value)
        if exact or param.numel() == 0:
            continue
        table = torch.tensor(qbits.formats.FORMATS["dynamic"].codebook)
        codes, scales = own["state1"], own["absmax1"]
        new, absmax = by_row["state1"], by_row["absmax1"]
        if name == "AdEMAMix":
            codes, scales, new, absmax = codes[1], scales[1], new[1], absmax[1]
        k = param[0].numel()
        values = table[codes.long()] * scales.repeat_interleave(256)[: param.numel()].view(param.shape)
        assert absmax.shape == (len(param), -(-k // 256))
        for row in range(len(param)):
            flat_row = values[row].flatten()
            for block, scale in enumerate(absmax[row]):
                part = flat_row[256 * block : 256 * (block + 1)]
                assert scale == part.abs().max()
                got = table[new[row].flatten()[256 * block : 256 * (block + 1)].long()] * scale
                # Half the widest gap between codes.
                assert ((got - part).abs() <= 0.0071 * scale).all()
                assert (got[part < 0] < 0).all()
