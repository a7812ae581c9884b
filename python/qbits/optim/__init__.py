"""Optimizers with the interface and the formulas of torch.optim, and state in 32 or 8 bits."""

from qbits.optim.adagrad import Adagrad, Adagrad8bit, Adagrad32bit
from qbits.optim.adam import (
    Adam,
    Adam8bit,
    Adam32bit,
    AdamW,
    AdamW8bit,
    AdamW32bit,
    PagedAdam,
    PagedAdam8bit,
    PagedAdam32bit,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdamW32bit,
)
from qbits.optim.ademamix import (
    AdEMAMix,
    AdEMAMix8bit,
    AdEMAMix32bit,
    PagedAdEMAMix,
    PagedAdEMAMix8bit,
    PagedAdEMAMix32bit,
)
from qbits.optim.lamb import LAMB, LAMB8bit, LAMB32bit
from qbits.optim.lars import LARS, LARS8bit, LARS32bit
from qbits.optim.lion import Lion, Lion8bit, Lion32bit, PagedLion, PagedLion8bit, PagedLion32bit
from qbits.optim.muon import Muon, Muon8bit, Muon32bit
from qbits.optim.optimizer import Optimizer, Options
from qbits.optim.overrides import GlobalOptimManager, override
from qbits.optim.rmsprop import RMSprop, RMSprop8bit, RMSprop32bit
from qbits.optim.sgd import SGD, SGD8bit, SGD32bit
from qbits.optim.sharding import flat_state, rows_of_state
from qbits.optim.state_dict import to_bitsandbytes

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdEMAMix8bit",
    "AdEMAMix32bit",
    "Adagrad",
    "Adagrad8bit",
    "Adagrad32bit",
    "Adam",
    "Adam8bit",
    "Adam32bit",
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "GlobalOptimManager",
    "LAMB8bit",
    "LAMB32bit",
    "LARS8bit",
    "LARS32bit",
    "Lion",
    "Lion8bit",
    "Lion32bit",
    "Muon",
    "Muon8bit",
    "Muon32bit",
    "Optimizer",
    "Options",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdEMAMix32bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdam32bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedLion32bit",
    "RMSprop",
    "RMSprop8bit",
    "RMSprop32bit",
    "SGD8bit",
    "SGD32bit",
    "flat_state",
    "override",
    "rows_of_state",
    "to_bitsandbytes",
]
