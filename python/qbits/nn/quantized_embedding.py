"""What embeddings with a quantized table share: how they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from qbits.config import QuantizeConfig, config_of
from qbits.nn.quantized_module import QuantizedModule, quantized_parameter
from qbits.tensor import QuantizedTensor

if TYPE_CHECKING:
    from typing_extensions import Self


class QuantizedEmbedding(QuantizedModule, nn.Embedding):
    """nn.Embedding with a frozen quantized table, of which a lookup reads only the rows it needs.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as for nn.Embedding; the table is
            initialised like its, then quantized.
        config: a format, or a QuantizeConfig with block size and the rest, whose fields may also be keyword
            arguments, alone or beside a format.

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    BITS: ClassVar[int]
    LOOKUP: ClassVar[staticmethod[[Tensor, QuantizedTensor, torch.dtype | None], Tensor]]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: str | QuantizeConfig | None = None,
        **options: object,
    ) -> None:
        self.config = config_of(type(self).__name__, self.BITS, config, options)
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.weight = quantized_parameter(self.weight.detach(), self.config, None)

    @classmethod
    def from_float(
        cls,
        embedding: nn.Embedding,
        config: str | QuantizeConfig | None = None,
        name: str = "weight",
        **options: Any,
    ) -> Self:
        """The quantized `embedding`.

        `config` and `options` as for the constructor; `name` is what a NaN or infinity in the table is
        reported under.

        Raises:
            ValueError: a NaN or infinity, with its first index; max_norm, which rewrites the table; or as
                QuantizeConfig.
            TypeError: another kind of module, or a dtype that cannot be quantized; or as QuantizeConfig.
        """
        op = f"{cls.__name__}.from_float"
        if not isinstance(embedding, nn.Embedding) or isinstance(embedding, QuantizedModule):
            raise TypeError(f"[{op}] module: got {type(embedding).__name__}, want nn.Embedding")
        if embedding.max_norm is not None:
            raise ValueError(f"[{op}] max_norm: got {embedding.max_norm}, want None")
        config = config_of(op, cls.BITS, config, options)
        parameter = quantized_parameter(embedding.weight.detach(), config, name)
        return cls.from_parameter(parameter, config, embedding.padding_idx, embedding.training)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, embeddings: Tensor, config: str | QuantizeConfig | None = None, **options: Any
    ) -> Self:
        """The quantized `nn.Embedding.from_pretrained(embeddings, **options)`. Raises as from_float."""
        return cls.from_float(nn.Embedding.from_pretrained(embeddings, **options), config)

    @classmethod
    def from_parameter(
        cls,
        weight: nn.Parameter,
        config: QuantizeConfig,
        padding_idx: int | None = None,
        training: bool = True,
    ) -> Self:
        """A layer that holds `weight`, a QuantizedTensor [N, K], itself."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.config, layer.padding_idx = config, padding_idx
        layer.num_embeddings, layer.embedding_dim = weight.shape
        layer.max_norm, layer.norm_type, layer.scale_grad_by_freq, layer.sparse = None, 2.0, False, False
        layer.weight = weight
        return layer.train(training)

    def forward(self, indices: Tensor) -> Tensor:
        """[*indices.shape, embedding_dim] in `compute_dtype`, by default the weight's own dtype."""
        weight = self.weight
        if type(weight) is not QuantizedTensor:
            return super().forward(indices)
        return type(self).LOOKUP(indices, weight, self.config.compute_dtype)
