"""An embedding whose table is stored in rows of 8 bits with a scale each."""

from __future__ import annotations

from qbits.functional.int8_weight import embedding_int8
from qbits.nn.quantized_embedding import QuantizedEmbedding


class Embedding8bit(QuantizedEmbedding):
    """nn.Embedding with a frozen 8-bit table, of which a lookup reads only the rows it needs.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as for nn.Embedding; the table is
            initialised like its, then quantized.
        config: "int8", or a QuantizeConfig of it, whose fields may also be keyword arguments, alone or beside
            "int8". (A lookup has no x: threshold and activation_bits say nothing here.)

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    BITS = 8
    LOOKUP = staticmethod(embedding_int8)
