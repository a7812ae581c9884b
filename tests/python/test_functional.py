"""qbits.functional: the signatures, shapes and states of bitsandbytes.functional."""

import re

import pytest
import torch

import qbits
import qbits.functional as F

SHAPES = [(1,), (2,), (3,), (64,), (1000,), (1, 128), (5, 33), (2, 3, 64), (2, 1, 3, 20), (0, 64)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_4bit_round_trip(shape, dtype, quant_type, nested):
    A = torch.randn(shape).to(dtype)
    codes, state = F.quantize_4bit(A, blocksize=32, compress_statistics=nested, quant_type=quant_type)
    n = A.numel()
    assert codes.dtype == torch.uint8 and codes.shape == ((n + 1) // 2, 1)
    assert state.absmax.shape == (-(-n // 32),) and state.nested == nested
    assert (state.shape, state.dtype, state.blocksize, state.quant_type) == (A.shape, dtype, 32, quant_type)
    y = F.dequantize_4bit(codes, state)
    assert y.shape == A.shape and y.dtype == dtype
    if n >= 64:
        assert (y.float() - A.float()).norm() < 0.2 * A.float().norm()
    short = getattr(F, f"dequantize_{quant_type}")(codes, state)
    assert torch.equal(short, y)
    again, _ = getattr(F, f"quantize_{quant_type}")(A, blocksize=32)
    assert torch.equal(again, codes)


@pytest.mark.parametrize("storage", [torch.uint8, torch.int8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5, 6, 16, 64, 129])
def test_quant_storage(storage, n):
    A = torch.randn(n)
    codes, state = F.quantize_4bit(A, quant_type="nf4", quant_storage=storage)
    assert codes.dtype == storage and codes.shape == (-(-((n + 1) // 2) // storage.itemsize), 1)
    plain, _ = F.quantize_4bit(A, quant_type="nf4")
    assert torch.equal(codes.view(torch.uint8).flatten()[: (n + 1) // 2], plain.flatten())
    assert torch.equal(F.dequantize_4bit(codes, state), F.dequantize_4bit(plain, state))


def test_dequantize_takes_codes_of_any_shape_and_never_transposes():
    A = torch.randn(16, 8)
    codes, state = F.quantize_4bit(A, quant_type="nf4")
    y = F.dequantize_4bit(codes, state)
    assert torch.equal(F.dequantize_4bit(codes.t(), state), y)
    assert torch.equal(F.dequantize_4bit(codes.view(16, 4), state), y)


def test_out_and_absmax_arguments():
    A = torch.randn(4, 64)
    absmax, out = torch.empty(4), torch.empty(128, 1, dtype=torch.uint8)
    codes, state = F.quantize_4bit(A, absmax=absmax, out=out, quant_type="nf4")
    assert codes is out and state.absmax is absmax
    dense = torch.empty(4, 64)
    assert F.dequantize_4bit(codes, absmax=absmax, out=dense, quant_type="nf4") is dense
    assert torch.equal(dense, F.dequantize_4bit(codes, state))
    codes8, state8 = F.quantize_blockwise(A, blocksize=64)
    assert torch.equal(
        F.dequantize_blockwise(codes8, absmax=state8.absmax, blocksize=64),
        F.dequantize_blockwise(codes8, state8),
    )
    out8 = torch.empty_like(A)
    assert F.dequantize_blockwise(codes8, state8, out=out8) is out8


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gemv_4bit(quant_type, nested, dtype):
    W = torch.randn(33, 50).to(dtype)
    codes, state = F.quantize_4bit(W, blocksize=32, compress_statistics=nested, quant_type=quant_type)
    dense = F.dequantize_4bit(codes, state).double()
    weight = qbits.quantize(W, quant_type, block_size=32, double_quant=nested)
    for shape in ((50,), (1, 50), (5, 50), (2, 0, 50), (2, 3, 50)):
        A = torch.randn(shape).to(dtype)
        y = F.gemv_4bit(A, codes.t(), state=state)
        assert y.shape == (*shape[:-1], 33) and y.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
        torch.testing.assert_close(y.double(), A.double() @ dense.T, atol=tolerance, rtol=tolerance)
        assert torch.equal(y, F.linear_4bit(A, weight))
        out = torch.empty_like(y)
        assert F.gemv_4bit(A, codes, out, state=state) is out and torch.equal(out, y)


def test_gemv_4bit_takes_any_storage_and_refuses_what_does_not_fit():
    W, A = torch.randn(16, 64), torch.randn(1, 64)
    codes, state = F.quantize_4bit(W, quant_type="nf4")
    want = F.gemv_4bit(A, codes, state=state)
    for storage in (torch.bfloat16, torch.float32):
        stored, _ = F.quantize_4bit(W, quant_type="nf4", quant_storage=storage)
        assert torch.equal(F.gemv_4bit(A, stored, state=state), want)
    _, vector = F.quantize_4bit(W.flatten(), quant_type="nf4")
    blockwise = F.quantize_blockwise(W)[1]
    for arguments, options, error, message in [
        (
            (A, codes),
            {"state": None},
            ValueError,
            r"\[gemv_4bit\] state: got None, want that of quantize_4bit$",
        ),
        ((A, codes), {"state": vector}, ValueError, r"\[gemv_4bit\] state: got nf4 \[1024\], want that of a"),
        ((A, codes), {"state": blockwise}, ValueError, r"\[gemv_4bit\] state: got None .*, want that of a"),
        ((A, codes), {"transposed_A": True}, ValueError, "transposed_A: got True, want False"),
        ((A, codes), {"transposed_B": True}, ValueError, "transposed_B: got True, want False"),
        ((A, codes[1:]), {}, ValueError, r"codes: got uint8\[511\] on cpu, want 512 elements"),
        ((A, torch.cat([codes, codes])), {}, ValueError, r"\[gemv_4bit\] codes: got uint8"),
        ((A[:, 1:], codes), {}, ValueError, r"x: got float32\[1, 63\] on cpu, want a last dimension of 64"),
        ((A.double(), codes), {}, TypeError, "x: got .*float64, want float32, bfloat16, float16"),
        ((None, codes), {}, TypeError, r"\[gemv_4bit\] A: got NoneType, want a tensor"),
        ((A, [1]), {}, TypeError, r"\[gemv_4bit\] B: got list, want a tensor"),
        ((A, codes, torch.empty(16)), {}, ValueError, r"\[gemv_4bit\] out: got float32\[16\]"),
        ((A.clone().requires_grad_(), codes), {}, RuntimeError, "want qbits.functional.linear_4bit"),
    ]:
        with pytest.raises(error, match=message):
            F.gemv_4bit(*arguments, **{"state": state, **options})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"absmax": None}, TypeError, "absmax: got NoneType, want a tensor"),
        ({"shape": (16.0, 64)}, TypeError, r"shape: got \[16.0, 64\], want two ints"),
        ({"shape": 16}, TypeError, "shape: got 16, want two sizes"),
        ({"quant_type": "nf5"}, ValueError, "quant_type: got 'nf5', want nf4 or fp4$"),
        ({"quant_type": "int8"}, ValueError, "quant_type: got 'int8', want nf4 or fp4$"),
        ({"quant_type": 4}, ValueError, "quant_type: got 4, want nf4 or fp4$"),
        ({"offset": 2.0}, TypeError, "offset: got float, want a tensor"),
        ({"state2": "x"}, TypeError, "state2.absmax: got str, want a tensor"),
        ({"state2": F.QuantState(torch.ones(1))}, TypeError, "state2.code: got NoneType, want a tensor"),
    ],
)
def test_gemv_4bit_refuses_a_state_with_something_else_in_it(changes, error, message):
    codes, state = F.quantize_4bit(torch.randn(16, 64), compress_statistics=True, quant_type="nf4")
    for name, value in changes.items():
        setattr(state, name, value)
    with pytest.raises(error, match=rf"^\[gemv_4bit\] state\.{message}"):
        F.gemv_4bit(torch.randn(1, 64), codes, state=state)
    with pytest.raises(TypeError, match=r"^\[gemv_4bit\] state: got str, want a QuantState$"):
        F.gemv_4bit(torch.randn(1, 64), codes, state="x")


def test_4bit_refusals():
    codes, state = F.quantize_4bit(torch.randn(64), quant_type="nf4")
    with pytest.raises(ValueError, match=r"\[quantize_4bit\] quant_type: got 'int4', want nf4 or fp4"):
        F.quantize_4bit(torch.randn(64), quant_type="int4")
    with pytest.raises(ValueError, match=r"\[quantize_4bit\] block size: got 63"):
        F.quantize_4bit(torch.randn(64), blocksize=63)
    with pytest.raises(TypeError, match=r"\[quantize_4bit\]"):
        F.quantize_4bit(torch.zeros(64, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\[dequantize_4bit\] quant_state"):
        F.dequantize_4bit(codes)
    with pytest.raises(ValueError, match=r"\[dequantize_4bit\] codes"):
        F.dequantize_4bit(codes[:-1], state)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nested", [False, True])
def test_blockwise_round_trip(shape, dtype, nested):
    A = torch.randn(shape).to(dtype)
    codes, state = F.quantize_blockwise(A, blocksize=64, nested=nested)
    assert codes.dtype == torch.uint8 and codes.shape == A.shape
    assert state.nested == nested and state.dtype == dtype
    y = F.dequantize_blockwise(codes, state)
    assert y.shape == A.shape and y.dtype == dtype
    if A.numel() >= 64:
        assert (y.float() - A.float()).norm() < 0.05 * A.float().norm()
    zero = torch.zeros(128)
    assert torch.equal(F.dequantize_blockwise(*F.quantize_blockwise(zero)), zero)


def test_blockwise_with_another_code():
    A = torch.rand(1000)
    code = F.create_linear_map(signed=False)
    codes, state = F.quantize_blockwise(A, code=code, blocksize=256)
    torch.testing.assert_close(F.dequantize_blockwise(codes, state), A, atol=1 / 500, rtol=0)
    code = F.create_quantile_map(torch.randn(10000))
    codes, state = F.quantize_blockwise(torch.randn(1000), code=code, blocksize=256)
    assert torch.equal(state.code, code)


def test_quant_state_layouts():
    codes, state = F.quantize_4bit(torch.randn(32, 64), quant_type="nf4", compress_statistics=True)
    assert state[0] is state.absmax and state[1] == (32, 64) and state[3] == 64 and state[-1] == "nf4"
    assert state[4][0] is state.offset and state[4][1] is state.state2
    for packed in (False, True):
        entries = state.as_dict(packed=packed)
        assert F.QuantState.from_dict(entries, "cpu") == state
        prefixed = {f"layer.weight.{key}": value for key, value in entries.items()}
        again = F.QuantState.from_dict(prefixed, "cpu")
        assert torch.equal(F.dequantize_4bit(codes, again), F.dequantize_4bit(codes, state))
        assert len(prefixed) == len(entries)  # the argument is left alone
    assert all(isinstance(value, torch.Tensor) for value in state.as_dict(packed=True).values())
    assert torch.equal(state.bitsandbytes__nf4, state.as_dict(packed=True)["quant_state.bitsandbytes__nf4"])
    with pytest.raises(AttributeError, match="bitsandbytes__fp4"):
        state.bitsandbytes__fp4  # noqa: B018
    _, plain = F.quantize_4bit(torch.randn(32, 64), quant_type="nf4")
    assert plain[4] is None and plain != state and plain == plain
    state.to("meta")
    tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    assert all(t.is_meta for t in tensors)


def test_4bit_types():
    for name in ("nf4", "fp4", "int4", "af4"):
        values = F.get_4bit_type(name, device="cpu")
        assert values.shape == (16,) and values.dtype == torch.float32 and values.abs().max() == 1
    assert torch.equal(F.get_4bit_type("nf4", "cpu").sort().values, F.get_4bit_type("nf4", "cpu"))
    with pytest.raises(NotImplementedError, match=r"\[get_4bit_type\] type: got 'af4' with blocksize 128"):
        F.get_4bit_type("af4", "cpu", blocksize=128)
    with pytest.raises(NotImplementedError):
        F.get_4bit_type("nf3", "cpu")


@pytest.mark.parametrize("n", [1, 7, 255, 100_001])
def test_quantiles(n):
    x = torch.randn(n)
    quantiles = F.estimate_quantiles(x)
    assert quantiles.shape == (256,) and quantiles.dtype == torch.float32
    assert torch.equal(quantiles.sort().values, quantiles)
    if n > 1000:
        ranks = torch.searchsorted(x.sort().values, quantiles) / n
        expected = torch.linspace(1 / 512, 1 - 1 / 512, 256)
        assert (ranks - expected).abs().max() < 0.005
    out = torch.empty(16)
    assert F.estimate_quantiles(x, out=out, num_quantiles=16) is out
    code = F.create_quantile_map(x)
    assert code.shape == (256,) and code.abs().max() == 1 and torch.equal(code.sort().values, code)
    assert (F.create_quantile_map(x, total_bits=4) == 0).sum() >= 241
    with pytest.raises(ValueError, match=r"\[create_quantile_map\] total_bits"):
        F.create_quantile_map(x, total_bits=9)


@pytest.mark.parametrize("format, shape", [("int4", (7, 33)), ("int8_affine", (2, 3, 64)), ("int4", (0, 64))])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_affine(format, shape, group_size, scale_dtype):
    x = torch.randn(shape)
    codes, scales, zeros = F.quantize_affine(x, format, group_size, scale_dtype)
    groups = 1 if group_size == 0 else -(-shape[-1] // group_size)
    assert scales.shape == zeros.shape == (x.numel() // shape[-1], groups) and scales.dtype == scale_dtype
    y = F.dequantize_affine(codes, scales, zeros, format, group_size, shape)
    assert y.shape == x.shape
    if x.numel():
        assert (y - x).norm() < (0.2 if format == "int4" else 0.02) * x.norm()


def test_gradients_do_not_pass_through_quantization():
    A = torch.randn(64, requires_grad=True)
    codes, state = F.quantize_4bit(A, quant_type="nf4")
    assert not F.dequantize_4bit(codes, state).requires_grad
    assert not F.quantize_blockwise(A)[1].absmax.requires_grad


def test_tensors_to_write_into_are_checked():
    A = torch.randn(64, 64)
    codes, state = F.quantize_4bit(A)
    with pytest.raises(TypeError, match=r"\[quantize_4bit\] out: got float32, want uint8"):
        F.quantize_4bit(A, out=torch.empty(2048, 1))
    with pytest.raises(ValueError, match=r"\[quantize_4bit\] absmax: got float32\[2, 64\]"):
        F.quantize_4bit(A, absmax=torch.empty(2, 64))
    with pytest.raises(TypeError, match=r"\[dequantize_4bit\] out: got int32, want float32"):
        F.dequantize_4bit(codes, state, out=torch.empty(64, 64, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"\[dequantize_blockwise\] out: got float32\[3, 64, 64\]"):
        F.dequantize_blockwise(*F.quantize_blockwise(A), out=torch.empty(3, 64, 64))
    with pytest.raises(ValueError, match=r"\[estimate_quantiles\] out"):
        F.estimate_quantiles(A, out=torch.empty(2, 256))


def test_codes_of_another_tensor_are_refused():
    codes, state = F.quantize_4bit(torch.randn(64, 64))
    for wrong in (torch.cat([codes, codes]), codes.double()):
        with pytest.raises(ValueError, match=r"\[dequantize_4bit\] codes: got .*, want 2048 bytes"):
            F.dequantize_4bit(wrong, state)


@pytest.mark.parametrize(
    "size, error, want",
    [
        (2**63, ValueError, "one from 16 to 4096"),
        (-(2**80), ValueError, "one from"),
        (1.5, TypeError, "an int"),
    ],
)
def test_a_block_size_that_no_op_can_be_given(size, error, want):
    A = torch.randn(4, 64)
    codes, state = F.quantize_4bit(A)
    state.blocksize = size
    codes8, state8 = F.quantize_blockwise(A)
    affine = F.quantize_affine(A)
    for op, call in [
        ("quantize_4bit", lambda: F.quantize_4bit(A, blocksize=size)),
        ("dequantize_4bit", lambda: F.dequantize_4bit(codes, state)),
        ("quantize_blockwise", lambda: F.quantize_blockwise(A, blocksize=size)),
        (
            "dequantize_blockwise",
            lambda: F.dequantize_blockwise(codes8, absmax=state8.absmax, blocksize=size),
        ),
        ("quantize_affine", lambda: F.quantize_affine(A, group_size=size)),
        ("dequantize_affine", lambda: F.dequantize_affine(*affine, "int4", size, (4, 64))),
        ("linear_4bit_plan", lambda: F.linear_4bit_plan("nf4", 4, 64, size)),
    ]:
        with pytest.raises(error, match=rf"\[{op}\] block size: got {size}, want {want}"):
            call()


def test_linear_4bit_plan():
    isa = qbits.isa()
    assert F.linear_4bit_plan("nf4", 64, 128).startswith(f"cpu {isa}, few rows of x, 2 tiles 1x32, ")
    assert F.linear_4bit_plan("int4", 7, 33, 0, m=9, dtype=torch.float32).startswith(
        f"cpu {isa}, many rows of x, 1 tile 9x7, 1 thread"
    )
    hopper = {"compute_capability": (9, 0), "sm_count": 132}
    assert F.linear_4bit_plan("nf4", 4096, 4096, **hopper).startswith("stream ")
    assert F.linear_4bit_plan("nf4", 4096, 4096, dtype=torch.float32, **hopper).startswith(
        "simt row, 512 blocks"
    )
    assert F.linear_4bit_plan("nf4", 0, 64) == "nothing to do: the result is empty"
    for arguments, error, message in [
        (("nf5", 1, 64), ValueError, "format: got 'nf5', want one of nf4"),
        (("int8", 1, 64), ValueError, "format: got int8, want a 4-bit format"),
        (("nf4", 1, 64, 48), ValueError, "block size: got 48, want 16, 32"),
        (("nf4", 2**32, 2**32), ValueError, "sizes: got rows 4294967296, cols 4294967296, m 1, want each"),
        (("nf4", 1, 64, 64, 1, torch.float64), TypeError, "dtype of x: got float64, want float32"),
        (("nf4", 1, 64, 64, 1, torch.float32, "meta"), ValueError, "device: got meta, want cpu"),
    ]:
        with pytest.raises(error, match=rf"\[linear_4bit_plan\] {message}"):
            F.linear_4bit_plan(*arguments)
    with pytest.raises(
        ValueError, match=r"\] device: got compute capability 70 with 80 multiprocessors, want 75"
    ):
        F.linear_4bit_plan("nf4", 1, 64, compute_capability=(7, 0), sm_count=80)
    for facts, message in (
        ({"compute_capability": 90, "sm_count": 132}, "compute_capability: got 90 with sm_count 132"),
        ({"compute_capability": (9, 0)}, r"compute_capability: got \(9, 0\) with sm_count 0"),
        ({"sm_count": 132}, "sm_count: got 132 alone"),
        ({"device": "cuda", **hopper}, "device: got cuda beside compute_capability, want one of the two"),
    ):
        with pytest.raises(ValueError, match=rf"^\[linear_4bit_plan\] {message}"):
            F.linear_4bit_plan("nf4", 1, 64, **facts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_linear_4bit_plan_of_a_gpu_that_is_not_here():
    message = (
        r"device: got cuda, want one that torch can use, or compute_capability and sm_count in its place"
    )
    with pytest.raises(ValueError, match=rf"^\[linear_4bit_plan\] {message}$"):
        F.linear_4bit_plan("nf4", 4096, 4096, device="cuda")


@pytest.mark.gpu
def test_linear_4bit_plan_of_the_gpu(gpu):
    facts = torch.cuda.get_device_properties(gpu)
    there = {"compute_capability": (facts.major, facts.minor), "sm_count": facts.multi_processor_count}
    assert F.linear_4bit_plan("nf4", 4096, 4096, device=gpu) == F.linear_4bit_plan("nf4", 4096, 4096, **there)


@pytest.mark.parametrize("bad", [None, [1.0], 3])
def test_what_is_no_tensor_is_a_type_error_that_names_it(bad):
    x = torch.randn(4, 64)
    codes, scales, _ = F.quantize_affine(x)
    packed, _ = F.quantize_4bit(x)
    calls = {
        "[quantize_4bit] A": lambda: F.quantize_4bit(bad),
        "[dequantize_4bit] A": lambda: F.dequantize_4bit(bad, F.quantize_4bit(x)[1]),
        "[quantize_blockwise] A": lambda: F.quantize_blockwise(bad),
        "[dequantize_blockwise] A": lambda: F.dequantize_blockwise(bad, F.quantize_blockwise(x)[1]),
        "[quantize_affine] x": lambda: F.quantize_affine(bad),
        "[dequantize_affine] zeros": lambda: F.dequantize_affine(codes, scales, bad, "int4", 64, x.shape),
        "[estimate_quantiles] A": lambda: F.estimate_quantiles(bad),
    }
    if bad is not None:  # where None has a meaning
        calls |= {
            "[quantize_4bit] out": lambda: F.quantize_4bit(x, out=bad),
            "[dequantize_4bit] absmax": lambda: F.dequantize_4bit(packed, None, bad, x.clone()),
            "[quantize_blockwise] code": lambda: F.quantize_blockwise(x, bad),
            "[dequantize_blockwise] absmax": lambda: F.dequantize_blockwise(x.byte(), None, bad),
        }
    for where, call in calls.items():
        with pytest.raises(TypeError, match=f"{re.escape(where)}: got {type(bad).__name__}, want a tensor"):
            call()
