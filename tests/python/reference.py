"""What each op must return, written from the definitions in core/include/qbits and nothing else.

Choices among codes are made in float64, where the distances between two float32 are exact enough to order;
what the definitions round to float32 is rounded to float32 here.
"""

import math

import torch

from qbits.formats import FORMATS, NESTED_BLOCK_SIZE


def blocks_of(flat, block_size):
    """[blocks, block_size] with zeros behind the end."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)


def nearest(values, ties, quotient):
    """Index of the entry of `values` nearest to each element, exact ties as the format says."""
    order = {
        "lower": values,
        "toward_zero": values.abs(),
        "even": torch.arange(len(values)) % 2,
    }[ties].argsort(stable=True)
    distance = (quotient.double()[..., None] - values[order].double()).abs()
    return order[distance.argmin(-1)]


def quantize_codebook(x, values, ties, block_size):
    """Codes, one per element, and float32 absmax per block."""
    flat = x.float().reshape(-1)
    blocks = blocks_of(flat, block_size)
    absmax = blocks.abs().amax(1) if blocks.numel() else blocks.new_empty(0)
    finite = blocks.isfinite().all(1)
    divisor = torch.where(finite & (absmax > 0), absmax, 1.0)
    quotient = torch.where(finite[:, None], blocks, 0.0) / divisor[:, None]
    codes = torch.cat([nearest(values, ties, part) for part in quotient.reshape(-1).split(1 << 16)])
    return codes[: flat.numel()], torch.where(finite, absmax, math.nan)


def unpack(codes, numel):
    """One code per element of packed 4-bit codes, and the last low nibble if it belongs to none."""
    nibbles = torch.stack([codes >> 4, codes & 15], 1).reshape(-1).long()
    return nibbles[:numel], nibbles[numel:]


def dequantize_absmax(values, nested_absmax, nested_code, offset):
    if nested_absmax is None:
        return values
    product = (
        nested_code[values.long()] * nested_absmax.repeat_interleave(NESTED_BLOCK_SIZE)[: values.numel()]
    )
    return product + offset


def dequantize_4bit(codes, absmax, format, block_size, shape, dtype, nested_absmax, nested_code, offset):
    numel = math.prod(shape)
    absmax = dequantize_absmax(absmax, nested_absmax, nested_code, offset)
    values = torch.tensor(FORMATS[format].codebook)[unpack(codes, numel)[0]]
    return (values * absmax.repeat_interleave(block_size)[:numel]).reshape(shape).to(dtype)


def groups_of(x, group_size):
    """The elements of each group of each row [rows, groups, size], and which of them exist."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    size = group_size or max(x.shape[-1], 1)
    pad = -x.shape[-1] % size
    exists = torch.nn.functional.pad(torch.ones_like(rows, dtype=torch.bool), (0, pad))
    rows = torch.nn.functional.pad(rows, (0, pad))
    shape = (rows.shape[0], rows.shape[1] // size, size)
    return rows.reshape(shape), exists.reshape(shape)


def quantize_affine(x, format, group_size, scale_dtype):
    """Codes, one per element, scales and zeros [rows, groups]."""
    top = 2 ** FORMATS[format].bits - 1
    groups, exists = groups_of(x.float(), group_size)
    if groups.numel() == 0:
        empty = groups.new_empty(groups.shape[:2], dtype=scale_dtype)
        return torch.empty(0, dtype=torch.long), empty, empty
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scales = (high / top - low / top).to(scale_dtype)
    s = scales.float()
    divisor = torch.where(s > 0, s, 1.0)
    zeros = ((0.0 - low) / divisor).round().clamp(0, top)  # a zero point of 0 is +0
    codes = ((groups / divisor[..., None]).round() + zeros[..., None]).clamp(0, top)
    return codes[exists].long(), scales, zeros.to(scale_dtype)


def dequantize_affine(codes, scales, zeros, format, group_size, shape, dtype):
    numel = math.prod(shape)
    codes = unpack(codes, numel)[0] if FORMATS[format].bits == 4 else codes
    if numel == 0:
        return torch.empty(shape, dtype=dtype)
    size = group_size or shape[-1]

    def spread(t):
        return t.float().repeat_interleave(size, 1)[:, : shape[-1]].reshape(shape)

    return ((codes.reshape(shape).float() - spread(zeros)) * spread(scales)).to(dtype)


def dequantize_blockwise(codes, absmax, code, block_size, dtype):
    flat = code[codes.reshape(-1).long()] * absmax.repeat_interleave(block_size)[: codes.numel()]
    return flat.reshape(codes.shape).to(dtype)


def dequantize_weight(codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset):
    """The float32 values of a 4-bit weight [N, K]."""
    if FORMATS[format].coding == "affine":
        return dequantize_affine(codes, scales, zeros, format, block_size, (n, k), torch.float32)
    nested = (nested_absmax, nested_code, offset)
    return dequantize_4bit(codes, scales, format, block_size, (n, k), torch.float32, *nested)


def product(x, w, bias=None):
    """x w^T + bias in float64, and an elementwise bound for a float32 sum of it rounded to x's dtype."""
    x64, w64 = x.double(), w.double()
    out, size = x64 @ w64.T, x64.abs() @ w64.abs().T
    if bias is not None:
        out, size = out + bias.double(), size + bias.double().abs()
    # For 16-bit x the weight may be rounded to x's dtype on its way into a tensor core.
    unit = torch.finfo(x.dtype).eps / 2
    factor = (x.shape[-1] + 2) * 2.0**-24 + (unit if x.dtype != torch.float32 else 0.0)
    return out, factor * size + 2 * unit * out.abs() + torch.finfo(x.dtype).smallest_normal


def quantize_int8_rowwise(x, threshold):
    """Codes, scales, and the list of outlier columns."""
    x = x.float()
    outlier = x.abs() >= threshold if threshold else torch.zeros_like(x, dtype=torch.bool)
    inliers = x.masked_fill(outlier, 0.0)
    scales = inliers.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    scales = torch.where(scales.isfinite(), scales, math.nan)
    quotient = inliers / torch.where(scales > 0, scales, 1.0)[..., None]
    codes = (127 * quotient.double()).round()
    columns = outlier.reshape(math.prod(x.shape[:-1]), x.shape[-1]).any(0)
    codes = codes.masked_fill(columns | ~(scales > 0)[..., None], 0.0)
    return codes.to(torch.int8), scales, columns.nonzero().flatten()


def quantize_int8_colwise(x, threshold):
    """Codes and scales: those of the rows of the transpose, but that an outlier is left out alone."""
    flat = x.float().reshape(-1, x.shape[-1]) if x.shape[-1] else x.float().reshape(0, 0)
    outlier = flat.abs() >= threshold if threshold else torch.zeros_like(flat, dtype=torch.bool)
    codes, scales, _ = quantize_int8_rowwise(flat.masked_fill(outlier, 0.0).T, 0.0)
    return codes.T.reshape(x.shape), scales if len(flat) else torch.zeros(x.shape[-1])


def dequantize_int8_rowwise(codes, scales, dtype):
    return (codes.float() * scales[..., None] * (1 / 127)).to(dtype)


def linear_int8_weight_only(x, codes, scales, bias):
    """The product in float64, and an elementwise bound of what summing in float32 may err."""
    x64, w64, b = x.double(), codes.double(), scales.double() / 127
    out, size = b * (x64 @ w64.T), b * (x64.abs() @ w64.abs().T)
    if bias is not None:
        out, size = out + bias.double(), size + bias.double().abs()
    bound = (x.shape[-1] + 3) * 2.0**-24 * size
    return out, bound + torch.finfo(x.dtype).eps / 2 * out.abs() + torch.finfo(x.dtype).smallest_normal


def igemm(a, b, transpose_a, transpose_b):
    a, b = (t.mT if flag else t for t, flag in ((a, transpose_a), (b, transpose_b)))
    return (a.long() @ b.long()).to(torch.int32)  # modulo 2^32


def dequantize_int8_product(dots, row_scales, column_scales, bias, dtype):
    a, b = (row_scales / 127)[..., None].double(), (column_scales / 127).double()
    # Each product fits 53 bits, and so does its sum with what it is added to, but for rare last bits.
    inner = (a * dots.float().double()).float().double()
    return (b * inner + (0.0 if bias is None else bias.double())).float().to(dtype)


def linear_int8(x, codes, scales, bias, threshold):
    """The product in float64, and an elementwise bound of what summing the outliers in float32 may err."""
    x_codes, x_scales, columns = quantize_int8_rowwise(x, threshold)
    a, b = (x_scales / 127)[..., None].double(), (scales / 127).double()
    dot = (x_codes.double() @ codes.double().T).float().double()
    x64, w64 = x[..., columns].double(), codes[:, columns].double()
    outliers, size = x64 @ w64.T, x64.abs() @ w64.abs().T
    # Each sum is that of one fused multiply-add, rounded to float32: 53 bits hold the products exactly.
    if len(columns) == 0:
        out = (b * (a * dot).float().double() + (0.0 if bias is None else bias.double())).float()
        return out.to(x.dtype), torch.zeros(())
    inner = a * dot + outliers
    out = b * inner + (0.0 if bias is None else bias.double())
    bound = 2.0**-24 * (b * ((len(columns) + 1) * size + inner.abs()) + out.abs())
    return out, bound + torch.finfo(x.dtype).eps / 2 * out.abs() + torch.finfo(x.dtype).smallest_normal
