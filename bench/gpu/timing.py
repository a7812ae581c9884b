"""How the GPU bench takes times: replayed CUDA graphs for kernels, the clock of the host for calls."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Call = Callable[[], object]

GRAPH_SECONDS = 2e-3  # work in one graph, so that its launch does not count
CELL_SECONDS = 60e-3  # replays of one graph
REPLAYS = (5, 15)
ROTATED_L2 = 3  # operands of one pass, in sizes of the L2 cache


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def copies(operand_bytes: int) -> int:
    """Sets of operands of so many bytes that a pass must rotate through; never one, which may stay cached."""
    return max(2, -(-ROTATED_L2 * l2_bytes() // operand_bytes))


class Timed:
    """Work of so many calls that is put on the stream again and again."""

    SLEEP_CYCLES = 2_000_000  # about a millisecond, in which the host gets ahead of the GPU

    calls: int
    replays: int

    def enqueue(self) -> None:
        raise NotImplementedError

    def replay(self) -> Replay:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(self.SLEEP_CYCLES)
        begin.record()
        self.enqueue()
        end.record()
        return Replay(begin, end, self.calls)


class Graph(Timed):
    """Passes over `calls` in one CUDA graph, each result of a pass in memory of its own."""

    def __init__(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call()
        torch.cuda.synchronize()
        self.work = calls  # whose operands a replay reads, so they must outlive it
        self.calls = len(calls)
        self.graph = self._capture(calls, 1)
        once = sorted(self.replay().seconds() for _ in range(3))[1] * self.calls
        rounds = max(1, min(200, round(GRAPH_SECONDS / once)))
        if rounds > 1:
            self.graph = self._capture(calls, rounds)
        self.calls *= rounds
        self.replays = max(REPLAYS[0], min(REPLAYS[1], int(CELL_SECONDS / (once * rounds))))

    def _capture(self, calls: Sequence[Call], rounds: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                # Alive together, so that no two calls of a round write to the same memory.
                self.results = [call() for call in calls]
        return graph

    def enqueue(self) -> None:
        self.graph.replay()


class Stream(Timed):
    """The same for calls that no graph can hold, each long enough that the host stays ahead of the GPU."""

    def __init__(self, calls: Sequence[Call], rounds: int = 3) -> None:
        self.work = [*calls] * rounds
        self.calls = len(self.work)
        self.replays = REPLAYS[0]
        for call in calls:
            call()

    def enqueue(self) -> None:
        for call in self.work:
            call()


class Replay:
    """A replay that may still be running."""

    def __init__(self, begin: torch.cuda.Event, end: torch.cuda.Event, calls: int) -> None:
        self.begin, self.end, self.calls = begin, end, calls

    def seconds(self) -> float:
        """Of one call."""
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) * 1e-3 / self.calls


def interleaved_us(graphs: Mapping[str, Timed]) -> dict[str, list[float]]:
    """Microseconds a call of each graph takes, in each of its replays in turn, A B C A B C ..."""
    for graph in graphs.values():
        graph.replay()
    replays: dict[str, list[Replay]] = {name: [] for name in graphs}
    for turn in range(REPLAYS[1]):
        for name, graph in graphs.items():
            if turn < graph.replays:
                replays[name].append(graph.replay())
    return {name: [r.seconds() * 1e6 for r in own] for name, own in replays.items()}


def host_us(calls: Sequence[Call], wall: bool, count: int = 100, repeats: int = 25) -> float:
    """Microseconds of host time a call takes, launch included: `count` calls enqueued without a pause.

    The least of `repeats`, so that other programs of the host do not count.

    wall: the time until the GPU has finished them, too, and the median.
    """

    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(count):
            calls[i % len(calls)]()
        if wall:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count * 1e6

    collecting = gc.isenabled()
    gc.disable()
    try:
        once()
        times = [once() for _ in range(repeats)]
        return statistics.median(times) if wall else min(times)
    finally:
        torch.cuda.synchronize()
        if collecting:
            gc.enable()


def _best_seconds(calls: Sequence[Call]) -> float:
    """Of the fastest of several ways to do the same. Not in a graph, where a copy is given to an engine."""

    def one(call: Call) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    return min(statistics.median(one(call) for _ in range(21)) for call in calls)


def copy_bytes_per_s() -> float:
    """Bytes read and written together by the better of two copies of 2 GiB."""
    source = torch.randint(-(1 << 62), 1 << 62, (1 << 28,), device="cuda")
    target = torch.empty_like(source)
    seconds = _best_seconds([lambda: target.copy_(source), lambda: torch.bitwise_not(source, out=target)])
    return 2 * source.nbytes / seconds


def update_bytes_per_s() -> float:
    """Bytes read and written together by an update of 2 GiB in place."""
    x = torch.randint(-(1 << 62), 1 << 62, (1 << 28,), device="cuda")
    return 2 * x.nbytes / _best_seconds([lambda: torch.bitwise_not(x, out=x), lambda: x.add_(1)])


def link_bytes_per_s(size: int = 1 << 28) -> float:
    """Bytes that each direction of the host link moves while both are busy, by the copy engines."""
    hosts = [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    devices = [torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2)]
    ways = [(torch.cuda.Stream(), devices[0], hosts[0]), (torch.cuda.Stream(), hosts[1], devices[1])]

    def both() -> None:
        main = torch.cuda.current_stream()
        for stream, _, _ in ways:
            stream.wait_stream(main)
        for stream, target, source in ways:
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        for stream, _, _ in ways:
            main.wait_stream(stream)

    return size / _best_seconds([both])


def matrix_flops_per_s(size: int = 8192) -> float:
    """Of cuBLAS, bfloat16, square matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out: Tensor = torch.empty_like(a)
    graph = Graph([lambda: torch.mm(a, b, out=out)])
    return 2 * size**3 / (statistics.median(interleaved_us({"mm": graph})["mm"]) * 1e-6)
