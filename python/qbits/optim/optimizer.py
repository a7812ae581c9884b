"""What all optimizers share: one step for all parameters, their state, and the interface of torch.optim."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from qbits import _C
from qbits.optim import clipping, overrides, sharding, state_dict
from qbits.optim.groups import Groups, Table
from qbits.optim.paging import Paging
from qbits.optim.state_dict import hidden

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Options(TypedDict, total=False):
    """What every optimizer takes beside its own hyperparameters, also as a key of a parameter group.

    Those that are not for groups are refused there. What is changed in groups is checked by the next step.

    optim_bits: 32 or 8 for the state of parameters; by default 32. Classes named after a number keep that.
    min_8bit_size: parameters of fewer elements keep 32-bit state; by default 4096.
    maximize: steps along the gradient.
    stochastic_rounding: bfloat16 parameters are rounded up or down at random, to the nearer neighbour more
        often. One choice for all groups.
    seed: of that rounding, which is the same in every run.
    kahan_sum: bfloat16 and float16 parameters have a compensation, `kahan_comp` of their state in their shape
        and dtype, that keeps what rounding takes from them (Kahan summation; Zamirai et al., arXiv
        2010.06192): small updates add up almost as in float32. float32 parameters need none. It starts at 0
        when this is turned on, goes when it is turned off, is not paged, and excludes stochastic_rounding; by
        default False.
    max_grad_norm: gradients of all groups together are divided by what makes their norm at most this, on the
        device. A norm that is not finite leaves everything as it is, and counts as an element skipped. It is
        an attribute of the optimizer, not for groups; by default None.
    percentile_clipping: the gradient of a parameter is divided by what makes its norm at most this percentile
        of the norms of its last 100 steps, 1 to 99, without those that are 0 or not finite; by default 100
        for no clipping.
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
    kahan_sum: bool
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


class Optimizer(Groups, Paging, torch.optim.Optimizer):
    """One step of all parameters in a few launches, with state in 32 bits or in blockwise 8 bits.

    Parameters and gradients are float32, bfloat16 or float16, each on its own; arithmetic is float32. The
    state of a parameter is `step`, a float32 tensor, and `state1`, `state2` in its shape: float32,
    or uint8 codes with float32 scales `absmax1`, `absmax2` of blocks of 256 elements; with kahan_sum also
    `kahan_comp`, with percentile_clipping `gnorm_vec`, float32 [100]. `state_of` in groups names the kind of
    state, so that other kinds of the same shape are not loaded.

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
    KIND: ClassVar[str | None] = None  # of state that others with the same algorithm cannot go on with

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
        self._check_norm()
        self._begin_to_count()
        self._forget()
        bits = options.get("optim_bits")
        defaults["state_of"] = self._kind()
        defaults["optim_bits"] = (self.BITS or 32) if bits is None else bits
        defaults["min_8bit_size"] = options.get("min_8bit_size", 4096)
        defaults["maximize"] = options.get("maximize", False)
        defaults["stochastic_rounding"] = options.get("stochastic_rounding", False)
        defaults["seed"] = options.get("seed", 0)
        defaults["kahan_sum"] = options.get("kahan_sum", False)
        defaults["percentile_clipping"] = options.get("percentile_clipping", 100)
        super().__init__(params, defaults)

    def _begin_to_count(self) -> None:
        """Elements skipped by this optimizer, whatever it loads."""
        self._skipped: dict[torch.device, Tensor] = {}
        self._reported = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.startswith("qbits.") and cls.__doc__ and "Args:" not in cls.__doc__:
            cls.__doc__ += (
                f"\n\n    Takes what {cls.__mro__[1].__name__} takes, see there and qbits.optim.Options."
            )

    def _forget(self) -> None:
        """Makes tables anew with the next step."""
        self._forget_groups()
        self._sums: list[bool] = []  # kahan_sum of groups, as parameters have it
        self._offsets: dict[Tensor, int] = {}  # of this process' part of a DTensor
        self._forget_pages()
        self._scales = clipping.Scales()

    # --- Groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; keys that no optimizer knows are kept.

        Raises:
            ValueError, TypeError: hyperparameters without sense, and options that are not for groups.
        """
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
            self._check_bits(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

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
        self._compensate(group, param, state)
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

    def _compensate(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        """Lets there be a compensation where kahan_sum asks for one."""
        wanted = group["kahan_sum"] and param.dtype != torch.float32
        if wanted == ("kahan_comp" in state):
            return
        self._refuse_capture(param)
        if wanted:
            state["kahan_comp"] = sharding.full_like(param, 0, tuple(param.shape), 0, param.dtype)
        else:
            del state["kahan_comp"]

    def _take_settings(self) -> None:
        sums = [group["kahan_sum"] for group in self._all_groups()]
        if self._seen is not None and sums == self._sums:
            return
        self._sums = sums
        for group in self.param_groups:
            for param in group["params"]:
                if "step" in (state := self.state.get(param, {})):
                    self._compensate(self._own.get(param, group), param, state)

    def _algorithm(self) -> str:
        return self.ALGORITHM

    def _kind(self) -> str:
        return self.KIND or self.ALGORITHM

    @property
    def skipped_counters(self) -> dict[torch.device, Tensor]:
        """For each device an int64 tensor: the elements skipped so far because they were not finite.

        They go on over load_state_dict(). Those of a copy start at 0.
        """
        return dict(self._skipped)

    def skipped(self) -> int:
        """The elements skipped so far on all devices, for which it waits.

        Of an 8-bit block those that are not finite count, of a matrix of Muon all, of a norm that is not
        finite (max_grad_norm) one.
        """
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
                and sharded ones with LAMB or LARS, which need norms of whole tensors; an override of what the
                optimizer does not have.
            ValueError, TypeError: groups or overrides that were changed to what makes no sense.
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
        self._look_at_groups()
        self._clip()
        while True:
            self._write_groups()
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
        self._check_norm()
        if self.max_grad_norm is None and all(
            group["percentile_clipping"] == 100 for group in self._all_groups()
        ):
            return
        params = []
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.device not in self._tables or "step" not in self.state.get(param, {}):
                    self._prepare(group, param)
                params.append((param, self._own.get(param, group), self.state[param]))
        self._scales = clipping.scales(params, self.max_grad_norm, *given)
        if (count := self._scales.not_finite) is not None:
            self._tables[count.device].skipped.add_(count)

    def _check_norm(self) -> None:
        norm = self.max_grad_norm
        if norm is not None:
            self._require({"max_grad_norm": norm}, "max_grad_norm", lambda most: most > 0, "None or above 0")

    def _report(self) -> None:
        """Raises FloatingPointError for elements skipped since the last time, if that is wanted."""
        if self.check_finite and (skipped := self.skipped()) > self._reported:
            news, self._reported = skipped - self._reported, skipped
            raise FloatingPointError(
                f"[{type(self).__name__}] gradients: got {news} elements that were not finite, want none"
            )

    def _begin(self) -> None:
        """What the first step of all needs, and the first one after loading."""
        self._find_overrides()
        self._look_at_groups()
        for group in self.param_groups:
            for param in group["params"]:
                if sharding.as_dtensor(param) is not None:
                    self._offsets[param] = sharding.offset(param)
                if param.grad is not None:
                    self._prepare(group, param)

    def _prepare(self, group: Mapping[str, Any], param: Tensor) -> None:
        """What the first step of a parameter needs."""
        self._refuse_capture(param)
        if param.device not in self._tables:
            if param.device not in self._skipped:
                self._skipped[param.device] = torch.zeros((), dtype=torch.int64, device=param.device)
            rows = len(self.param_groups)
            self._tables[param.device] = Table(param.device, rows, self._skipped[param.device])
        if overrides.of(param):
            self._homes[param] = group
            self._look_at_groups()
            group = self._own[param]
        if sharding.as_dtensor(param) is not None:
            self._offsets[param] = sharding.offset(param)
        if self.SCALING != "none" and sharding.is_split(param):
            raise TypeError(f"[{type(self).__name__}] param: got a sharded one, want whole tensors")
        self._init_state(group, param)

    def _refuse_capture(self, param: Tensor) -> None:
        if param.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"[{type(self).__name__}] capture: got parameters without state, want a step() before it"
            )

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
            ValueError, TypeError: saved by another algorithm or by torch.optim, or for other sizes; values
                that make no sense. Nothing is loaded. What was saved by bitsandbytes does not name its
                algorithm; those with the same state cannot be told apart.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        # The last hook before torch looks at the state.
        handle = self.register_load_state_dict_pre_hook(lambda _, saved: hidden(saved))
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
        state["overrides"] = overrides.of_groups(self.param_groups)
        return {**state, "state": defaultdict(dict, self._host_state())} if self._pages else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for param, own in state.get("overrides", {}).items():  # the parameters of a copy are others
            overrides.override(param, **own)
        super().__setstate__({key: value for key, value in state.items() if key != "overrides"})
        if "_skipped" not in self.__dict__:
            self._begin_to_count()
        self._forget()
        kind = self._kind()
        for group in self.param_groups:
            if (got := group.setdefault("state_of", kind)) != kind:
                raise ValueError(f"[{type(self).__name__}] state: got that of {got}, want that of {kind}")
        for group in self.param_groups:  # those of another version or library may lack some
            beta = state_dict.FIRST_BETA.get(kind)
            if beta is not None and beta not in group and "betas" in group:
                group[beta] = group.pop("betas")[0]
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            if self.BITS is not None:  # of state that is yet to be made
                group["optim_bits"] = self.BITS
        for param, own in self.state.items():
            if isinstance(param, Tensor):
                pages = self._pages_of(param)
                home = param.device if pages is None else torch.device("cpu")
                shown = state_dict.loaded(own, param, home, self._algorithm(), type(self).__name__)
                if pages is not None:
                    shown = pages.adopt(param, shown, self._algorithm(), self.SCALING == "none")
                self.state[param] = shown
        self._look_at_groups()
