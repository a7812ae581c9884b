"""Which columns of which linear layers' inputs hold outliers: what LLM.int8() computes apart, and why."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qbits.codec import dtype_name
from qbits.config import DEFAULT_THRESHOLD
from qbits.functional.int8 import as_threshold
from qbits.nn.quantized_linear import is_conv1d
from qbits.ops._library import FLOAT32

_BINS = 512  # of a row of the plot, at most


@dataclass(frozen=True, eq=False)
class LayerOutliers:
    """What reached one linear layer. A row is one vector of K elements: in language models, a token."""

    name: str
    """Of the module in the model; "" if it is the model."""
    rows: int
    """How many rows the layer was given, 0 if it was not called."""
    counts: Tensor
    """int64 [K], on the CPU: in how many rows the element of this column was an outlier."""
    largest: Tensor
    """float32 [K], on the CPU: the largest magnitude in the column, outlier or not; a NaN is passed over."""
    nans: int
    """How many elements were NaN."""

    @property
    def columns(self) -> int:
        """K, the input features of the layer."""
        return self.counts.numel()

    @property
    def outlier_columns(self) -> list[int]:
        """The columns that held an outlier, ascending."""
        return self.counts.nonzero().flatten().tolist()

    @property
    def share(self) -> float:
        """Outlier columns over columns."""
        return len(self.outlier_columns) / max(self.columns, 1)

    def records(self) -> list[dict[str, Any]]:
        """One for each outlier column: its number, in how many rows it was one, its largest magnitude."""
        found = self.outlier_columns
        values = zip(found, self.counts[found].tolist(), self.largest[found].tolist(), strict=True)
        return [{"column": column, "rows": rows, "largest": largest} for column, rows, largest in values]

    def to_dict(self) -> dict[str, Any]:
        """The record in Python's own types; an infinite magnitude stays infinite."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "share": self.share,
            "largest": self.largest.max().item() if self.columns else 0.0,
            "nans": self.nans,
            "outliers": self.records(),
        }


@dataclass(frozen=True, eq=False)
class Outliers:
    """What `qbits.outliers` found. Printed, it is its table."""

    threshold: float
    """From where on an element was an outlier."""
    layers: dict[str, LayerOutliers]
    """By name, every linear layer in the order of `model.named_modules()`."""

    def to_dict(self) -> dict[str, Any]:
        """The threshold and, by name, LayerOutliers.to_dict() of each layer."""
        return {
            "threshold": self.threshold,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
        }

    def table(self, columns: int = 3) -> str:
        """One line for each layer that has outliers, and a summary.

        `columns` is how many columns of each it names, the largest first, with the number of rows in which
        each was an outlier.
        """
        lines = [("layer", "rows", "columns", "outliers", "share", "largest", "column (in rows)")]
        for layer in self.layers.values():
            records = sorted(layer.records(), key=lambda r: (-r["largest"], r["column"]))
            if records:
                named = (f"{r['column']} ({r['rows']})" for r in records[:columns])
                more = ("...",) if len(records) > columns else ()
                counted = (str(layer.rows), str(layer.columns), str(len(records)), f"{layer.share:.2%}")
                largest = f"{records[0]['largest']:.1f}"
                lines.append((_shown(layer.name), *counted, largest, ", ".join((*named, *more))))
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = []
        for first, *cells, last in lines if len(lines) > 1 else ():
            numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:-1], strict=True)]
            text.append("   ".join([first.ljust(widths[0]), *numbers, last]))
        return "\n".join([*text, self._summary(len(lines) - 1)])

    __str__ = table

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws a heat map into `path`, a PNG unless its suffix says otherwise.

        A row is a layer, in order; across it lie its columns, from the first to the last, those of layers
        with more than the picture has room for in groups. The colour is the largest magnitude in each, on a
        logarithmic scale that begins at the threshold: what stays below it is grey.

        Raises:
            ImportError: matplotlib is not installed.
            OSError, ValueError: as matplotlib's `savefig`, for a path or a suffix.
        """
        try:
            from matplotlib import colormaps
            from matplotlib.colors import LogNorm
            from matplotlib.figure import Figure
        except ImportError as error:
            want = "pip install 'qbits[plot]'"
            raise ImportError(f"[Outliers.plot] matplotlib: got none installed, want {want}") from error
        layers = list(self.layers.values())
        bins = min(_BINS, max(1, *(layer.columns for layer in layers)))
        # float64, in which no magnitude comes to lie above its own logarithm.
        image = torch.stack([_binned(layer.largest, bins) for layer in layers]).double()
        finite = image[image.isfinite()]
        # At least a tenth above the threshold, or a model without outliers has no scale.
        top = max(finite.max().item() if len(finite) else 0.0, 1.1 * self.threshold)
        # A Figure of its own touches neither pyplot's state nor the back end the user has chosen.
        figure = Figure(figsize=(9, min(1.2 + 0.16 * len(layers), 16)), dpi=100, layout="constrained")
        axis = figure.subplots()
        colours = colormaps["inferno_r"].with_extremes(bad="#e8e8e8", under="#e8e8e8", over="#00c0ff")
        norm = LogNorm(self.threshold, top)
        shown = axis.imshow(image.numpy(), cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        every = math.ceil(len(layers) / 90)
        names = [_shown(layer.name) for layer in layers[::every]]
        axis.set_yticks(range(0, len(layers), every), names, fontsize=6)
        axis.set_xticks([-0.5, bins / 2 - 0.5, bins - 0.5], ["first", "columns", "last"], fontsize=8)
        figure.colorbar(shown, label=f"largest magnitude (grey: below {self.threshold:g})", pad=0.01)
        figure.savefig(path)

    def _summary(self, affected: int) -> str:
        columns = sum(layer.columns for layer in self.layers.values())
        found = sum(len(layer.outlier_columns) for layer in self.layers.values())
        text = (
            f"{affected} of {len(self.layers)} layers have elements |x| >= {self.threshold:g}, "
            f"in {found} of {columns} columns ({found / max(columns, 1):.2%})"
        )
        idle = sum(layer.rows == 0 for layer in self.layers.values())
        nans = sum(layer.nans for layer in self.layers.values())
        text += f"; {idle} layers got no rows" if idle else ""
        return text + (f"; {nans} elements were NaN" if nans else "")


def outliers(model: nn.Module, data: Any, threshold: float = DEFAULT_THRESHOLD) -> Outliers:
    """Runs `data` through `model` and reports where the inputs of its linear layers hold outliers.

    Watched are nn.Linear, its subclasses (`qbits.nn`'s among them) and transformers' Conv1D, by the tensor
    their call is given first. A module that occurs several times is one layer, under its first name, and gets
    the rows of all its calls; one whose weight is used without a call gets none. Elements are compared as
    float32; an infinity is an outlier, a NaN is not, as in `quantize_int8_rowwise`. Padding is counted like
    any row. The model runs in evaluation mode, without gradients and not compiled; afterwards each of its
    modules is in the mode it was in. Counts gather on the devices of the inputs, and nothing waits for them
    until the end.

    Args:
        model: any module, also a single layer.
        data: inputs as a DataLoader yields them, where the model expects them: tensors; lists or tuples of
            positional arguments; mappings of keyword arguments. Or one tensor, tuple or mapping (a list is
            taken for several inputs).
        threshold: from where on |x| is an outlier: positive, and in the normal range of float32.

    Raises:
        TypeError: the model is no module, the threshold no number, or an input none of these kinds.
        ValueError: the threshold does not fit, the model has no linear layer, a layer is given something else
            than [..., K], or no row reached any layer (no data, for instance).
        Whatever the model raises; its hooks and modes are restored then, too.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"[outliers] model: got {type(model).__name__}, want nn.Module")
    limit = _limit(threshold)
    watched = [
        _Watched(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or is_conv1d(module)
    ]
    if not watched:
        raise ValueError(f"[outliers] model: got {type(model).__name__} without a linear layer, want one")
    # Code that is compiled already would not see the hooks.
    with _watching(model, watched, limit), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for args, kwargs in _inputs(data):
            model(*args, **kwargs)
    if not any(layer.rows for layer in watched):
        raise ValueError(
            "[outliers] data: got no row that reached a linear layer, want at least one input with rows"
        )
    return Outliers(limit, {layer.name: layer for layer in _results(watched)})


class _Watched:
    """One layer and what has been counted of its inputs so far."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module = name, module
        self.rows = 0
        # Of the columns, then one more: the counts, and the number of NaN; the magnitudes.
        self.counts: Tensor | None = None
        self.largest: Tensor | None = None

    @property
    def columns(self) -> int:
        """K. A lazy layer knows it after its first call only."""
        return self.module.weight.shape[0] if is_conv1d(self.module) else self.module.in_features

    def add(self, x: Tensor, threshold: float) -> None:
        columns = self.columns
        if x.dim() == 0 or x.shape[-1] != columns or x.is_complex():
            got, want = f"{dtype_name(x.dtype)} {list(x.shape)}", f"real [..., {columns}]"
            raise ValueError(f"[outliers] input of {_shown(self.name)}: got {got}, want {want}")
        rows = math.prod(x.shape[:-1])
        if rows == 0:
            return
        magnitude = x.detach().reshape(rows, columns).float().abs()
        self.rows += rows
        nan = magnitude.isnan()
        magnitude.masked_fill_(nan, 0.0)
        counts = torch.cat([(magnitude >= threshold).sum(0), nan.sum()[None]])
        largest = magnitude.amax(0)
        if self.counts is None or self.largest is None:
            self.counts, self.largest = counts, largest
            return
        # Not in place: what was made in inference mode could not be changed outside of it.
        self.counts = self.counts + counts.to(self.counts.device)
        self.largest = torch.maximum(self.largest, largest.to(self.largest.device))


@contextmanager
def _watching(model: nn.Module, watched: list[_Watched], threshold: float) -> Iterator[None]:
    """The model in evaluation mode, its layers' inputs counted; both ends with the block, however it does."""
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    try:
        for layer in watched:

            def count(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: _Watched = layer
            ) -> None:
                x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
                if x is not None:  # else the layer itself says what it lacks
                    layer.add(x, threshold)

            handles.append(layer.module.register_forward_pre_hook(count, with_kwargs=True))
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training


def _inputs(data: Any) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """The arguments of each call of the model."""
    if isinstance(data, (Tensor, tuple, Mapping)):
        data = [data]
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise TypeError(f"[outliers] data: got {type(data).__name__}, want an iterable of inputs, or one")
    for item in data:
        if isinstance(item, Tensor):
            yield (item,), {}
        elif isinstance(item, Mapping):
            yield (), item
        elif isinstance(item, (tuple, list)):
            yield tuple(item), {}
        else:
            want = "a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments"
            raise TypeError(f"[outliers] data: got an input of type {type(item).__name__}, want {want}")


def _results(watched: list[_Watched]) -> Iterator[LayerOutliers]:
    """The layers in order, with all their counts fetched at once: one pair of transfers per device."""
    fetched: dict[int, tuple[Tensor, Tensor]] = {}
    by_device: dict[torch.device, list[tuple[int, Tensor, Tensor]]] = {}
    for i, layer in enumerate(watched):
        if layer.counts is not None and layer.largest is not None:
            by_device.setdefault(layer.counts.device, []).append((i, layer.counts, layer.largest))
    for group in by_device.values():
        indices, counts, largest = zip(*group, strict=True)
        parts = torch.cat(counts).cpu().split([len(c) for c in counts])
        magnitudes = torch.cat(largest).cpu().split([len(m) for m in largest])
        fetched.update(zip(indices, zip(parts, magnitudes, strict=True), strict=True))
    for i, layer in enumerate(watched):
        if i in fetched:
            part, magnitude = fetched[i]
            yield LayerOutliers(layer.name, layer.rows, part[:-1], magnitude, int(part[-1]))
        else:
            zeros = torch.zeros(layer.columns)
            yield LayerOutliers(layer.name, layer.rows, zeros.long(), zeros, 0)


def _binned(values: Tensor, bins: int) -> Tensor:
    """[bins]: the largest of the values in each of so many equal parts; fewer values are spread over them."""
    if len(values) < bins:
        if len(values) == 0:
            return values.new_zeros(bins)
        return values[torch.arange(bins) * len(values) // bins]
    parts = torch.arange(len(values)) * bins // len(values)
    return values.new_zeros(bins).scatter_reduce_(0, parts, values, "amax")


def _shown(name: str) -> str:
    return name or "(the model)"


def _limit(threshold: object) -> float:
    limit = as_threshold("outliers", threshold)
    if not FLOAT32.smallest_normal <= limit <= FLOAT32.max:
        want = "a positive number within float32's normal range"
        raise ValueError(f"[outliers] threshold: got {threshold}, want {want}")
    return torch.tensor(limit, dtype=torch.float32).item()
