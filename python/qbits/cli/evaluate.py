"""What a language model's weights cost and give: bytes, perplexity, speed and text of greedy decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def windows(ids: Tensor, count: int, length: int) -> Tensor:
    """`count` windows of `length` tokens, spread evenly over the text.

    Args:
        ids: int64[n], the tokens of the text.

    Returns:
        int64[min(count, n // length), length]; the windows do not overlap.

    Raises:
        ValueError: the text is shorter than one window.
    """
    available = ids.numel() // length
    if available == 0:
        raise ValueError(f"[windows] text: got {ids.numel()} tokens, want at least {length}")
    count = min(count, available)
    starts = [i * available // count * length for i in range(count)]
    return torch.stack([ids[start : start + length] for start in starts])


def perplexity(model: nn.Module, ids: Tensor, step: Callable[[], object] = lambda: None) -> float:
    """exp of the mean negative log-likelihood of every token but the first of each window.

    Args:
        model: a causal language model of Transformers.
        ids: int64[windows, length] on the model's device.
        step: called after each window.
    """
    total = 0.0
    with torch.inference_mode():
        for window in ids:
            logits = model(input_ids=window.unsqueeze(0), use_cache=False).logits[0, :-1]
            total += F.cross_entropy(logits.float(), window[1:], reduction="sum").item()
            step()
    return math.exp(total / (ids.shape[0] * (ids.shape[1] - 1)))


@dataclass(frozen=True)
class Decoded:
    """The tokens greedy decoding chose and how fast."""

    tokens: list[int]
    tokens_per_second: float


def decode(model: Any, prompt: Tensor, count: int) -> Decoded:
    """Decodes `count` tokens greedily, one at a time with a cache, past any end-of-text token.

    Args:
        model: a causal language model of Transformers.
        prompt: int64[1, length] on the model's device.
        count: at least 2; the speed is that of the median step after the prompt.
    """
    tokens: list[int] = []
    seconds: list[float] = []
    ids, cache = prompt, None
    with torch.inference_mode():
        for _ in range(count):
            start = time.perf_counter()
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
            tokens.append(int(ids.item()))  # waits for the device
            seconds.append(time.perf_counter() - start)
    return Decoded(tokens, 1 / median(seconds[1:]))
