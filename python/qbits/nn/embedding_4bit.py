"""An embedding whose table is stored in 4 bits."""

from __future__ import annotations

from qbits.functional.linear import embedding_4bit
from qbits.nn.quantized_embedding import QuantizedEmbedding


class Embedding4bit(QuantizedEmbedding):
    """nn.Embedding with a frozen 4-bit table, of which a lookup reads only the rows it needs.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as for nn.Embedding; the table is
            initialised like its, then quantized.
        config: a 4-bit format, nf4 by default, or a QuantizeConfig with block size and the rest, whose fields
            may also be keyword arguments, alone or beside a format (`config="fp4", block_size=128`).

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    BITS = 4
    LOOKUP = staticmethod(embedding_4bit)
