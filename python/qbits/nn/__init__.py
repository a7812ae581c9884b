"""Modules with quantized weights, and embeddings that suit 8-bit optimizers."""

from qbits.nn.embedding import Embedding, StableEmbedding
from qbits.nn.embedding_4bit import Embedding4bit
from qbits.nn.embedding_8bit import Embedding8bit
from qbits.nn.linear_4bit import Linear4bit
from qbits.nn.linear_8bit import Linear8bit

__all__ = ["Embedding", "Embedding4bit", "Embedding8bit", "Linear4bit", "Linear8bit", "StableEmbedding"]
