"""Hyperparameters, of groups and of single parameters: what they may be, and their table on each device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from qbits import _C
from qbits.optim import overrides

FIELDS = tuple(_C.optimizer_fields())
NOT_FOR_GROUPS = {"max_grad_norm", "check_finite", "is_paged", "device_budget", "device_reserve"}


class Table:
    """The hyperparameters of all groups in the memory of one device, and what else its step needs there."""

    def __init__(self, device: torch.device, rows: int, skipped: Tensor) -> None:
        self.rows = torch.zeros(rows, _C.OPTIMIZER_FIELDS, dtype=torch.float64, device=device)
        self.memory = self.rows.view(torch.uint8)
        self.skipped = skipped  # int64 scalar
        self.values: list[float] | None = None  # what is in `rows`, if that is known
        self.is_captured = False  # a graph writes it, whenever it is replayed

    def write(self, values: list[float], rates: Mapping[int, Tensor]) -> None:
        """Makes `values` those of the table, the learning rate of some rows being a tensor on a GPU."""
        if values != self.values:
            _C.write_optimizer_groups(values, self.memory)
            self.is_captured |= self.rows.is_cuda and torch.cuda.is_current_stream_capturing()
            self.values = None if self.is_captured else values
        for row, rate in rates.items():
            self.rows[row, 0].copy_(rate, non_blocking=True)


def _row(own: Mapping[str, float]) -> list[float]:
    """A row of the table."""
    free = [0.0] * (_C.OPTIMIZER_FIELDS - len(FIELDS))
    return [float(own.get(name, 0.0)) for name in FIELDS] + free


def at_least_0(value: Any) -> bool:
    """And finite."""
    return 0 <= value < math.inf


def _copied(settings: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(list(value) if isinstance(value, list) else value for value in settings)


def _in_words(value: Any) -> str:
    """What is no number."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


class Groups:
    """What optimizers do with the hyperparameters of their groups, and of parameters that have their own."""

    BITS: ClassVar[int | None]
    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]

    def _forget_groups(self) -> None:
        self._tables: dict[torch.device, Table] = {}
        self._former_tables: list[Table] = []
        self._homes: dict[Tensor, Mapping[str, Any]] = {}  # of parameters with overrides: their groups
        self._own: dict[Tensor, Mapping[str, Any]] = {}  # and what they have in this step
        self._seen: list[Any] | None = None  # hyperparameters that have been checked
        self._changes = -1  # of overrides that have been seen

    def _kind(self) -> str:
        """What the state belongs to, the same for all that may go on with each other's."""
        raise NotImplementedError

    # --- Checks ---------------------------------------------------------------------------------------------

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raises unless the hyperparameters of a group have sense: TypeError where one is no number."""
        name = type(self).__name__
        if refused := group.keys() & NOT_FOR_GROUPS:
            got = ", ".join(sorted(refused))
            raise ValueError(f"[{name}] param_group: got {got}, want that as an argument of the optimizer")
        kind = self._kind()
        self._require(group, "state_of", lambda got: got == kind, kind)
        self._require(group, "lr", at_least_0, "at least 0 and finite")
        self._require(group, "weight_decay", at_least_0, "at least 0 and finite")
        self._require(group, "min_8bit_size", lambda size: size >= 0, "at least 0")
        self._require_whole(group, "percentile_clipping", 1, 100)
        self._require_whole(group, "seed", 0, 2**64 - 1)
        self._require_flags(group, "maximize", "stochastic_rounding", "kahan_sum")
        rounds = group["stochastic_rounding"]
        self._require(group, "kahan_sum", lambda on: not (on and rounds), "False with stochastic_rounding")
        if "differentiable" in group:
            self._require(group, "differentiable", lambda flag: not flag, "False")
        for key in ("stochastic_rounding", "seed"):
            value, first = group[key], self.param_groups[0][key]
            if value != first:
                raise ValueError(f"[{name}] {key}: got {value}, want {first}, as in the first group")

    def _check_bits(self, group: Mapping[str, Any], *more: int) -> None:
        """`more`: those that a class with bits of its own takes, too."""
        bits = (8, 32) if self.BITS is None else (self.BITS, *more)
        want = " or ".join(map(str, bits)) if len(bits) > 1 else bits[0]
        self._require(group, "optim_bits", lambda value: value in bits, want)

    def _check_all(self) -> None:
        for group in self.param_groups:
            self._check(group)
            self._check_bits(group)
        for own in self._own.values():
            self._check(own)
            self._check_bits(own, *((32,) if self.BITS == 8 else ()))

    def _require_betas(self, group: Mapping[str, Any], count: int) -> None:
        def fits(betas: Any) -> bool:
            return len(betas) == count and all(0 <= beta < 1 for beta in betas)

        self._require(group, "betas", fits, f"{count} numbers of at least 0 and below 1")

    def _require_whole(self, group: Mapping[str, Any], key: str, least: int, most: int) -> None:
        def fits(value: Any) -> bool:
            return least <= value <= most and isinstance(value, Integral)

        self._require(group, key, fits, f"{least} to {most}, a whole number")

    def _require_flags(self, group: Mapping[str, Any], *keys: str) -> None:
        for key in keys:
            if type(group[key]) is not bool:
                self._require(group, key, lambda flag: flag in (False, True), "True or False")

    def _require(self, group: Mapping[str, Any], key: str, fits: Callable[[Any], bool], want: object) -> None:
        value = group[key]
        if type(value) is not float and isinstance(value, Tensor) and value.is_cuda and value.numel() == 1:
            return  # to look at it would wait for the GPU
        where = f"[{type(self).__name__}] {key}"
        try:
            if fits(value):
                return
        except (TypeError, ValueError, RuntimeError):  # it cannot be compared with numbers
            raise TypeError(f"{where}: got {_in_words(value)}, want {want}") from None
        raise ValueError(f"{where}: got {value}, want {want}")

    # --- Parameters with overrides --------------------------------------------------------------------------

    def _find_overrides(self) -> None:
        self._changes = overrides.changes()
        found = overrides.of_groups(self.param_groups)
        for group in self.param_groups:
            self._homes |= {param: group for param in group["params"] if param in found}
        self._take_overrides()

    def _take_overrides(self) -> None:
        self._own = {param: self._overridden(group, param) for param, group in self._homes.items()}

    def _overridden(self, group: Mapping[str, Any], param: Tensor) -> Mapping[str, Any]:
        """The hyperparameters of a parameter of a group."""
        own = overrides.of(param)
        if unknown := own.keys() - self.defaults.keys():
            got, known = ", ".join(sorted(unknown)), ", ".join(self.defaults)
            raise TypeError(f"[{type(self).__name__}] override: got {got}, want some of {known}")
        return {**group, **own}

    def _rows_of_their_own(self) -> dict[Tensor, int]:
        """The rows of parameters with overrides, behind those of groups."""
        return {param: len(self.param_groups) + i for i, param in enumerate(self._own)}

    # --- Each step ------------------------------------------------------------------------------------------

    def _look_at_groups(self) -> None:
        """Finds the hyperparameters there are now, and checks those that are new."""
        if overrides.changes() != self._changes:
            self._find_overrides()
        else:
            self._take_overrides()
        if self._seen is None:
            self._settings = itemgetter(
                *(key for key in self.defaults if key not in ("lr", "differentiable"))
            )
        groups = self._all_groups()
        settings = [(len(group), *self._settings(group)) for group in groups]
        try:
            is_new = settings != self._seen
        except (TypeError, ValueError, RuntimeError):  # no numbers
            is_new = True
        if is_new:
            self._check_all()
            self._take_settings()
            self._seen = [_copied(own) for own in settings]
            return
        for group in groups:  # learning rates change in every step
            rate = group["lr"]
            if type(rate) is not float or not 0.0 <= rate < math.inf:
                self._require(group, "lr", at_least_0, "at least 0 and finite")

    def _take_settings(self) -> None:
        """What else follows from hyperparameters that are new."""

    def _all_groups(self) -> list[Mapping[str, Any]]:
        """What the rows of the table hold: groups, and parameters with overrides."""
        return [*self.param_groups, *self._own.values()]

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        """Those of the algorithm, by the names of the table's columns."""
        raise NotImplementedError

    def write_groups(self) -> None:
        """Writes the hyperparameters of `param_groups` into device memory, where graphs read them.

        step() does it by itself; call it between replays, after a learning rate scheduler for instance.

        Raises:
            ValueError, TypeError: a hyperparameter without sense.
        """
        self._look_at_groups()
        self._write_groups()

    def _write_groups(self) -> None:
        values: list[float] = []
        rates: dict[int, Tensor] = {}
        groups = self._all_groups()
        for row, group in enumerate(groups):
            own = {"maximize": group["maximize"], **self._hyperparameters(group)}
            rate = group["lr"]
            if isinstance(rate, Tensor) and rate.is_cuda:
                rates[row] = rate
                rate = 0.0
            own["lr"] = rate
            values += _row(own)
        for own in self._more_rows(groups):
            values += _row(own)
        rows = len(values) // _C.OPTIMIZER_FIELDS
        for device, table in self._tables.items():
            if len(table.rows) != rows:
                self._former_tables.append(table)  # which graphs may read
                self._tables[device] = table = Table(device, rows, table.skipped)
            table.write(values, rates)

    def _more_rows(self, groups: list[Mapping[str, Any]]) -> list[dict[str, float]]:
        """What the table has behind the rows of the groups."""
        return []
