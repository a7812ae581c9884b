"""
libqbits for Python. Private: qbits.ops and qbits.functional validate and allocate.
"""

import torch

VERSION: str = "0.1.0"

def bypasses_dispatcher(
    first: object, second: object = None, third: object = None, fourth: object = None
) -> bool: ...

class Format:
    """One row of the format table."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def coding(self) -> str: ...
    @property
    def codebook(self) -> list[float]: ...
    @property
    def ties(self) -> str: ...
    @property
    def block_sizes(self) -> list[int]: ...
    @property
    def whole_rows(self) -> bool: ...
    @property
    def scale_dtypes(self) -> list[str]: ...
    @property
    def tensors(self) -> list[str]: ...

def formats() -> list[Format]: ...
def codes_size(format: str, numel: int) -> int: ...
def num_scales(format: str, rows: int, cols: int, block_size: int) -> int: ...

NESTED_BLOCK_SIZE: int = 256

def create_dynamic_map(signed: bool, max_exponent_bits: int, total_bits: int) -> list[float]: ...
def create_linear_map(signed: bool, total_bits: int, add_zero: bool) -> list[float]: ...
def create_fp8_map(signed: bool, exponent_bits: int, precision_bits: int, total_bits: int) -> list[float]: ...
def create_normal_map(offset: float, use_extra_value: bool) -> list[float]: ...
def quantize_4bit(
    x: torch.Tensor, format: str, block_size: int, codes: torch.Tensor, absmax: torch.Tensor
) -> None: ...
def dequantize_4bit(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    format: str,
    block_size: int,
    out: torch.Tensor,
    nested_absmax: torch.Tensor | None = None,
    nested_code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> None: ...
def quantize_absmax(
    absmax: torch.Tensor,
    nested_code: torch.Tensor,
    values: torch.Tensor,
    nested_absmax: torch.Tensor,
    offset: torch.Tensor,
) -> None: ...
def dequantize_absmax(
    values: torch.Tensor,
    nested_absmax: torch.Tensor,
    nested_code: torch.Tensor,
    offset: torch.Tensor,
    out: torch.Tensor,
) -> None: ...
def quantize_affine(
    x: torch.Tensor,
    format: str,
    group_size: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
) -> None: ...
def dequantize_affine(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    format: str,
    group_size: int,
    out: torch.Tensor,
) -> None: ...
def quantize_blockwise(
    x: torch.Tensor, code: torch.Tensor, block_size: int, codes: torch.Tensor, absmax: torch.Tensor
) -> None: ...
def dequantize_blockwise(
    codes: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, block_size: int, out: torch.Tensor
) -> None: ...
def estimate_quantiles_workspace(x: torch.Tensor) -> int: ...
def estimate_quantiles(
    x: torch.Tensor, offset: float, quantiles: torch.Tensor, workspace: torch.Tensor
) -> None: ...
def linear_4bit_plan(
    format: str,
    rows: int,
    cols: int,
    block_size: int,
    m: int,
    dtype: str,
    compute_capability: int | None = None,
    sm_count: int = 0,
) -> str: ...
def grouped_linear_4bit(
    x: torch.Tensor,
    offsets: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    format: str,
    block_size: int,
    n: int,
    k: int,
    out: torch.Tensor,
    zeros: torch.Tensor | None = None,
    nested_absmax: torch.Tensor | None = None,
    nested_code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> None: ...
def grouped_linear_4bit_plan(
    format: str,
    experts: int,
    rows: int,
    cols: int,
    block_size: int,
    m: int,
    dtype: str,
    compute_capability: int | None = None,
    sm_count: int = 0,
) -> str: ...
def grouped_linear_4bit_grad_x(
    grad: torch.Tensor,
    offsets: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    out: torch.Tensor,
    zeros: torch.Tensor | None = None,
    nested_absmax: torch.Tensor | None = None,
    nested_code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> None: ...
def embedding_4bit(
    indices: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    out: torch.Tensor,
    zeros: torch.Tensor | None = None,
    nested_absmax: torch.Tensor | None = None,
    nested_code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> None: ...
def linear_4bit(x: torch.Tensor, bias: torch.Tensor | None, operands: tuple) -> torch.Tensor: ...
def linear_4bit_direct(x: object, weight: object, bias: object) -> torch.Tensor | tuple | None: ...
def linear_4bit_grad_x(grad: torch.Tensor, operands: tuple) -> torch.Tensor: ...
def quantize_int8_rowwise(
    x: torch.Tensor,
    threshold: float,
    codes: torch.Tensor,
    scales: torch.Tensor,
    outlier_columns: torch.Tensor | None = None,
    outlier_count: torch.Tensor | None = None,
) -> None: ...
def quantize_int8_colwise(
    x: torch.Tensor, threshold: float, codes: torch.Tensor, scales: torch.Tensor
) -> None: ...
def dequantize_int8_rowwise(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None: ...
def dequantize_int8_product(
    dots: torch.Tensor,
    row_scales: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None: ...
def igemm(
    a: torch.Tensor, transpose_a: bool, b: torch.Tensor, transpose_b: bool, out: torch.Tensor
) -> None: ...
def linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> torch.Tensor: ...
def linear_int8_weight_only(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor: ...
def optimizer_step(
    param_groups: list[dict],
    state: dict,
    rows: dict | None,
    offsets: dict | None,
    grad_scales: dict | None,
    devices: list[tuple],
    algorithm: str,
    decay: str,
    scaling: str,
    stochastic_rounding: bool,
    seed: int,
) -> list[tuple[int, torch.Tensor]]: ...
def optimizer_step_tensors(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    states: list[dict],
    rows: list[int],
    ids: list[int],
    grad_scales: list[torch.Tensor] | None,
    device: tuple,
    algorithm: str,
    decay: str,
    stochastic_rounding: bool,
    seed: int,
) -> None: ...
def write_optimizer_groups(values: list[float], groups: torch.Tensor) -> None: ...
def optimizer_algorithms() -> dict[str, tuple[str, int, int]]: ...
def optimizer_fields() -> list[str]: ...

OPTIMIZER_FIELDS: int = 16

STATE_BLOCK_SIZE: int = 256

class Pager:
    def __init__(
        self,
        cuda: int | None,
        memory: object,
        host_slab_bytes: int = 67108864,
        staging_bytes: int = 33554432,
        buffers: int = 3,
    ) -> None: ...
    def add(self, algorithm: str, numel: int, is_8bit: bool, divisible: bool) -> int: ...
    def state(self, index: int) -> dict[str, tuple[int, int]]: ...
    def is_resident(self, index: int) -> bool: ...
    def resident_bytes(self) -> int: ...
    def staging_bytes(self) -> int: ...
    def host_bytes(self) -> int: ...
    def place(self, budget: int) -> str: ...
    def page_out(self) -> None: ...
    def prefetch(self) -> None: ...

def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def cuda_archs() -> list[str]: ...
def cuda_unavailable_reason() -> str: ...
def cuda_driver_version() -> int: ...
def cuda_runtime_version() -> int: ...
