"""Modules with quantized weights."""

from qbits.nn.embedding_4bit import Embedding4bit
from qbits.nn.linear_4bit import Linear4bit

__all__ = ["Embedding4bit", "Linear4bit"]
