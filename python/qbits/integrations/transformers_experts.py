"""Transformers' batched_mm picks the weights of each token's experts, which would make dense values of all.

`generate` changes to it on a GPU. Experts whose weights are quantized multiply as in grouped_mm instead,
which reads the packed weights of the experts in use.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

from qbits.tensor import QuantizedTensor


def batched_mm_of_experts(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What transformers calls: tokens [T, hidden], their experts and the experts' weights [T, top_k]."""
    packed = any(isinstance(p, QuantizedTensor) and p.is_4bit_experts for p in self.parameters(recurse=False))
    forward = grouped_mm_experts_forward if packed else batched_mm_experts_forward
    return forward(self, hidden_states, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register("batched_mm", batched_mm_of_experts)
