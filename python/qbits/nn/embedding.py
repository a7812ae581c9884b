"""Embeddings that train well beside 8-bit optimizer state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qbits.optim.overrides import override_of_module


class Embedding(nn.Embedding):
    """nn.Embedding, initialised after Glorot and Bengio, whose table keeps 32-bit optimizer state.

    Rows of a table are updated unevenly, which 8-bit blocks represent badly (Dettmers et al., arXiv
    2110.02861, section 2.3).

    Args:
        args, options: as for nn.Embedding. With `_weight` the table is taken as it is.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._keep_32_bits()

    def reset_parameters(self) -> None:
        """A new table, with zeros in the row `padding_idx`."""
        nn.init.xavier_uniform_(self.weight)
        self._fill_padding_idx_with_zero()

    def _keep_32_bits(self) -> None:
        override_of_module(self, "weight", optim_bits=32)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of copies and pickles
        super().__setstate__(state)
        self._keep_32_bits()


class StableEmbedding(Embedding):
    """An Embedding and a layer norm, which is made in torch's default dtype (arXiv 2110.02861, section 2.3).

    Args:
        num_embeddings, embedding_dim, options: as for nn.Embedding.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *args: Any, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, *args, **options)
        self.norm = nn.LayerNorm(embedding_dim, device=self.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """[*input.shape, embedding_dim] in the dtype of the table."""
        rows = super().forward(input).to(self.norm.weight.dtype)
        return self.norm(rows).to(self.weight.dtype)
