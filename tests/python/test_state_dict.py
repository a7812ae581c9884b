"""State dicts: bitsandbytes' keys and bytes, exact round trips, and no silent acceptance of damaged ones."""

import io
import json

import pytest
import torch
from torch import nn

import qbits
from qbits.nn import Linear4bit
from quantized_layers import embedding, linear, linear_class

OPTIONS = {
    "nf4": {},
    "nf4 double": {"double_quant": True},
    "fp4 32": {"format": "fp4", "block_size": 32},
    "int4": {"format": "int4", "scale_dtype": torch.bfloat16},
    "int4 rows": {"format": "int4", "block_size": 0},
    "int8": {"format": "int8"},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request):
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def layer(options, features=(128, 96), dtype=torch.bfloat16):
    return linear(options, *features, dtype=dtype)


def equal(a, b):
    tensors = a.weight.tensors()
    assert (a.weight.format, a.weight.block_size) == (b.weight.format, b.weight.block_size)
    assert a.weight.shape == b.weight.shape and tensors.keys() == b.weight.tensors().keys()
    assert all(torch.equal(t, b.weight.tensors()[name]) for name, t in tensors.items())
    return torch.equal(a.bias, b.bias)


def fields(state, key):
    return json.loads(bytes(state[key].tolist()))


def test_keys_and_bytes_of_nf4():
    state = layer({"double_quant": True}).state_dict()
    assert list(state) == [
        "weight",
        "bias",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4",
    ]
    assert state["weight"].dtype == torch.uint8 and state["weight"].shape == (128 * 96 // 2, 1)
    packed = fields(state, "weight.quant_state.bitsandbytes__nf4")
    assert list(packed) == [
        *("quant_type", "blocksize", "dtype", "shape"),
        *("nested_blocksize", "nested_dtype", "nested_offset"),
    ]
    assert packed["shape"] == [96, 128] and packed["dtype"] == "bfloat16" and packed["blocksize"] == 64


def test_keys_of_int4():
    state = layer({"format": "int4"}).state_dict()
    assert list(state) == [
        "weight",
        "bias",
        "weight.scales",
        "weight.zeros",
        "weight.quant_state.qbits__int4",
    ]
    packed = fields(state, "weight.quant_state.qbits__int4")
    assert packed == {"quant_type": "int4", "blocksize": 64, "dtype": "bfloat16", "shape": [96, 128]}


def test_keys_and_bytes_of_int8():
    module = layer({"format": "int8"})
    state = nn.Sequential(nn.Identity(), module).state_dict()
    assert list(state) == ["1.weight", "1.bias", "1.SCB", "1.weight_format"]
    assert torch.equal(state["1.weight"], module.weight.codes) and state["1.weight"].shape == (96, 128)
    assert torch.equal(state["1.SCB"], module.weight.scales) and state["1.SCB"].dtype == torch.float32
    assert torch.equal(state["1.weight_format"], torch.tensor(0, dtype=torch.uint8))


@pytest.mark.parametrize("features", [(128, 96), (33, 7), (1, 1)])
@pytest.mark.parametrize("assign", [False, True])
def test_strict_round_trip(options, features, assign):
    a, b = layer(options, features), layer(options, features)
    assert b.load_state_dict(a.state_dict(), assign=assign) == ([], [])
    assert equal(a, b) and not b.weight.requires_grad
    state = b.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in a.state_dict().items())


def test_loading_copies():
    a, b = layer({}), layer({})
    state = a.state_dict()
    b.load_state_dict(state)
    state["weight"].zero_()
    state["weight.absmax"].zero_()
    assert not torch.equal(b.weight.codes, a.weight.codes)


@pytest.mark.parametrize("assign", [False, True])
def test_entries_of_any_stride(options, assign):
    a, b = layer(options), layer(options)
    state = {
        key: torch.stack([t, t], -1)[..., 0] if t.dim() < 2 else t.t().contiguous().t()
        for key, t in a.state_dict().items()
    }
    state["weight"] = torch.stack([state["weight"]] * 2, -1)[..., 0]
    assert b.load_state_dict(state, assign=assign) == ([], []) and equal(a, b)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    assert all(t.is_contiguous() for t in b.weight.tensors().values())
    assert torch.equal(b(x), a(x))


@pytest.mark.parametrize("assign", [False, True])
def test_from_the_meta_device(options, assign):
    a = layer(options)
    with torch.device("meta"):
        b = layer(options)
    if not assign:
        b.to_empty(device="cpu")
    b.load_state_dict(a.state_dict(), assign=assign)
    assert equal(a, b) and b(torch.randn(2, 128, dtype=torch.bfloat16)).device.type == "cpu"


def test_in_a_model_with_torch_save_and_safetensors(options, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)))
    qbits.quantize_(model, qbits.QuantizeConfig(**options))
    x = torch.randn(3, 64)
    y = model(x)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    for state in (load_file(tmp_path / "model.safetensors"), torch.load(buffer, weights_only=True)):
        again = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)))
        qbits.quantize_(again, qbits.QuantizeConfig(**options))
        again.load_state_dict(state)
        assert torch.equal(again(x), y)


def test_plain_and_double_quantized_states_load_into_each_other():
    plain, double = layer({}), layer({"double_quant": True})
    for source, target in ((plain, layer({"double_quant": True})), (double, layer({}))):
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.dequantize(), source.dequantize())


def test_a_state_of_another_block_size_is_taken_as_it_is():
    source, target = layer({"block_size": 128}), layer({})
    target.load_state_dict(source.state_dict())
    assert target.weight.block_size == 128 and torch.equal(target.dequantize(), source.dequantize())


def test_the_dtype_is_the_modules_unless_assigned():
    state = layer({}, dtype=torch.bfloat16).state_dict()
    module = layer({}, dtype=torch.float32)
    module.load_state_dict(state)
    assert module.weight.dtype == torch.float32
    module.load_state_dict(state, assign=True)
    assert module.weight.dtype == torch.bfloat16


def test_a_dense_state_is_quantized(options):
    dense = nn.Linear(128, 96, dtype=torch.bfloat16)
    module = layer(options)
    assert module.load_state_dict(dense.state_dict()) == ([], [])
    expected = linear_class(options).from_float(dense, qbits.QuantizeConfig(**options))
    assert equal(module, expected)
    dense.weight.data[1, 2] = float("nan")
    with pytest.raises(RuntimeError, match=r"\[quantize\] weight: got nan at index \[1, 2\]"):
        module.load_state_dict(dense.state_dict())


def test_embedding(options):
    a, b = embedding(options, 40, 64), embedding(options, 40, 64)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(torch.arange(40)), b(torch.arange(40)))


def test_missing_and_unexpected_keys():
    module, state = layer({}), layer({}).state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*\"weight\""):
        module.load_state_dict({"bias": state["bias"]})
    assert module.load_state_dict({"bias": state["bias"]}, strict=False).missing_keys == ["weight"]
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*\"extra\""):
        module.load_state_dict({**state, "extra": state["bias"]})


def _edit(state, key, **changes):
    state[key] = torch.tensor(list(json.dumps({**fields(state, key), **changes}).encode()), dtype=torch.uint8)


def _drop(name):
    return lambda state: state.pop(name)


def _cut(name):
    return lambda state: state.update({name: state[name].flatten()[:-1]})


def _cast(name, dtype):
    return lambda state: state.update({name: state[name].to(dtype)})


def _json(**changes):
    return lambda state: _edit(state, next(k for k in state if "quant_state" in k), **changes)


def _bytes(value):
    return lambda state: state.update({next(k for k in state if "quant_state" in k): value})


DAMAGE = {
    "no codes": (_drop("weight"), "lack the codes"),
    "no state": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("weight.")],
        "lack the quantization state",
    ),
    "no absmax": (_drop("weight.absmax"), "entries: got"),
    "no map": (_drop("weight.quant_map"), "entries: got"),
    "no json": (_drop("weight.quant_state.bitsandbytes__nf4"), "packed entries: got none"),
    "no nested map": (_drop("weight.nested_quant_map"), "entries: got"),
    "no nested absmax": (_drop("weight.nested_absmax"), "entries: got"),
    "short codes": (_cut("weight"), "codes: got uint8"),
    "short absmax": (_cut("weight.absmax"), "absmax: got uint8"),
    "short nested absmax": (_cut("weight.nested_absmax"), "nested_absmax: got float32"),
    "short nested map": (_cut("weight.nested_quant_map"), "nested_quant_map: got float32"),
    "short map": (_cut("weight.quant_map"), "quant_map: got"),
    "absmax of another dtype": (_cast("weight.absmax", torch.float32), "absmax: got float32"),
    "map of another format": (lambda s: s["weight.quant_map"].neg_(), "quant_map: got"),
    "nested map out of order": (lambda s: s["weight.nested_quant_map"].neg_(), "out of order"),
    "not json": (_bytes(torch.tensor([1, 2, 255], dtype=torch.uint8)), "not JSON"),
    "float json": (
        lambda s: _bytes(s["weight.quant_state.bitsandbytes__nf4"].float())(s),
        "got float32, want the uint8",
    ),
    "truncated json": (_cut("weight.quant_state.bitsandbytes__nf4"), "not JSON"),
    "a list": (_bytes(torch.tensor(list(b"[1]"), dtype=torch.uint8)), "want a JSON object"),
    "quant_type": (_json(quant_type="fp4"), "quant_type: got 'fp4' under key"),
    "blocksize": (_json(blocksize=48), "blocksize: got 48"),
    "blocksize type": (_json(blocksize="64"), "blocksize: got '64'"),
    "larger blocksize": (_json(blocksize=128), "absmax: got uint8"),
    "dtype": (_json(dtype="float64"), "dtype: got 'float64'"),
    "dtype code": (_json(dtype="load"), "dtype: got 'load'"),
    "shape": (_json(shape=[96, 129]), "got uint8"),
    "transposed shape": (_json(shape=[128, 96]), "shape: got"),
    "negative shape": (_json(shape=[-96, -128]), "shape: got"),
    "huge shape": (_json(shape=[2**40, 2**40]), "shape: got"),
    "shape type": (_json(shape="96,128"), "shape: got"),
    "shape none": (_json(shape=None), "shape: got None"),
    "nested_blocksize": (_json(nested_blocksize=128), "nested_blocksize and nested_dtype: got 128"),
    "nested_offset": (_json(nested_offset="0"), "nested_offset: got '0'"),
    "nested_offset too large": (_json(nested_offset=10**400), "want a float32 number"),
    "a tensor in json": (_json(absmax=[1.0]), "in it and beside it"),
    "codes of another dtype": (_cast("weight", torch.float64), "codes: got float64"),
    "codes on meta": (
        lambda s: s.update({"weight": s["weight"].to("meta")}),
        "want a dense tensor with data",
    ),
    "sparse absmax": (lambda s: s.update({"weight.absmax": s["weight.absmax"].to_sparse()}), "want a dense"),
    "unknown field": (_json(lookup=1), "entries: got"),
    "unknown entry": (lambda s: s.update({"weight.extra": s["bias"]}), "entries: got"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_states_are_refused(damage, message):
    module, source = layer({"double_quant": True}), layer({"double_quant": True})
    state = {k: v.clone() for k, v in source.state_dict().items()}
    damage(state)
    before = module.weight.codes.clone()
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state)
    assert torch.equal(module.weight.codes, before)


AFFINE_DAMAGE = {
    "no scales": (_drop("weight.scales"), "entries: got"),
    "no zeros": (_drop("weight.zeros"), "entries: got"),
    "short codes": (_cut("weight"), "codes: got uint8"),
    "short scales": (_cut("weight.scales"), "scales: got float32"),
    "short zeros": (_cut("weight.zeros"), "zeros: got float32"),
    "zeros of another dtype": (_cast("weight.zeros", torch.float16), "zeros: got float16"),
    "integer scales": (_cast("weight.scales", torch.int32), "scale dtype"),
    "quant_type": (_json(quant_type="nf4"), "want quant_type 'int4'"),
    "blocksize": (_json(blocksize=7), "block size: got 7"),
    "blocksize type": (_json(blocksize=None), "got block size None"),
    "dtype": (_json(dtype="int8"), "want a float dtype"),
    "shape": (_json(shape=[]), "at least one size"),
}


@pytest.mark.parametrize("damage, message", AFFINE_DAMAGE.values(), ids=AFFINE_DAMAGE.keys())
def test_damaged_affine_states_are_refused(damage, message):
    module, source = layer({"format": "int4", "block_size": 32}), layer({"format": "int4", "block_size": 32})
    state = {k: v.clone() for k, v in source.state_dict().items()}
    damage(state)
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state)


INT8_DAMAGE = {
    "no codes": (_drop("weight"), "lack the codes"),
    "no scales": (_drop("SCB"), r"entries: got \['weight', 'weight_format'\], want weight, SCB"),
    "codes alone": (lambda s: (s.pop("SCB"), s.pop("weight_format")), "lack the quantization state"),
    "short codes": (_cut("weight"), "codes: got .*, want 2 dimensions"),
    "codes without a row": (lambda s: s.update(weight=s["weight"][:-1]), "SCB: got"),
    "codes of another dtype": (_cast("weight", torch.uint8), "codes: got uint8"),
    "dense weight": (_cast("weight", torch.bfloat16), "codes: got bfloat16"),
    "short scales": (_cut("SCB"), "SCB: got float32"),
    "half scales": (_cast("SCB", torch.float16), "SCB: got float16"),
    "negative scales": (lambda s: s.update(SCB=-s["SCB"]), "SCB: got a negative number or a NaN"),
    "NaN scales": (lambda s: s.update(SCB=s["SCB"] * torch.nan), "SCB: got a negative number or a NaN"),
    "col32": (lambda s: s["weight_format"].fill_(1), r"weight_format: got 1 \(col32\), want 0"),
    "col_turing": (lambda s: s["weight_format"].fill_(2), r"weight_format: got 2 \(col_turing\), want 0"),
    "col_ampere": (lambda s: s["weight_format"].fill_(3), r"weight_format: got 3 \(col_ampere\), want 0"),
    "unknown layout": (lambda s: s["weight_format"].fill_(9), r"weight_format: got 9 \(unknown\), want 0"),
    "float layout": (_cast("weight_format", torch.float32), "weight_format: got float32"),
    "layouts": (lambda s: s.update(weight_format=torch.zeros(2).byte()), "weight_format: got uint8"),
    "no tensor": (lambda s: s.update(SCB=None), "not tensors"),
    "scales on meta": (lambda s: s.update(SCB=s["SCB"].to("meta")), "want a dense tensor with data"),
    "entry of another format": (lambda s: s.update({"weight.absmax": s["SCB"]}), "entries: got"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("damage, message", INT8_DAMAGE.values(), ids=INT8_DAMAGE.keys())
def test_damaged_int8_states_are_refused(damage, message, assign):
    module, source = layer({"format": "int8"}), layer({"format": "int8"})
    state = {k: v.clone() for k, v in source.state_dict().items()}
    damage(state)
    before = module.weight.codes.clone()
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state, assign=assign)
    assert torch.equal(module.weight.codes, before)


def test_old_int8_states_have_no_layout():
    module, source = layer({"format": "int8"}), layer({"format": "int8"})
    state = source.state_dict()
    del state["weight_format"]
    assert module.load_state_dict(state) == ([], [])
    assert equal(module, source)


def test_int8_states_say_no_dtype():
    state = layer({"format": "int8"}, dtype=torch.bfloat16).state_dict()
    module = layer({"format": "int8"}, dtype=torch.float32)
    for assign in (False, True):
        module.load_state_dict(state, assign=assign)
        assert module.weight.dtype == torch.float32


def test_int8_and_4bit_states_do_not_load_into_each_other():
    nf4, int8 = layer({}), layer({"format": "int8"})
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] format: got int8, want nf4"):
        nf4.load_state_dict(int8.state_dict())
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] format: got nf4, want int8"):
        int8.load_state_dict(nf4.state_dict())


def test_another_format_or_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] shape: got \[96, 64\], want \[96, 128\]"):
        layer({"format": "int8"}).load_state_dict(layer({"format": "int8"}, (64, 96)).state_dict())
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] format: got fp4, want nf4"):
        layer({}).load_state_dict(layer({"format": "fp4"}).state_dict())
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] shape: got \[96, 64\], want \[96, 128\]"):
        layer({}).load_state_dict(layer({}, (64, 96)).state_dict())
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] shape: got \[64, 128\], want \[96, 128\]"):
        layer({}).load_state_dict(nn.Linear(128, 64).state_dict() | {"bias": torch.zeros(96)})


def test_a_meta_weight_is_its_own_entry():
    with torch.device("meta"):
        module = layer({})
    assert type(module.state_dict()["weight"]) is qbits.QuantizedTensor


def test_none_for_a_weight_is_refused():
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] weight: got NoneType, want a tensor"):
        Linear4bit(64, 32).load_state_dict({"weight": None, "bias": torch.zeros(32)})


def test_entries_without_the_weight_are_refused():
    with pytest.raises(RuntimeError, match=r"\[load_state_dict\] weight: got NoneType, want a tensor"):
        Linear4bit(64, 32).load_state_dict({"weight.other": torch.zeros(1), "bias": torch.zeros(32)})
