"""Optimizers on the GPU: graphs, streams, many tensors, and no waiting for anything."""

import pytest
import torch

from optim_cases import DTYPES, HYPERPARAMETERS, gradients, make, parameter
from qbits import optim

pytestmark = pytest.mark.gpu


def state_of(optimizer, params):
    tensors = [param.detach().cpu() for param in params]
    for param in params:
        tensors += [value.cpu() for _, value in sorted(optimizer.state[param].items())]
    return tensors


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)  # float16 parameters do overflow


def pair(gpu, name, sizes, dtypes=(torch.float32,), **changes):
    """The same parameters on the CPU and on the GPU, each with an optimizer."""
    both = []
    for place in ("cpu", gpu):
        params = [parameter(n, dtypes[i % len(dtypes)], place, seed=i) for i, n in enumerate(sizes)]
        both.append((params, make(name, params, **changes)))
    return both


@pytest.mark.parametrize("kahan", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_the_cpu_and_the_gpu_write_the_same_bits(name, bits, kahan, gpu):
    sizes = [(i * 7919) % 70_000 + 1 for i in range(40)] + [300_007]
    (cpu_params, on_cpu), (gpu_params, on_gpu) = pair(
        gpu, name, sizes, DTYPES, optim_bits=bits, min_8bit_size=0, kahan_sum=kahan
    )
    for t in range(3):
        for i, (a, b) in enumerate(zip(cpu_params, gpu_params, strict=True)):
            (a.grad,) = gradients(a.shape, 1, a.dtype, seed=100 * t + i)
            b.grad = a.grad.to(gpu)
        on_cpu.step()
        on_gpu.step()
    assert_same(state_of(on_gpu, gpu_params), state_of(on_cpu, cpu_params))


@pytest.mark.parametrize("bits", [32, 8])
def test_more_tensors_than_one_launch_prepares(bits, gpu):
    sizes = [(i * 31) % 900 + 1 for i in range(2000)]
    (cpu_params, on_cpu), (gpu_params, on_gpu) = pair(gpu, "AdamW", sizes, optim_bits=bits, min_8bit_size=300)
    for i, (a, b) in enumerate(zip(cpu_params, gpu_params, strict=True)):
        (a.grad,) = gradients(a.shape, 1, seed=i)
        b.grad = a.grad.to(gpu)
    for optimizer in (on_cpu, on_gpu):
        optimizer.step()
        optimizer.step()
    assert_same(state_of(on_gpu, gpu_params), state_of(on_cpu, cpu_params))


def test_a_step_waits_for_nothing(gpu):
    params = [parameter(5000, device=gpu, seed=i) for i in range(3)]
    rate = torch.tensor(1e-3, device=gpu)
    optimizer = optim.AdamW8bit([{"params": params[:2]}, {"params": params[2:], "lr": rate}])
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.param_groups[0]["lr"] = 1e-4
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGD"])
def test_graphs(name, bits, gpu):
    """Replays count steps, read new gradients and follow a learning rate."""
    (_, plain), (_, captured) = [pair(gpu, name, [3000, 257, 70_001], optim_bits=bits)[1] for _ in range(2)]
    params = [[p for g in o.param_groups for p in g["params"]] for o in (plain, captured)]
    rates = [0.1, 0.01, 0.02, 0.005]
    grads = [
        [next(gradients(p.shape, 1, seed=9 * t + i)).to(gpu) for i, p in enumerate(params[0])]
        for t in range(4)
    ]
    static = [torch.zeros_like(p) for p in params[1]]
    graph = None
    for t in range(4):
        for p, s, g in zip(params[0], static, grads[t], strict=True):
            p.grad = g
            s.copy_(g)
        for optimizer in (plain, captured):
            optimizer.param_groups[0]["lr"] = rates[t]
        plain.step()
        if t == 0:  # makes the state
            for p, s in zip(params[1], static, strict=True):
                p.grad = s
            captured.step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured.step()
        else:
            captured.write_groups()
            graph.replay()
    assert_same(state_of(captured, params[1]), state_of(plain, params[0]))


def test_graphs_with_a_rate_in_a_tensor(gpu):
    rate = torch.tensor(0.1, device=gpu)
    param = parameter(300, device=gpu)
    optimizer = optim.AdamW([param], lr=rate, weight_decay=0.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for value in (0.1, 0.0, 0.5):
        rate.fill_(value)
        before = param.detach().clone()
        graph.replay()
        torch.testing.assert_close(before - param, torch.full_like(param, value), rtol=1e-3, atol=1e-6)


def test_eager_steps_between_replays(gpu):
    """A graph captured after hyperparameters changed writes them: eager steps must write them again."""
    param = parameter(300, device=gpu)
    optimizer = optim.SGD([param], lr=1.0)
    param.grad = torch.ones_like(param)
    start = param.detach().clone()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 2.0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for lr, replay in ((2.0, False), (2.0, True), (3.0, False), (2.0, True), (3.0, False)):
        optimizer.param_groups[0]["lr"] = lr
        graph.replay() if replay else optimizer.step()
    torch.testing.assert_close(start - param, torch.full_like(param, 1.0 + 2.0 + 2.0 + 3.0 + 2.0 + 3.0))


def test_state_cannot_be_made_while_capturing(gpu):
    param = parameter(300, device=gpu)
    param.grad = torch.ones_like(param)
    optimizer = optim.AdamW([param])
    message = r"\[AdamW\] capture: got parameters without state"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    torch.cuda.synchronize()


def test_two_streams(gpu):
    """Each optimizer works on the stream that is current, behind what is queued there."""
    runs = []
    for _ in range(2):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            param = parameter(1_000_000, device=gpu)
            optimizer = optim.AdamW8bit([param], lr=0.1)
            torch.cuda._sleep(10_000_000)
            for t in range(5):
                param.grad = next(gradients(param.shape, 1, seed=t)).to(gpu, non_blocking=True)
                optimizer.step()
        runs.append((optimizer, param))
    torch.cuda.synchronize()
    assert_same(*[state_of(optimizer, [param]) for optimizer, param in runs])


def test_the_cpu_and_the_gpu_in_one_optimizer(gpu):
    params = [parameter(5000, device=place) for place in ("cpu", gpu)]
    optimizer = optim.AdamW8bit(params)
    for grad in gradients(5000, 3):
        for param in params:
            param.grad = grad.to(param.device)
        optimizer.step()
    assert torch.equal(params[0], params[1].cpu())
    assert set(optimizer.skipped_counters) == {param.device for param in params}


def test_state_on_the_wrong_device_is_refused(gpu):
    param = parameter(300)
    optimizer = optim.AdamW([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.grad = None
    param.data = param.data.to(gpu)
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"(state1|step): got .* on cpu, want a tensor on cuda:0"):
        optimizer.step()


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW32bit"])
def test_memory(name, gpu):
    """2.03 bytes of state for each element in 8 bits, and nothing worth mentioning besides."""
    n = 1 << 24
    param = torch.nn.Parameter(torch.randn(n, device=gpu))
    param.grad = torch.randn_like(param)
    optimizer = getattr(optim, name)([param])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    assert torch.cuda.memory_allocated() - before <= (2.04 if name == "AdamW8bit" else 8.01) * n
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before <= 0.01 * 4 * n


def test_elements_past_2_31(gpu):
    n = 3_000_000_000
    if torch.cuda.mem_get_info()[0] < 8 * n:
        pytest.skip("needs 24 GB of GPU memory")
    param = torch.nn.Parameter(torch.zeros(n, dtype=torch.bfloat16, device=gpu))
    param.grad = torch.zeros_like(param)
    param.grad[-5:] = 1.0
    optimizer = optim.Lion8bit([param], lr=0.5)
    optimizer.step()
    assert (param[-5:] == -0.5).all() and (param[-300:-5] == 0).all() and (param[: 1 << 20] == 0).all()
    state = optimizer.state[param]
    assert state["absmax1"][-1] > 0 and (state["absmax1"][:-1] == 0).all()


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW32bit", "PagedLion8bit"])
def test_a_parameter_of_3e9_elements(name, gpu):
    """Slices at its start, around element 2^31 and at its end are those of small parameters."""
    n = 3_000_000_123
    if torch.cuda.mem_get_info()[0] < 48 * 2**30:
        pytest.skip("needs 48 GiB of free GPU memory")
    param = torch.nn.Parameter(torch.empty(n, dtype=torch.bfloat16, device=gpu).normal_())
    param.grad = torch.empty_like(param).normal_()
    starts = [0, 2**31 - 256 * 50, n // 256 * 256 - 256 * 99]
    parts = []
    for start in starts:
        parts.append(torch.nn.Parameter(param.detach()[start : start + 25_600].clone()))
        parts[-1].grad = param.grad[start : start + 25_600].clone()
    paged = {"device_budget": 1 << 30} if name.startswith("Paged") else {}
    whole = getattr(optim, name)([param], lr=1e-2, **paged)
    others = getattr(optim, name.removeprefix("Paged"))(parts, lr=1e-2)
    for _ in range(2):
        whole.step()
        others.step()
    torch.cuda.synchronize()
    for start, part in zip(starts, parts, strict=True):
        assert torch.equal(param.detach()[start : start + 25_600], part.detach())
        for key, value in others.state[part].items():
            if key != "step":
                begin = start // 256 if key.startswith("absmax") else start
                assert torch.equal(whole.state[param][key][begin : begin + len(value)].to(gpu), value)
