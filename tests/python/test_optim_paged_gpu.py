"""Paged optimizers on the GPU: graphs, streams, memory, and no waiting for anything."""

import gc

import pytest
import torch

from optim_cases import gradients, parameter
from qbits import optim
from qbits.optim import paging

pytestmark = pytest.mark.gpu

MIB = 1 << 20
SIZES = [70_001, 300, 1_000_003, 257, 5000, 300_000]


@pytest.fixture
def small(monkeypatch):
    """Buffers so small that there are many windows."""
    monkeypatch.setattr(paging.Pages, "OPTIONS", {"staging_bytes": 100_000})


def parameters(gpu):
    return [parameter(size, device=gpu, seed=i) for i, size in enumerate(SIZES)]


def set_gradients(params, seed):
    for i, param in enumerate(params):
        (grad,) = gradients(param.shape, 1, seed=seed + 7 * i)
        if param.grad is None:
            param.grad = grad.to(param.device)
        else:
            param.grad.copy_(grad)


def snapshot(optimizer, params):
    torch.cuda.synchronize()
    tensors = [param.detach().cpu() for param in params]
    for param in params:
        tensors += [value.cpu().clone() for _, value in sorted(optimizer.state[param].items())]
    return tensors


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def pair(gpu, name="AdamW8bit", **options):
    """The same parameters with an optimizer that does not page, and with one that does."""
    params, others = parameters(gpu), parameters(gpu)
    plain = getattr(optim, name)(params)
    return plain, params, getattr(optim, f"Paged{name}")(others, **options), others


def state_bytes(optimizer):
    return sum(pages.pager.resident_bytes() for pages in optimizer._pages.values())


@pytest.mark.parametrize("prefetches", [False, True])
@pytest.mark.parametrize("budget", [0, 700_000, 1 << 40])
def test_graphs(budget, prefetches, gpu, small):
    """Replays and eager steps in turn."""
    plain, params, paged, others = pair(gpu, device_budget=budget)
    for optimizer, own in ((plain, params), (paged, others)):
        set_gradients(own, 0)
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if prefetches:
            paged.prefetch()
        paged.step()
    for seed in range(1, 7):
        set_gradients(params, seed)
        set_gradients(others, seed)
        for optimizer in (plain, paged):
            optimizer.param_groups[0]["lr"] = 0.01 * seed
        plain.step()
        if seed % 3 == 0:
            paged.step()
        else:
            paged.write_groups()
            graph.replay()
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    with pytest.raises(RuntimeError, match=r"\[PagedAdamW8bit\] paging: got state that a CUDA graph uses"):
        paged.page_out()
    late = parameter(1000, device=gpu)
    late.grad = torch.ones_like(late)
    paged.add_param_group({"params": [late]})
    with pytest.raises(RuntimeError, match="paging: got state that a CUDA graph uses"):
        paged.step()


@pytest.mark.parametrize("case", ["no budget", "paged out", "prefetched"])
def test_graphs_that_are_refused(case, gpu, small):
    plain, params, paged, others = pair(gpu, device_budget=None if case == "no budget" else 0)
    set_gradients(others, 0)
    paged.step()
    if case == "paged out":
        paged.page_out()
    if case == "prefetched":
        paged.prefetch()
    message = (
        r"\[PagedAdamW8bit\] capture: got paged state that may move or is on its way, want device_budget"
    )
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        paged.step()
    torch.cuda.synchronize()
    paged.step()
    set_gradients(params, 0)
    plain.step()
    plain.step()
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_state_cannot_be_made_while_capturing(gpu):
    *_, paged, others = pair(gpu, device_budget=0)
    set_gradients(others, 0)
    message = r"\[PagedAdamW8bit\] capture: got parameters without state"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        paged.step()
    torch.cuda.synchronize()


@pytest.mark.parametrize("budget", [0, 700_000])
def test_a_step_waits_for_nothing(budget, gpu, small):
    *_, paged, others = pair(gpu, device_budget=budget)
    set_gradients(others, 0)
    paged.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        paged.prefetch()
        paged.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    busy = torch.cuda.Event()
    busy.record()
    paged.prefetch()
    paged.step()
    assert not busy.query()  # the host was here long before the GPU


@pytest.mark.parametrize("budget", [0, 700_000])
def test_side_streams_behind_other_work(budget, gpu, small):
    plain, params, paged, others = pair(gpu, device_budget=budget)
    for seed in range(4):
        set_gradients(params, seed)
        plain.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for seed in range(4):
            if seed > 0:
                paged.prefetch()
            torch.cuda._sleep(20_000_000)
            set_gradients(others, seed)
            paged.step()
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_steps_on_two_streams_in_turn(gpu, small):
    plain, params, paged, others = pair(gpu, device_budget=0)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for seed in range(6):
        set_gradients(params, seed)
        plain.step()
        now, before = streams[seed % 2], streams[1 - seed % 2]
        now.wait_stream(before)
        now.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(now):
            torch.cuda._sleep(5_000_000)
            set_gradients(others, seed)
            paged.step()
            if seed == 3:
                paged.page_out()
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_two_optimizers(gpu, small):
    plain, params, paged, others = pair(gpu, device_budget=0)
    second, third, paged_lion, fourth = pair(gpu, "Lion8bit", device_budget=300_000)
    for seed in range(4):
        for own in (params, others, third, fourth):
            set_gradients(own, seed)
        for optimizer in (plain, second):
            optimizer.step()
        paged.prefetch()
        paged_lion.prefetch()
        paged.step()
        paged_lion.step()
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    assert_equal(snapshot(paged_lion, fourth), snapshot(second, third))


def test_prefetch_in_the_backward_pass(gpu, small):
    layers = [torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)]).to(gpu) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    plain = optim.AdamW8bit(layers[0].parameters())
    paged = optim.PagedAdamW8bit(layers[1].parameters(), device_budget=0)
    for t in range(4):
        x = torch.randn(32, 256, device=gpu, generator=torch.Generator(gpu).manual_seed(t))
        for layer, optimizer in zip(layers, (plain, paged), strict=True):
            loss = layer(x).square().mean()
            if optimizer is paged and t > 0:
                next(layer[3].parameters()).register_hook(lambda grad: paged.prefetch())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_grad_scaler(gpu, small):
    plain, params, paged, others = pair(gpu, device_budget=300_000)
    for optimizer, own in ((plain, params), (paged, others)):
        scaler = torch.amp.GradScaler(init_scale=1024.0)
        for seed in range(4):
            optimizer.zero_grad()
            loss = sum((p * p).sum() for p in own)
            scaler.scale(loss * (float("inf") if seed == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    assert float(paged.state[others[2]]["step"]) == 3


@pytest.mark.parametrize("budget", [0, 40 * MIB])
def test_memory(budget, gpu):
    """The GPU holds the budget and three buffers; everything goes with the optimizer."""
    params = [torch.nn.Parameter(torch.zeros(16 * MIB, device=gpu)) for _ in range(4)]
    for param in params:
        param.grad = torch.ones_like(param)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer = optim.PagedAdamW8bit(params, device_budget=budget)
    for _ in range(2):
        optimizer.step()
    used = torch.cuda.max_memory_allocated() - before
    assert used <= budget + 3 * 32 * MIB + 2 * MIB
    assert state_bytes(optimizer) == (0 if budget == 0 else 16 * MIB * 130 // 64)
    state = optimizer.state[params[3]]["state1"]
    assert state.device.type == "cpu" and state.is_pinned()
    optimizer.page_out()
    assert torch.cuda.memory_allocated() - before <= MIB
    optimizer.step()
    del optimizer, state
    gc.collect()
    assert torch.cuda.memory_allocated() - before <= MIB


def test_by_default_what_is_free_holds_state(gpu):
    param = parameter(1_000_000, device=gpu)
    param.grad = torch.ones_like(param)
    optimizer = optim.PagedAdamW8bit([param])
    optimizer.step()
    assert state_bytes(optimizer) > 2_000_000 and optimizer.state[param]["state1"].is_cuda
    tight = optim.PagedAdamW8bit([param], device_reserve=1 << 50)
    tight.step()
    assert state_bytes(tight) == 0


def _cached_blocks(size, gpu):
    """What other tests have left in the allocator's cache, as far as it holds blocks of `size` bytes."""
    blocks = []
    while True:
        reserved = torch.cuda.memory_reserved()
        blocks.append(torch.empty(size, dtype=torch.uint8, device=gpu))
        if torch.cuda.memory_reserved() > reserved:
            blocks.pop()
            torch.cuda.empty_cache()
            return blocks


def test_a_step_that_runs_out_of_memory_is_repeated(gpu):
    """Real memory: an activation that has no room beside resident state."""
    params = [torch.nn.Parameter(torch.zeros(64 * MIB, dtype=torch.bfloat16, device=gpu)) for _ in range(4)]
    optimizer = optim.PagedAdamW32bit(params, device_budget=1 << 40)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert state_bytes(optimizer) == 4 * 512 * MIB
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    filler = _cached_blocks(128 * MIB, gpu)
    total = torch.cuda.mem_get_info()[1]
    room = torch.cuda.memory_reserved() + 256 * MIB
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:

        def train():
            activation = torch.ones(1024 * MIB, dtype=torch.uint8, device=gpu)
            del activation
            optimizer.step()
            return state_bytes(optimizer)

        assert optimizer.retry(train) == 2 * 512 * MIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        del filler
    assert float(optimizer.state[params[3]]["step"]) == 2
    assert all((param == params[0]).all() for param in params)
