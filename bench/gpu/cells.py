"""Cells of the tables: what was measured, what bounds it, and the verdict. Pure: no GPU, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import quantiles


@dataclass(frozen=True)
class Bound:
    """A limit of one contender of a cell.

    kind: "ratio": its time over that of the fastest of `of` is at most `limit`;
        "share": the time the hardware needs at least, over its time, is at least `limit`;
        "us": its time in microseconds is at most `limit`.
    """

    label: str
    kind: str
    limit: float
    of: tuple[str, ...] = ()
    contender: str = "qbits"

    def value(self, cell: Cell) -> float | None:
        """What is compared with `limit`; None if a time it needs is missing.

        Rounded like the limits are, to hundredths, so that "at most 1.0" is not decided by noise.
        """
        time = cell.times.get(self.contender)
        others = [cell.times[name] for name in self.of if name in cell.times]
        if time is None or len(others) < len(self.of):
            return None
        if self.kind == "ratio":
            return round(time / min(others), 2)
        return round(cell.limit_us / time if self.kind == "share" else time, 2)

    def met(self, cell: Cell) -> bool:
        value = self.value(cell)
        if value is None:
            return False
        return value >= self.limit if self.kind == "share" else value <= self.limit


@dataclass
class Cell:
    """One row of a table: the same work done by each contender."""

    table: str
    name: str
    bounds: list[Bound]
    limit_us: float = 0.0  # the least time: bytes over copy bandwidth or operations over the matrix rate
    work: dict[str, float] = field(default_factory=dict)  # n, k, m, bytes, flops, whatever says what was done
    times: dict[str, float] = field(default_factory=dict)  # microseconds by contender
    errors: dict[str, str] = field(default_factory=dict)  # why a contender has no time
    spreads: dict[str, float] = field(
        default_factory=dict
    )  # of the times: between quartiles, over the median
    deviations: dict[str, float] = field(default_factory=dict)  # relative error of results, by contender

    def measured(self, samples: Mapping[str, Sequence[float]]) -> None:
        """Takes the median of each contender's times, in microseconds."""
        for name, times in samples.items():
            low, middle, high = quantiles(times, n=4, method="inclusive")
            self.times[name], self.spreads[name] = middle, (high - low) / middle

    def for_bound(self, bound: Bound) -> Cell:
        """A cell of that bound alone, with the contenders it compares."""
        names = (*bound.of, bound.contender)

        def own(values: dict) -> dict:
            return {name: values[name] for name in names if name in values}

        return replace(
            self,
            name=f"{self.name} {bound.contender}",
            bounds=[bound],
            times=own(self.times),
            errors=own(self.errors),
            spreads=own(self.spreads),
            deviations=own(self.deviations),
        )

    @property
    def share(self) -> float | None:
        """Of the hardware's limit."""
        time = self.times.get("qbits")
        return self.limit_us / time if time and self.limit_us else None

    @property
    def met(self) -> bool:
        return not self.errors and all(bound.met(self) for bound in self.bounds)

    def record(self) -> dict[str, object]:
        """The cell as JSON keeps it: with its verdicts."""
        kept = {key: value for key, value in asdict(self).items() if key != "bounds"}
        bounds = [asdict(b) | {"value": b.value(self), "met": b.met(self)} for b in self.bounds]
        return kept | {"share": self.share, "bounds": bounds, "met": self.met}

    @classmethod
    def from_record(cls, record: dict) -> Cell:
        names = ("label", "kind", "limit", "of", "contender")
        bounds = [Bound(**{n: tuple(b[n]) if n == "of" else b[n] for n in names}) for b in record["bounds"]]
        keys = ("table", "name", "limit_us", "work", "times", "errors", "spreads", "deviations")
        return cls(bounds=bounds, **{key: record[key] for key in keys})


def limit_us(bytes_moved: float, flops: float, bytes_per_s: float, flops_per_s: float) -> float:
    """The least time of work that moves so many bytes and does so many operations, in microseconds."""
    return max(bytes_moved / bytes_per_s, flops / flops_per_s) * 1e6


def product_bytes(n: int, k: int, m: int, weight_bytes: int) -> int:
    """Of x W^T in 16 bits: the weight once, x and the result."""
    return weight_bytes + 2 * m * (n + k)


# --- Text ---------------------------------------------------------------------------------------------------


def table(cells: list[Cell]) -> str:
    """The cells of one table as text: times, then each bound as value and limit, then the verdict."""
    contenders = _ordered(name for cell in cells for name in [*cell.times, *cell.errors])
    labels = _ordered(bound.label for cell in cells for bound in cell.bounds)
    shares = any(cell.share is not None for cell in cells)
    head = [
        cells[0].table,
        *(f"{name} us" for name in contenders),
        *labels,
        *(["of limit"] if shares else []),
        "",
    ]
    lines = [head]
    for cell in cells:
        bounds = {bound.label: _bound_text(bound, cell) for bound in cell.bounds}
        line = [cell.name]
        line += [_time_text(cell, name) for name in contenders]
        line += [bounds.get(label, "") for label in labels]
        if shares:
            line.append("" if cell.share is None else f"{100 * cell.share:.0f} %")
        lines.append([*line, "met" if cell.met else "failed" if cell.errors else "missed"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(_pad(c, w, i) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    ]
    errors = _ordered(f"{name}: {why}" for cell in cells for name, why in cell.errors.items())
    notes = [f"failed: {error}" for error in errors]
    for what, values in [
        ("relative error against the values of the codes", [cell.deviations for cell in cells]),
        ("spread of times between quartiles", [cell.spreads for cell in cells]),
    ]:
        worst = {name: max((own[name] for own in values if name in own), default=None) for name in contenders}
        if any(worst.values()):
            listed = ", ".join(f"{name} {value:.4f}" for name, value in worst.items() if value is not None)
            notes.append(f"largest {what}: {listed}")
    return "\n".join([line.rstrip() for line in text] + notes)


def summary(cells: list[Cell], target: float) -> str:
    """One line per table: how many of its cells are met, how many are slower than the best peer allows."""
    lines = []
    for name in _ordered(cell.table for cell in cells):
        own = [cell for cell in cells if cell.table == name]
        met = sum(cell.met for cell in own)
        slower = sum(any(b.label == "of best peer" and not b.met(c) for b in c.bounds) for c in own)
        failed = sum(bool(cell.errors) for cell in own)
        verdict = "met" if met >= target * len(own) and not slower and not failed else "missed"
        lines.append(
            f"{name}: {met} of {len(own)} cells met, {slower} slower than the best peer allows, "
            f"{failed} with something missing: {verdict}"
        )
    return "\n".join(lines)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _pad(text: str, width: int, column: int) -> str:
    return f"{text:<{width}}" if column == 0 else f"{text:>{width}}"


def _time_text(cell: Cell, name: str) -> str:
    if name in cell.times:
        time = cell.times[name]
        return f"{time:.1f}" if time < 1000 else f"{time:.0f}"
    return "failed" if name in cell.errors else ""


def _bound_text(bound: Bound, cell: Cell) -> str:
    value = bound.value(cell)
    if value is None:
        return "-"
    if bound.met(cell):
        sign = ">=" if bound.kind == "share" else "<="
    else:
        sign = "<" if bound.kind == "share" else ">"
    return f"{value:.2f} {sign} {bound.limit:.2f}"
