"""torch.compile's tracer: what it puts into its graphs as one call."""

from __future__ import annotations

import torch._dynamo

from qbits.functional.int8_weight import product_in_graph

torch._dynamo.allow_in_graph(product_in_graph)
