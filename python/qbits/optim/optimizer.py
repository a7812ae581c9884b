"""What all optimizers share: one step for all parameters, their state, and the interface of torch.optim."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from qbits import _C
from qbits.optim import clipping, sharding, state_dict
from qbits.optim.overrides import OVERRIDES, refresh_overrides
from qbits.optim.paging import Paging
from qbits.optim.state_dict import hide_tensors

FIELDS = tuple(_C.optimizer_fields())
ALGORITHMS = _C.optimizer_algorithms()

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Options(TypedDict, total=False):
    """What every optimizer takes beside its own hyperparameters, also as a key of a parameter group.

    optim_bits: 32 or 8 for the state of parameters; by default 32. Classes named after a number keep it.
    min_8bit_size: parameters of fewer elements keep 32-bit state; by default 4096.
    maximize: steps along the gradient.
    stochastic_rounding: bfloat16 parameters are rounded up or down at random, to the nearer neighbour more
        often. One choice for all groups.
    seed: of that rounding, which is the same in every run.
    max_grad_norm: gradients of all groups together are divided by what makes their norm at most this, on the
        device. A norm that is not finite leaves everything as it is, and counts as an element skipped. It is
        an attribute of the optimizer, not for groups; by default None.
    percentile_clipping: the gradient of a parameter is divided by what makes its norm at most this percentile
        of the norms of its last 100 steps, 1 to 99; by default 100 for no clipping.
    check_finite: after each step, raise FloatingPointError if elements were skipped because they were not
        finite. It waits for the GPU. Not for groups.
    is_paged: state of parameters on a GPU lies in page-locked host memory and passes through buffers of the
        GPU (96 MiB) while a step needs it. Classes named so always do that. Not for groups, as those below.
    device_budget: bytes of paged state, of the first parameters that fit, that stay on each GPU all the same;
        by default what is free at the first step, less device_reserve. Given, a step can be captured.
    device_reserve: bytes of each GPU; by default 1 GiB.
    foreach, fused, capturable: taken from calls of torch.optim; the step is always fused and capturable.
    differentiable: must be False.
    """

    optim_bits: int | None
    min_8bit_size: int
    maximize: bool
    stochastic_rounding: bool
    seed: int
    max_grad_norm: float | None
    percentile_clipping: int
    check_finite: bool
    is_paged: bool
    device_budget: int | None
    device_reserve: int
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


class Table:
    """The hyperparameters of all groups in the memory of one device, and what else its step needs there."""

    def __init__(self, device: torch.device, rows: int) -> None:
        self.rows = torch.zeros(rows, _C.OPTIMIZER_FIELDS, dtype=torch.float64, device=device)
        self.memory = self.rows.view(torch.uint8)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
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


def overridden(group: Mapping[str, Any], param: Tensor) -> Mapping[str, Any]:
    """The hyperparameters of a parameter that has some of its own."""
    return {**group, **OVERRIDES.get(param, {})}


def _row(own: Mapping[str, float]) -> list[float]:
    """A row of the table."""
    free = [0.0] * (_C.OPTIMIZER_FIELDS - len(FIELDS))
    return [float(own.get(name, 0.0)) for name in FIELDS] + free


class Optimizer(Paging, torch.optim.Optimizer):
    """One step of all parameters in a few launches, with state in 32 bits or in blockwise 8 bits.

    Parameters and gradients are float32, bfloat16 or float16, each on its own; arithmetic is float32. The
    state of a parameter is `step`, a float32 tensor, and `state1`, `state2` in its shape: float32,
    or uint8 codes with float32 scales `absmax1`, `absmax2` of blocks of 256 elements.

    State of a DTensor (FSDP2, tensor parallelism) is sharded as the parameter is, and `min_8bit_size` means
    its global size. Blocks start anew at each row along dimension 0, so that scales are [N, blocks of a row];
    parameters whose shards would cut through blocks, sharded vectors among them, keep 32-bit state.

    What changes between steps lies in device memory: nothing waits for the GPU, a learning rate may be a
    tensor, and a step can be captured into a CUDA graph, after a first one that makes the state. Replays use
    the hyperparameters that the last step(), or write_groups(), found in `param_groups`.

    An element (with 8-bit state: its block) whose gradient or new state is not finite is left as it is and
    counted. With torch.amp.GradScaler the step unscales gradients on the way; `grad` keeps the scaled ones.

    With `is_paged=True` the tensors in `state` are where the state is: in host memory, to be read when the
    stream of the last step is done, or on the GPU. Results are the same, bit for bit. `state_dict()` waits
    and gives copies in host memory.
    """

    ALGORITHM: ClassVar[str]
    DECAY: ClassVar[str] = "before"
    SCALING: ClassVar[str] = "none"
    BITS: ClassVar[int | None] = None  # of classes that leave no choice

    _step_supports_amp_scaling = True

    def __init__(self, params: Params, defaults: dict[str, Any], options: Options) -> None:
        name = type(self).__name__
        if unknown := set(options) - Options.__annotations__.keys():
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"[{name}] arguments: got {', '.join(sorted(unknown))}, want some of {known}")
        if options.get("differentiable"):
            raise ValueError(f"[{name}] differentiable: got True, want False")
        self.check_finite = options.get("check_finite", False)
        self._init_paging(options)
        self.max_grad_norm = options.get("max_grad_norm")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"[{name}] max_grad_norm: got {self.max_grad_norm}, want None or above 0")
        self._forget()
        bits = options.get("optim_bits")
        defaults["optim_bits"] = (self.BITS or 32) if bits is None else bits
        defaults["min_8bit_size"] = options.get("min_8bit_size", 4096)
        defaults["maximize"] = options.get("maximize", False)
        defaults["stochastic_rounding"] = options.get("stochastic_rounding", False)
        defaults["seed"] = options.get("seed", 0)
        defaults["percentile_clipping"] = options.get("percentile_clipping", 100)
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Makes tables anew with the next step."""
        self._tables: dict[torch.device, Table] = {}
        self._own_rows: dict[Tensor, Mapping[str, Any]] = {}  # parameters with overrides, and their groups
        self._offsets: dict[Tensor, int] = {}  # of this process' part of a DTensor
        self._reported = 0
        self._forget_pages()
        self._scales = clipping.Scales()

    # --- Groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Raises ValueError for hyperparameters without sense."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError unless the hyperparameters of a group have sense."""
        self._require(group, "lr", lambda lr: lr >= 0, "at least 0")
        self._require(group, "weight_decay", lambda decay: decay >= 0, "at least 0")
        bits = (8, 32) if self.BITS is None else (self.BITS,)
        self._require(group, "optim_bits", lambda value: value in bits, " or ".join(map(str, bits)))
        self._require(group, "min_8bit_size", lambda size: size >= 0, "at least 0")
        self._require(group, "percentile_clipping", lambda p: p in range(1, 101), "1 to 100")
        self._require(group, "seed", lambda seed: 0 <= seed < 2**64, "0 to 2^64 - 1")
        for key in ("stochastic_rounding", "seed"):
            value, first = group[key], self.param_groups[0][key]
            if value != first:
                name = type(self).__name__
                raise ValueError(f"[{name}] {key}: got {value}, want {first}, as in the first group")

    def _require_betas(self, group: Mapping[str, Any], count: int) -> None:
        def fits(betas: Any) -> bool:
            return len(betas) == count and all(0 <= beta < 1 for beta in betas)

        self._require(group, "betas", fits, f"{count} numbers of at least 0 and below 1")

    def _require(self, group: Mapping[str, Any], key: str, fits: Callable[[Any], bool], want: object) -> None:
        value = group[key]
        # A tensor on a GPU is not looked at: that would wait for it.
        if not (isinstance(value, Tensor) and value.is_cuda) and not fits(value):
            raise ValueError(f"[{type(self).__name__}] {key}: got {value}, want {want}")

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        """Those of the algorithm, by the names of the table's columns."""
        raise NotImplementedError

    def write_groups(self) -> None:
        """Writes the hyperparameters of `param_groups` into device memory, where graphs read them.

        step() does it by itself; call it between replays, after a learning rate scheduler for instance.
        """
        values: list[float] = []
        rates: dict[int, Tensor] = {}
        groups = [*self.param_groups, *(overridden(g, p) for p, g in self._own_rows.items())]
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
                fresh = Table(device, rows)
                fresh.skipped = table.skipped
                self._tables[device] = table = fresh
            table.write(values, rates)

    def _more_rows(self, groups: list[Mapping[str, Any]]) -> list[dict[str, float]]:
        """What the table has behind the rows of the groups."""
        return []

    # --- State ----------------------------------------------------------------------------------------------

    def _bits(self, group: Mapping[str, Any], param: Tensor) -> int:
        """Of the state of a parameter of a group."""
        # A DTensor has its global size.
        is_small = param.numel() < group["min_8bit_size"]
        return 32 if is_small or not sharding.allows_8_bits(param) else group["optim_bits"]

    def _init_state(self, group: Mapping[str, Any], param: Tensor) -> None:
        """Gives a parameter what it lacks of its state."""
        state, device = self.state[param], param.device
        state.setdefault("step", torch.zeros((), dtype=torch.float32, device=device))
        algorithm, is_8bit = self._algorithm(), self._bits(group, param) == 8
        layout = state_dict.layout(param, algorithm, is_8bit)
        lacking = {key: want for key, want in layout.items() if f"state{key[-1]}" not in state}
        zeros = {"state1": sharding.ZERO_CODES[1], "state2": sharding.ZERO_CODES[2]} if is_8bit else {}
        if lacking == layout != {} and (pages := self._pages_of(param)) is not None:
            made = pages.add(param, algorithm, is_8bit, self.SCALING == "none")
            for key, tensor in made.items():
                tensor.fill_(zeros.get(key, 0))
            state.update(made)
            return
        for key, (shape, dtype) in lacking.items():
            before = len(layout[f"state{key[-1]}"][0]) - param.ndim
            state[key] = sharding.full_like(param, before, shape, zeros.get(key, 0), dtype)

    def _algorithm(self) -> str:
        return self.ALGORITHM

    @property
    def skipped_counters(self) -> dict[torch.device, Tensor]:
        """For each device an int64 tensor: the elements skipped so far because they were not finite."""
        return {device: table.skipped for device, table in self._tables.items()}

    def skipped(self) -> int:
        """The number of elements skipped so far on all devices. Waits for them."""
        return sum(int(counter) for counter in self.skipped_counters.values())

    # --- The step -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Args:
            closure: called first, with gradients enabled, to compute the loss.

        Returns:
            What `closure` gave, else None.

        Raises:
            TypeError: a sparse gradient, or a dtype that is not supported; DTensors that hold parts of sums,
                and sharded ones with LAMB or LARS, which need norms of whole tensors.
            RuntimeError: parameters without state while a CUDA graph is captured.
            FloatingPointError: with check_finite, if elements were skipped.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    @torch._disable_dynamo
    def _update(self) -> None:
        if not self._tables:
            self._begin()
        self._clip()
        while True:
            self.write_groups()
            self._place_pages()
            missing = _C.optimizer_step(
                self.param_groups,
                self.state,
                self._rows_of_their_own() or None,
                self._offsets or None,
                self._scales.of_params or None,
                [
                    (table.memory, table.skipped, *self._scalers(device), self._pager(device))
                    for device, table in self._tables.items()
                ],
                self._algorithm(),
                self.DECAY,
                self.SCALING,
                self.param_groups[0]["stochastic_rounding"],
                self.param_groups[0]["seed"],
            )
            if not missing:
                break
            for index, param in missing:
                self._prepare(self.param_groups[index], param)
        self._report()

    def _clip(self) -> None:
        """Finds what gradients are divided by in this step."""
        given = (getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        self._scales = clipping.Scales(*given)
        own = [overridden(group, param)["percentile_clipping"] for param, group in self._own_rows.items()]
        if self.max_grad_norm is None and all(
            percentile == 100 for percentile in (*own, *(g["percentile_clipping"] for g in self.param_groups))
        ):
            return
        params = []
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.device not in self._tables or "step" not in self.state.get(param, {}):
                    self._prepare(group, param)
                hyperparameters = overridden(group, param) if param in self._own_rows else group
                params.append((param, hyperparameters, self.state[param]))
        self._scales = clipping.scales(params, self.max_grad_norm, *given)
        if (count := self._scales.not_finite) is not None:
            self._tables[count.device].skipped.add_(count)

    def _report(self) -> None:
        """Raises FloatingPointError for elements skipped since the last time, if that is wanted."""
        if self.check_finite and (skipped := self.skipped()) > self._reported:
            news, self._reported = skipped - self._reported, skipped
            raise FloatingPointError(
                f"[{type(self).__name__}] gradients: got {news} elements that were not finite, want none"
            )

    def _begin(self) -> None:
        """What the first step of all needs, and the first one after loading."""
        refresh_overrides()
        for group in self.param_groups:
            for param in group["params"]:
                if param in OVERRIDES:
                    self._own_rows[param] = group
                if sharding.as_dtensor(param) is not None:
                    self._offsets[param] = sharding.offset(param)
                if param.grad is not None:
                    self._prepare(group, param)

    def _prepare(self, group: Mapping[str, Any], param: Tensor) -> None:
        """What the first step of a parameter needs."""
        if param.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"[{type(self).__name__}] capture: got parameters without state, want a step() before it"
            )
        if param.device not in self._tables:
            self._tables[param.device] = Table(param.device, len(self.param_groups))
        if param in OVERRIDES:
            self._own_rows[param] = group
            group = overridden(group, param)
        if sharding.as_dtensor(param) is not None:
            self._offsets[param] = sharding.offset(param)
        if self.SCALING != "none" and sharding.is_split(param):
            raise TypeError(f"[{type(self).__name__}] param: got a sharded one, want whole tensors")
        self._init_state(group, param)

    def _rows_of_their_own(self) -> dict[Tensor, int]:
        """The rows of parameters with overrides, behind those of groups."""
        return {param: len(self.param_groups) + i for i, param in enumerate(self._own_rows)}

    def _scalers(self, device: torch.device) -> list[Tensor | None]:
        """What GradScaler or clipping has left for this step, on the device: grad_scale and found_inf."""
        given = (self._scales.grad_scale, self._scales.found_inf)
        return [None if t is None else t.to(device, non_blocking=True) for t in given]

    def _pager(self, device: torch.device) -> _C.Pager | None:
        return self._pages[device].pager if device in self._pages else None

    # --- Saving and loading ---------------------------------------------------------------------------------

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """As torch's; of paged state copies in host memory, after waiting for the GPU."""
        if not self._pages:
            return super().state_dict()
        where_it_is, self.state = self.state, defaultdict(dict, self._host_state())
        try:
            return super().state_dict()
        finally:
            self.state = where_it_is

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but that dtypes of the state stay what they are. Takes what bitsandbytes saved, too.

        Raises:
            ValueError: saved by another algorithm or by torch.optim, or for other sizes. Nothing is loaded.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        # The last hook before torch looks at tensors, which it would cast to the dtype of their parameter.
        handle = self.register_load_state_dict_pre_hook(lambda _, saved: hide_tensors(saved))
        try:
            super().load_state_dict(state_dict)
        except Exception:
            if self.state is not before["state"]:
                self.__setstate__(before)
            raise
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("check_finite", "max_grad_norm", "is_paged", "device_budget", "device_reserve")
        state = super().__getstate__() | {key: getattr(self, key) for key in kept}
        return {**state, "state": defaultdict(dict, self._host_state())} if self._pages else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:  # those of another version or library may lack some
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        for param, own in self.state.items():
            if isinstance(param, Tensor):
                pages = self._pages_of(param)
                home = param.device if pages is None else torch.device("cpu")
                shown = state_dict.show_tensors(own, param, home)
                state_dict.check(shown, param, self._algorithm(), type(self).__name__)
                if pages is not None:
                    shown = pages.adopt(param, shown, self._algorithm(), self.SCALING == "none")
                self.state[param] = shown
