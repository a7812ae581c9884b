"""Layers of every format, for the tests of what they share."""

import qbits
from qbits.nn import Embedding4bit, Embedding8bit, Linear4bit, Linear8bit


def linear_class(options):
    return Linear8bit if options.get("format") == "int8" else Linear4bit


def linear(options, *args, **kwargs):
    """The linear layer with these fields of QuantizeConfig, other arguments as for nn.Linear."""
    return linear_class(options)(*args, config=qbits.QuantizeConfig(**options), **kwargs)


def embedding(options, *args, **kwargs):
    kind = Embedding8bit if options.get("format") == "int8" else Embedding4bit
    return kind(*args, config=qbits.QuantizeConfig(**options), **kwargs)
