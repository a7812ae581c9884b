"""Muon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from qbits import _C
from qbits.optim import sharding
from qbits.optim.clipping import dense_grad
from qbits.optim.optimizer import Optimizer, Options, Params

_MOST_TOGETHER = 2**25  # elements of matrices of one shape that are multiplied together


class Muon(Optimizer):
    """torch.optim.Muon: the momentum of a matrix, made nearly orthogonal, is its update.

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
    (kellerjordan.github.io/posts/muon); weight decay and the learning rate that matches AdamW's are those of
    Liu et al., arXiv 2502.16982. Momentum is updated as in SGD, by one step of all matrices; Newton-Schulz
    iterations are products of bfloat16 matrices by torch.matmul, those of one shape together.

    Embeddings, heads and vectors want another optimizer, AdamW for instance.

    Each element of an update depends on the whole gradient: where one is not finite the matrix is left as it
    is, with its momentum, and all its elements count as skipped.

    There is no paged state and no percentile clipping, and DTensors are refused.

    Args:
        params: matrices [rows, columns], float32, bfloat16 or float16.
        lr: as for torch's optimizers.
        weight_decay: decoupled.
        momentum: at least 0 and below 1.
        nesterov: the gradient joins the momentum once more.
        ns_coefficients: a, b, c of an iteration X <- a X + (b A + c A A) X with A = X X^T.
        eps: the least norm a matrix is divided by before the iterations. The momentum it is of is a running
            mean, where a gradient weighs 1 - momentum.
        ns_steps: iterations, 1 to 99.
        adjust_lr_fn: "original" (the default, also None) multiplies lr by sqrt(max(1, rows / columns)),
            "match_rms_adamw" by 0.2 sqrt(max(rows, columns)). Weight decay takes lr as it is.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a parameter that is no matrix, or a hyperparameter without sense.
    """

    ALGORITHM = "momentum"
    KIND = "muon"  # a running mean, not a sum

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        defaults |= {"nesterov": nesterov, "ns_coefficients": ns_coefficients, "eps": eps}
        if options.get("is_paged"):
            raise ValueError(f"[{type(self).__name__}] is_paged: got True, want False")
        super().__init__(params, {**defaults, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}, options)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require(group, "momentum", lambda m: 0 <= m < 1, "at least 0 and below 1")
        self._require_flags(group, "nesterov")
        self._require(
            group, "ns_coefficients", lambda abc: len(abc) == 3 and all(map(math.isfinite, abc)), "3 numbers"
        )
        self._require(group, "eps", lambda eps: 0 < eps < math.inf, "above 0 and finite")
        self._require_whole(group, "ns_steps", 1, 99)
        self._require(group, "percentile_clipping", lambda p: p == 100, "100: Muon does not clip")
        known = (None, "original", "match_rms_adamw")
        self._require(group, "adjust_lr_fn", lambda name: name in known, "original or match_rms_adamw")
        for param in group["params"]:
            if param.ndim != 2:
                raise ValueError(
                    f"[{type(self).__name__}] params: got one of shape {list(param.shape)}, want matrices"
                )

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"weight_decay": group["weight_decay"], "maximize": 0.0}

    def _more_rows(self, groups: list[Mapping[str, Any]]) -> list[dict[str, float]]:
        # A step with this rate from 0 leaves the momentum, weighted as torch's running mean is.
        return [
            {
                "lr": group["momentum"] - 1.0,
                "beta1": group["momentum"],
                "nesterov": group["nesterov"],
                "maximize": group["maximize"],
            }
            for group in groups
        ]

    def _prepare(self, group: Mapping[str, Any], param: Tensor) -> None:
        if sharding.as_dtensor(param) is not None:
            raise TypeError(f"[{type(self).__name__}] param: got a DTensor, want plain tensors")
        super()._prepare(group, param)

    @torch._disable_dynamo
    def _update(self) -> None:
        if not self._tables:
            self._begin()
        self._look_at_groups()
        own_rows = self._rows_of_their_own()
        batches: dict[tuple[torch.device, torch.Size, int], list[Tensor]] = {}
        places: dict[Tensor, int] = {}  # among all parameters
        for row, group in enumerate(self.param_groups):
            for param in group["params"]:
                places[param] = len(places)
                if param.grad is None:
                    continue
                if param.device not in self._tables or "state1" not in self.state.get(param, {}):
                    self._prepare(group, param)
                    own_rows = self._rows_of_their_own()
                if param.numel() > 0:
                    key = (param.device, param.shape, own_rows.get(param, row))
                    batches.setdefault(key, []).append(param)
        self._clip()
        self._write_groups()
        for device in self._tables:
            own = {key[1:]: batch for key, batch in batches.items() if key[0] == device}
            if own:
                self._update_on(device, own, places)
        self._report()

    def _update_on(
        self,
        device: torch.device,
        batches: dict[tuple[torch.Size, int], list[Tensor]],
        places: Mapping[Tensor, int],
    ) -> None:
        table = self._tables[device]
        grad_scale, found_inf = self._scalers(device)
        params = [param for batch in batches.values() for param in batch]
        rows = [row for (_, row), batch in batches.items() for _ in batch]
        ids = [places[param] for param in params]
        states = [self.state[param] for param in params]
        momenta = [{k: v for k, v in state.items() if k != "kahan_comp"} for state in states]
        # Momentum alone does not care how many steps there were, once there was one.
        behind_first = torch.full((), 2.0, dtype=torch.float32, device=device)
        stacks = [
            torch.zeros(len(batch), *shape, dtype=torch.bfloat16, device=device)
            for (shape, _), batch in batches.items()
        ]
        updates = [update for stack in stacks for update in stack]
        grads = [dense_grad(param, type(self).__name__) for param in params]
        scales = _scales_of_finite(grads)
        # What is left here is left, and counted, below.
        uncounted = torch.zeros((), dtype=torch.int64, device=device)
        _C.optimizer_step_tensors(
            updates,
            grads,
            [{**momentum, "step": behind_first} for momentum in momenta],
            [len(table.rows) // 2 + row for row in rows],
            ids,
            list(scales.unbind()),
            (table.memory, uncounted, grad_scale, found_inf, None),
            "momentum",
            "before",
            False,
            0,
        )
        groups = self._all_groups()
        of_stacks = scales.split([len(stack) for stack in stacks])
        for (_, row), stack, own in zip(batches, stacks, of_stacks, strict=True):
            most = max(_MOST_TOGETHER // stack[0].numel(), 1)
            for part, factors in zip(stack.split(most), own.split(most), strict=True):
                orthogonalize_(part, groups[row], factors)
        first = self.param_groups[0]
        _C.optimizer_step_tensors(
            params,
            updates,
            [{k: state[k] for k in ("step", "kahan_comp") if k in state} for state in states],
            rows,
            ids,
            None,
            (table.memory, table.skipped, None, found_inf, None),
            "gradient_descent",
            self.DECAY,
            first["stochastic_rounding"],
            first["seed"],
        )


def _scales_of_finite(grads: list[Tensor]) -> Tensor:
    """float32 [n]: 1 for gradients that are finite, NaN for others."""
    with torch._C.DisableTorchFunctionSubclass():
        largest = torch.stack(torch._foreach_norm(grads, math.inf, dtype=torch.float32))
    return largest * 0 + 1


def orthogonalize_(stack: Tensor, group: Mapping[str, Any], factors: Tensor) -> None:
    """Makes the singular values of bfloat16 matrices [n, rows, columns] about 1, times what adjusts lr.

    `factors`: float32 [n], 1 or NaN; the latter makes all of a matrix NaN.
    """
    rows, columns = stack.shape[-2:]
    a, b, c = group["ns_coefficients"]
    if group["adjust_lr_fn"] == "match_rms_adamw":
        factor = 0.2 * math.sqrt(max(rows, columns))
    else:
        factor = math.sqrt(max(1.0, rows / columns))
    x = stack.mT if rows > columns else stack
    norms = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=group["eps"])
    x = x / (norms * factors[:, None, None].to(norms.dtype))
    for step in range(group["ns_steps"]):
        # The last one multiplies by the factor, without another rounding.
        last = factor if step == group["ns_steps"] - 1 else 1.0
        square = torch.matmul(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a * last, alpha=last)
    stack.copy_(x.mT if rows > columns else x)


class Muon8bit(Muon):
    """Muon with 8-bit momentum (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class Muon32bit(Muon):
    """Muon with 32-bit momentum."""

    BITS = 32
