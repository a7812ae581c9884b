"""Side by side with the installed bitsandbytes, in the same process.

Given the same scales, codes are the same wherever bitsandbytes' are right, which means nearest to
x / absmax; a mismatch is accepted only with the proof, in float64, that bitsandbytes' code is not.
"""

import copy
import hashlib
import json
import math

import pytest
import torch

import qbits
import qbits.functional as F
from qbits.nn import Linear4bit

pytestmark = pytest.mark.filterwarnings("ignore")
bnb = pytest.importorskip("bitsandbytes")
B = bnb.functional


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unpack(codes, n):
    codes = codes.flatten()
    return torch.stack([codes >> 4, codes & 15], 1).flatten()[:n]


def nearest_or_right(ours, theirs, quotient, values):
    """The number of mismatches, every one of which has a value of ours nearer to the quotient, or as near.

    fp4 has two codes of zero; bitsandbytes' CPU kernel picks either, so these are compared by value.
    """
    values = values.double()
    wrong = (values[ours.long()] != values[theirs.long()]).nonzero().flatten()
    q = quotient.nan_to_num(0).double()[wrong]  # 0 / 0 in a block of zeros
    mine = (values[ours[wrong].long()] - q).abs()
    other = (values[theirs[wrong].long()] - q).abs()
    assert bool((mine <= other).all())
    return len(wrong)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blocksize", [32, 64, 256, 4096])
@pytest.mark.parametrize("shape", [(64, 128), (33, 50), (1001,)])
def test_4bit_codes(quant_type, dtype, blocksize, shape):
    A = torch.randn(shape).to(dtype)
    ours, state = F.quantize_4bit(A, blocksize=blocksize, quant_type=quant_type)
    theirs, their_state = B.quantize_4bit(A, blocksize=blocksize, quant_type=quant_type)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert torch.equal(state.absmax, their_state.absmax) and torch.equal(state.code, their_state.code)
    n = A.numel()
    block = torch.arange(n) // blocksize
    quotient = A.flatten().float() / state.absmax[block]
    a, b = unpack(ours, n), unpack(theirs, n)
    mismatches = nearest_or_right(a, b, quotient, state.code)
    assert mismatches <= max(2, n // 1000)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_their_4bit_tensors_dequantize_bit_for_bit(quant_type, nested, dtype):
    A = torch.randn(96, 256).to(dtype)  # whole blocks a row: where bitsandbytes' CPU kernel is right
    codes, state = B.quantize_4bit(A, quant_type=quant_type, compress_statistics=nested)
    expected = B.dequantize_4bit(codes, state)
    again = F.QuantState.from_dict(state.as_dict(packed=True), "cpu")
    ours = F.dequantize_4bit(codes, again)
    absmax = state.absmax
    if nested:
        scales = state.state2.code[absmax.long()]
        absmax = scales * state.state2.absmax[torch.arange(len(absmax)) // 256] + state.offset
    exact = state.code[unpack(codes, A.numel()).long()] * absmax.repeat_interleave(64)
    assert torch.equal(ours, exact.to(dtype).view(96, 256))
    assert torch.equal(ours, expected)


def test_our_4bit_tensors_dequantize_in_bitsandbytes():
    A = torch.randn(96, 256)
    codes, state = F.quantize_4bit(A, quant_type="nf4", compress_statistics=True)
    theirs = B.QuantState.from_dict(state.as_dict(packed=True), "cpu")
    assert torch.equal(B.dequantize_4bit(codes, theirs), F.dequantize_4bit(codes, state))


def test_double_quantization_within_two_ulp_of_the_offset():
    A = torch.randn(300, 256)
    _, ours = F.quantize_4bit(A, quant_type="nf4", compress_statistics=True)
    _, theirs = B.quantize_4bit(A, quant_type="nf4", compress_statistics=True)
    assert math.isclose(ours.offset.item(), theirs.offset.item(), rel_tol=2 * 2**-23)
    assert torch.equal(ours.state2.code, theirs.state2.code)
    torch.testing.assert_close(ours.state2.absmax, theirs.state2.absmax, rtol=1e-5, atol=0)
    assert ours.absmax.shape == theirs.absmax.shape and ours.absmax.dtype == theirs.absmax.dtype


@pytest.mark.parametrize("blocksize", [64, 256])
def test_8bit_codes(blocksize):
    A = torch.cat([torch.randn(4000), torch.logspace(-7, 0, 96), torch.zeros(4)])
    ours, state = F.quantize_blockwise(A, blocksize=blocksize)
    theirs, their_state = B.quantize_blockwise(A, blocksize=blocksize)
    assert torch.equal(state.absmax, their_state.absmax)
    quotient = A / state.absmax[torch.arange(len(A)) // blocksize]
    nearest_or_right(ours, theirs, quotient, state.code)
    back = F.dequantize_blockwise(
        theirs, F.QuantState(their_state.absmax, None, state.code, blocksize, dtype=A.dtype)
    )
    assert torch.equal(back, B.dequantize_blockwise(theirs, their_state))


def test_zero_comes_back_as_zero_where_theirs_does_not():
    A = torch.zeros(256)
    A[0] = 1.0
    assert F.dequantize_blockwise(*F.quantize_blockwise(A, blocksize=256))[1:].abs().max() == 0
    assert B.dequantize_blockwise(*B.quantize_blockwise(A, blocksize=256))[1:].abs().max() > 0


def digest(values):
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_map(signed):
    known = {
        True: "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c",
        False: "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398",
    }
    ours = F.create_dynamic_map(signed)
    assert digest(ours) == known[signed] and torch.equal(ours, B.create_dynamic_map(signed))


@pytest.mark.parametrize(
    "name, arguments",
    [
        *(("create_dynamic_map", (signed, 7, bits)) for signed in (True, False) for bits in (8,)),
        *(("create_dynamic_map", (True, e, 8)) for e in (3, 5)),
        *(("create_linear_map", (s, b, z)) for s in (True, False) for b in (8, 6, 4) for z in (True, False)),
        *(("create_fp8_map", (True, e, 7 - e, 8)) for e in (2, 3, 4, 5)),
        *(("create_fp8_map", (False, e, 8 - e, 8)) for e in (3, 4, 5)),
        ("create_fp8_map", (True, 2, 1, 4)),
        ("create_normal_map", (0.9677083, True)),
        ("create_normal_map", (0.9677083, False)),
        ("create_normal_map", (0.99, True)),
    ],
)
def test_maps_bit_for_bit(name, arguments):
    if name == "create_normal_map":
        pytest.importorskip("scipy")
    ours, theirs = getattr(F, name)(*arguments), getattr(B, name)(*arguments)
    assert ours.dtype == theirs.dtype == torch.float32 and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["nf4", "fp4", "af4"])
def test_4bit_types(name):
    assert torch.equal(F.get_4bit_type(name, device="cpu"), B.get_4bit_type(name, device="cpu"))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_their_state_dict_loads_here(quant_type, nested, storage):
    theirs = bnb.nn.Linear4bit(
        128, 96, compress_statistics=nested, quant_type=quant_type, quant_storage=storage
    ).to("cpu")
    state = theirs.state_dict()
    ours = Linear4bit(128, 96, format=quant_type, double_quant=not nested)
    assert ours.load_state_dict(state) == ([], [])
    assert torch.equal(ours.dequantize(), B.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state))
    assert ours.weight.double_quant == nested
    saved = ours.state_dict()
    assert list(saved) == list(state)
    for key, value in saved.items():
        if key != "weight":
            assert torch.equal(value, state[key]), key
    assert torch.equal(saved["weight"].flatten(), state["weight"].view(torch.uint8).flatten())


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_our_state_dict_loads_there(quant_type, nested):
    ours = Linear4bit(128, 96, format=quant_type, double_quant=nested)
    state = ours.state_dict()
    stats = {key: value for key, value in state.items() if key.startswith("weight.")}
    theirs = bnb.nn.Params4bit.from_prequantized(data=state["weight"], quantized_stats=stats, device="cpu")
    assert torch.equal(B.dequantize_4bit(theirs.data, theirs.quant_state), ours.dequantize())


def test_linear_is_closer_to_float64():
    torch.manual_seed(1)
    theirs = bnb.nn.Linear4bit(256, 96, quant_type="nf4", compress_statistics=False).to("cpu")
    ours = Linear4bit(256, 96)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 256)
    exact = x.double() @ ours.dequantize().double().t() + ours.bias.double()
    with torch.no_grad():
        mine, other = ours(x), theirs.train()(x)
    assert (mine - exact).abs().max() <= (other - exact).abs().max() + 1e-5


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gemv_4bit_is_as_close_to_float64(quant_type, nested, dtype):
    W, A = torch.randn(96, 256).to(dtype), torch.randn(1, 256).to(dtype)
    codes, state = B.quantize_4bit(W, compress_statistics=nested, quant_type=quant_type)
    unrounded = copy.copy(state)
    unrounded.dtype = torch.float32
    exact = A.double() @ B.dequantize_4bit(codes, unrounded).double().T
    ours = F.gemv_4bit(A, codes.t(), state=state)
    theirs = B.gemv_4bit(A, codes.t(), state=state)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    errors = [(y.double() - exact).norm() / exact.norm() for y in (ours, theirs)]
    # Theirs may round W to x's dtype first, and does on some CPUs.
    assert errors[0] <= {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert errors[0] <= errors[1] * 1.1


def test_quant_state_of_both_compare():
    codes, state = F.quantize_4bit(torch.randn(64, 64), quant_type="nf4", compress_statistics=True)
    theirs = B.QuantState.from_dict(state.as_dict(packed=True), "cpu")
    ours = qbits.functional.QuantState.from_dict(theirs.as_dict(packed=True), "cpu")
    assert ours == state and codes.shape == (2048, 1)
    for name in ("absmax", "shape", "code", "blocksize", "quant_type", "dtype", "nested"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


@pytest.mark.parametrize(("format", "nested"), [("nf4", False), ("nf4", True), ("fp4", False)])
def test_transformers_folders_go_both_ways(format, nested, tmp_path):
    """There by from_pretrained, with bitsandbytes' quantization_config; here by load_state_dict, too."""
    transformers = pytest.importorskip("transformers")
    load_file = pytest.importorskip("safetensors.torch").load_file
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=128, num_hidden_layers=1, **sizes)
    options = {"bnb_4bit_quant_type": format, "bnb_4bit_use_double_quant": nested}
    described = transformers.BitsAndBytesConfig(load_in_4bit=True, **options).to_dict()

    ours = transformers.AutoModelForCausalLM.from_config(config)
    qbits.quantize_(ours, format, double_quant=nested).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": described}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    there = theirs.model.layers[0].mlp.up_proj
    assert type(there) is bnb.nn.Linear4bit
    with pytest.raises(RuntimeError, match="Unexpected key"):  # what keeps this from being shorter
        theirs.load_state_dict(theirs.state_dict())

    again = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    qbits.quantize_(again, format)
    assert again.load_state_dict(load_file(tmp_path / "model.safetensors")) == ([], [])
    for model in (ours, again):
        here = model.model.layers[0].mlp.up_proj
        dense = B.dequantize_4bit(there.weight.data, there.weight.quant_state)
        assert torch.equal(here.dequantize(), dense) and here.weight.double_quant == nested
    with pytest.raises(ValueError, match=r"got that of bitsandbytes, which .* del model.config.quant"):
        again.save_pretrained(tmp_path)
