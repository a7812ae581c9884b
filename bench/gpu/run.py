"""A run of the GPU bench: what was asked for, what the machine can do, and what could not be made."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from bench.gpu import targets
from bench.gpu.cells import Bound, Cell, limit_us
from bench.gpu.products import CONTENDERS, Product

T = TypeVar("T")


@dataclass
class Unavailable:
    """Stands for a contender that could not be made."""

    why: str


@dataclass
class Run:
    """Filters, where empty means everything, and the measured ceilings of the machine."""

    only_shapes: Sequence[targets.Shape] = ()
    only_rows: Sequence[int] = ()
    peers: Sequence[str] = targets.PEERS
    copy_bytes_per_s: float = 0.0
    matrix_flops_per_s: float = 0.0
    traces: list[str] = field(default_factory=list)  # of what failed, for the log

    def shapes(self, shapes: Iterable[targets.Shape]) -> list[targets.Shape]:
        return [shape for shape in shapes if not self.only_shapes or shape in self.only_shapes]

    def rows(self, rows: Iterable[int]) -> list[int]:
        return [m for m in rows if not self.only_rows or m in self.only_rows]

    def contenders(self) -> dict[str, Callable[[Tensor], Product]]:
        return {name: make for name, make in CONTENDERS.items() if name in ("qbits", "bf16", *self.peers)}

    def fastest_peer(self, of: Sequence[str] = targets.PEERS) -> list[Bound]:
        """The bound of a cell with those of the peers `of` that take part; no bound where none does."""
        names = tuple(name for name in of if name in self.peers)
        return [Bound("of best peer", "ratio", targets.OF_FASTEST_PEER, names)] if names else []

    def limit_us(self, bytes_moved: float, flops: float = 0.0) -> float:
        return limit_us(bytes_moved, flops, self.copy_bytes_per_s, self.matrix_flops_per_s)

    def make(self, makers: dict[str, Callable[[], Product]]) -> dict[str, Product | Unavailable]:
        made: dict[str, Product | Unavailable] = {}
        for name, maker in makers.items():
            try:
                made[name] = maker()
            except Exception as exception:  # whatever a library raises belongs into its cells
                made[name] = Unavailable(self.why(name, exception))
        return made

    def attempt(self, cell: Cell, contender: str, work: Callable[[], T]) -> T | None:
        """What `work` gives; a number is the contender's time. What it raises is the contender's error."""
        try:
            result = work()
        except Exception as exception:
            cell.errors[contender] = self.why(contender, exception)
            return None
        if isinstance(result, float):
            cell.times[contender] = result
        return result

    def why(self, contender: str, exception: Exception) -> str:
        """One line on what `contender` raised; the traceback is kept for the log."""
        self.traces.append(f"{contender}: {traceback.format_exc()}")
        lines = str(exception).splitlines() or [""]
        return f"{type(exception).__name__}: {lines[0][:160]}"
