"""Experts that `quantize_` packed in a model: Transformers, training, state dicts, moving, saving."""

import copy

import pytest
import torch
from torch import nn

import qbits
from counting import Ops

E, N, K = 4, 48, 64


def mixtral(implementation, dtype=torch.bfloat16):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        experts_implementation=implementation,
    )  # fmt: skip
    return MixtralForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_a_mixture_of_transformers(implementation):
    dense = mixtral(implementation)
    model = qbits.quantize_(copy.deepcopy(dense))
    layer = model.model.layers[0].mlp.experts
    assert isinstance(layer.gate_up_proj, qbits.QuantizedTensor) and layer.gate_up_proj.is_4bit_experts
    assert isinstance(layer.down_proj, qbits.QuantizedTensor)
    tokens = torch.arange(32)[None]
    with torch.no_grad(), Ops() as counted:
        logits = model(tokens).logits
    packed = "linear_4bit" if implementation == "eager" else "grouped_linear_4bit"
    assert counted.ran[packed] >= 4 and not counted.ran["dequantize_4bit"]
    exact = qbits.dequantize_(copy.deepcopy(model))
    assert type(exact.model.layers[0].mlp.experts.down_proj) is nn.Parameter
    with torch.no_grad():
        torch.testing.assert_close(logits, exact(tokens).logits, rtol=0.05, atol=0.05)


def test_training_through_quantized_experts():
    model = qbits.quantize_(mixtral("grouped_mm"))
    embeddings = model.model.embed_tokens.weight
    with Ops() as counted:
        model(torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
    assert counted.ran["grouped_linear_4bit_grad_x"] == 4
    assert not counted.ran["dequantize_4bit"]
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()


def test_experts_are_optional_and_skipped_by_name():
    config = qbits.QuantizeConfig(experts=False)
    assert (
        type(qbits.quantize_(mixtral("eager"), config).model.layers[0].mlp.experts.down_proj) is nn.Parameter
    )
    model = qbits.quantize_(mixtral("eager"), skip=["layers.0.mlp.experts"])
    assert type(model.model.layers[0].mlp.experts.down_proj) is nn.Parameter
    assert isinstance(model.model.layers[1].mlp.experts.down_proj, qbits.QuantizedTensor)


def test_a_state_dict_of_quantized_experts(tmp_path):
    model, other = (qbits.quantize_(mixtral("grouped_mm"), skip=[]) for _ in range(2))
    state = model.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    name = "model.layers.0.mlp.experts.down_proj"
    assert state[name].dtype == torch.uint8 and f"{name}.absmax" in state
    torch.save(state, tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)
    dense = mixtral("grouped_mm")
    fresh = qbits.quantize_(mixtral("grouped_mm"), skip=[])
    with torch.no_grad():
        fresh.get_parameter(name).zero_()
    fresh.load_state_dict(dense.state_dict())  # quantizes it
    assert torch.equal(fresh.get_parameter(name).codes, model.get_parameter(name).codes)


def test_int8_leaves_experts_dense():
    model = qbits.quantize_(mixtral("eager"), "int8")
    layer = model.model.layers[0]
    assert type(layer.mlp.experts.down_proj) is nn.Parameter
    assert isinstance(layer.self_attn.q_proj, qbits.nn.Linear8bit)
    with pytest.raises(ValueError, match=r"\[QuantizeConfig\] experts: got True, want False or a 4-bit"):
        qbits.QuantizeConfig("int8", experts=True)


class SomeExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.up_bias = nn.Parameter(torch.randn(E, N, K)), nn.Parameter(torch.randn(E, N))


CONFIGS = [
    {"block_size": 32},
    {"double_quant": True},
    {"format": "int4"},
    {"format": "int4", "scale_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_quantized_experts_take_over_what_they_load(config, assign):
    saved = qbits.quantize_(nn.ModuleList([SomeExperts()]), qbits.QuantizeConfig(**config))
    kind = config.get("format", "nf4")
    model = copy.deepcopy(qbits.quantize_(nn.ModuleList([SomeExperts()]), kind))
    model.load_state_dict(saved.state_dict(), assign=assign)
    want = saved[0].up
    got = model[0].up
    assert type(got) is qbits.QuantizedTensor and got.block_size == want.block_size
    for name, tensor in want.tensors().items():
        assert torch.equal(got.tensors()[name], tensor)
    assert got.codes.data_ptr() != want.codes.data_ptr() or assign
    other = qbits.quantize_(nn.ModuleList([SomeExperts()]), "nf4" if kind == "int4" else "int4")
    before = other[0].up.dequantize()
    with pytest.raises(RuntimeError, match=rf"0\.up: \[load_state_dict\] format: got {kind}, want"):
        other.load_state_dict(saved.state_dict(), assign=assign)
    assert torch.equal(other[0].up.dequantize(), before)


@pytest.mark.parametrize("assign", [False, True])
def test_dense_values_that_quantized_experts_load(assign):
    dense, model = SomeExperts(), qbits.quantize_(SomeExperts())
    model.load_state_dict(dense.state_dict(), assign=assign)
    assert torch.equal(model.up.codes, qbits.quantize(dense.up).codes)
    dense.up.data[1, 2, 3] = float("nan")
    with pytest.raises(RuntimeError, match=r"up: got nan at index \[1, 2, 3\]"):
        model.load_state_dict(dense.state_dict(), assign=assign)
    with pytest.raises(RuntimeError, match=r"shape: got \[1, 2, 3\], want \[4, 48, 64\]"):
        model.load_state_dict({**dense.state_dict(), "up": torch.zeros(1, 2, 3)}, assign=assign)


def test_experts_without_memory_get_some():
    model = qbits.quantize_(SomeExperts())
    state = model.state_dict()
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assert isinstance(empty.up, qbits.QuantizedTensor)
    empty.load_state_dict(state)
    assert torch.equal(empty.up.dequantize(), model.up.dequantize())


def test_experts_that_share_a_weight_still_do():
    model = nn.ModuleList([SomeExperts(), SomeExperts(), SomeExperts()])
    model[1].up = model[0].up
    qbits.quantize_(model)
    assert model[0].up is model[1].up and isinstance(model[0].up, qbits.QuantizedTensor)
    assert model[2].up is not model[0].up
    qbits.dequantize_(model)
    assert model[0].up is model[1].up and type(model[0].up) is nn.Parameter


def test_experts_that_are_the_model():
    model = SomeExperts()
    dense = model.up.detach()
    assert qbits.quantize_(model) is model
    assert torch.equal(model.up.codes, qbits.quantize(dense).codes)
    qbits.dequantize_(model)
    assert type(model.up) is nn.Parameter


def test_from_pretrained_quantizes_experts(tmp_path):
    mixtral("grouped_mm").save_pretrained(tmp_path / "dense")
    kind = type(mixtral("grouped_mm"))
    model = kind.from_pretrained(
        tmp_path / "dense", dtype=torch.bfloat16, quantization_config=qbits.QbitsConfig()
    )
    weight = model.model.layers[1].mlp.experts.gate_up_proj
    assert isinstance(weight, qbits.QuantizedTensor) and weight.is_4bit_experts
    model.save_pretrained(tmp_path / "packed")
    again = kind.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    assert torch.equal(again.model.layers[1].mlp.experts.gate_up_proj.codes, weight.codes)
    tokens = torch.arange(32)[None]
    with torch.no_grad(), Ops() as counted:
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert counted.ran["grouped_linear_4bit"] == 8 and not counted.ran["dequantize_4bit"]


def test_shared_experts_are_layers_of_their_own(tmp_path):
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        first_k_dense_replace=1, max_position_embeddings=64,
    )  # fmt: skip
    model = qbits.quantize_(DeepseekV3ForCausalLM(config).eval())
    model.save_pretrained(tmp_path)
    again = DeepseekV3ForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_moving_quantized_experts():
    model = qbits.quantize_(mixtral("grouped_mm"))
    weight = model.model.layers[0].mlp.experts.down_proj
    codes = weight.codes.clone()
    model.to(torch.float32)
    weight = model.model.layers[0].mlp.experts.down_proj
    assert weight.dtype == torch.float32 and torch.equal(weight.codes, codes)
    moved = copy.deepcopy(model).to("meta").model.layers[0].mlp.experts.down_proj
    assert isinstance(moved, qbits.QuantizedTensor) and moved.codes.is_meta
