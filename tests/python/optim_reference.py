"""The update of one tensor by each algorithm, from the formulas, in the order the table of algorithms gives.

Tensors are float32 and each operation rounds by itself; coefficients are computed in float64, rounded once.
8-bit state is decoded, updated and rounded to the nearest entry of its map as bitsandbytes does it.
"""

import math

import torch

import reference
from qbits.formats import FORMATS

BLOCK = 256
SIGNED, UNSIGNED = (torch.tensor(FORMATS[name].codebook) for name in ("dynamic", "dynamic_unsigned"))


def f32(x):
    return torch.tensor(x, dtype=torch.float64).float()


# Rounded once: torch's own root of float32 is off by a bit now and then.
def root(x):
    return x.double().sqrt().float()


def quotient(x, y):
    return (x.double() / y.double()).float()


def decode(codes, absmax, values):
    flat = codes.reshape(-1)
    return (values[flat.long()] * absmax.repeat_interleave(BLOCK)[: flat.numel()]).reshape(codes.shape)


def encode(x, values, signed):
    """Codes and scales; what has a minus sign never gets the code of zero of the signed map."""
    codes, absmax = reference.quantize_codebook(x, values, "even", BLOCK)
    if signed:
        codes = codes - ((codes == 127) & x.reshape(-1).signbit()).long()
    return codes.to(torch.uint8).reshape(x.shape), absmax


def adam(state, g, t, h):
    beta1, beta2 = h["betas"]
    correction1, correction2 = 1 - beta1**t, math.sqrt(1 - beta2**t)
    m = state[0] * f32(beta1) + f32(1 - beta1) * g
    v = state[1] * f32(beta2) + f32(1 - beta2) * g * g
    u = quotient(m, root(v) + f32(h["eps"] * correction2))
    return [m, v], u, h["lr"] * (correction2 / correction1)


def ademamix(state, g, t, h):
    beta1, beta2, beta3 = h["betas"]
    alpha = h["alpha"]
    if h["t_alpha"]:
        alpha = min(t * alpha / h["t_alpha"], alpha)
    if h["t_beta3"] and t < h["t_beta3"]:
        log1, log3, done = math.log(beta1), math.log(beta3), t / h["t_beta3"]
        beta3 = min(math.exp(log1 * log3 / ((1 - done) * log3 + done * log1)), beta3)
    correction1, correction2 = 1 - beta1**t, math.sqrt(1 - beta2**t)
    m = state[0] * f32(beta1) + f32(1 - beta1) * g
    n = state[1] * f32(beta3) + f32(1 - beta3) * g
    v = state[2] * f32(beta2) + f32(1 - beta2) * g * g
    u = quotient(m + f32(alpha * correction1) * n, root(v) + f32(h["eps"] * correction2))
    return [m, n, v], u, h["lr"] * (correction2 / correction1)


def lion(state, g, t, h):
    beta1, beta2 = h["betas"]
    u = (state[0] * f32(beta1) + f32(1 - beta1) * g).sign()
    return [state[0] * f32(beta2) + f32(1 - beta2) * g], u, h["lr"]


def rmsprop(state, g, t, h):
    v = state[0] * f32(h["alpha"]) + f32(1 - h["alpha"]) * g * g
    return [v], quotient(g, root(v) + f32(h["eps"])), h["lr"]


def adagrad(state, g, t, h):
    v = state[0] + g * g
    return [v], quotient(g, root(v) + f32(h["eps"])), h["lr"] / (1 + (t - 1) * h["lr_decay"])


def sgd(state, g, t, h):
    momentum = h["momentum"]
    m = g if t == 1 else state[0] * f32(momentum) + f32(1 - h["dampening"]) * g
    return [m], g + f32(momentum) * m if h["nesterov"] else m, h["lr"]


# For each algorithm its formula, how many numbers an element has in the signed and in the unsigned map, and
# whether weight decay is added to the gradient.
ALGORITHMS = {
    "Adam": (adam, 1, 1, True),
    "AdamW": (adam, 1, 1, False),
    "AdEMAMix": (ademamix, 2, 1, False),
    "Lion": (lion, 1, 0, False),
    "RMSprop": (rmsprop, 1, 0, True),
    "Adagrad": (adagrad, 1, 0, True),
    "SGD": (sgd, 1, 0, True),
}


class Model:
    """A parameter and its state, stepped by the formula."""

    def __init__(self, name, param, hyperparameters, is_8bit, kahan=False):
        self.formula, self.first, self.second, self.coupled = ALGORITHMS[name]
        self.h, self.is_8bit, self.t = hyperparameters, is_8bit, 0
        self.dtype, self.param = param.dtype, param.detach().cpu().float().clone()
        self.rest = torch.zeros_like(self.param) if kahan and self.dtype != torch.float32 else None
        states = [torch.zeros(self.param.shape) for _ in range(self.first + self.second)]
        self.states = [self._kept(k, state) for k, state in enumerate(states)]

    def _map(self, k):
        return SIGNED if k < self.first else UNSIGNED

    def _kept(self, k, state):
        return encode(state, self._map(k), k < self.first) if self.is_8bit else state

    def step(self, grad):
        self.t += 1
        states = self.states
        if self.is_8bit:
            states = [decode(*kept, self._map(k)) for k, kept in enumerate(states)]
        g, decay = grad.cpu().float(), self.h["weight_decay"]
        p = self.param if self.rest is None else self.param + self.rest
        if self.coupled and decay:
            g = g + f32(decay) * p
        states, u, rate = self.formula(states, g, self.t, self.h)
        self.states = [self._kept(k, state) for k, state in enumerate(states)]
        shrink = 0.0 if self.coupled else self.h["lr"] * decay
        p = p - (f32(shrink) * p + f32(rate) * u)
        self.param = p.to(self.dtype).float()
        if self.rest is not None:
            rest = torch.where(self.param.isfinite(), p - self.param, 0.0)
            self.rest = rest.to(self.dtype).float()

    def state1(self):
        """Codes and scales, or the numbers, of state1 as the optimizer has them."""
        return self._joined(self.states[: self.first])

    def state2(self):
        return self._joined(self.states[self.first :])

    def _joined(self, states):
        if not self.is_8bit:
            return torch.stack(states) if len(states) > 1 else states[0]
        if len(states) == 1:
            return states[0]
        return tuple(torch.stack(parts) for parts in zip(*states, strict=True))
