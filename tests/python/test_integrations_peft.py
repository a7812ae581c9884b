"""LoRA and other tuners on quantized weights: training moves the adapter alone, a merge lands in them."""

import pytest
import torch
from torch import nn

import qbits

peft = pytest.importorskip("peft")


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)

    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.up(x)))


def quantized_mlp(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return qbits.quantize_(Mlp().to(dtype), qbits.QuantizeConfig(**options), progress=False)


TUNERS = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["up", "down"]),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=["up", "down"], use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["up", "down"], feedforward_modules=["down"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=32, target_modules=["up", "down"]),
    "miss": lambda: peft.MissConfig(r=4, target_modules=["up", "down"]),
}


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"double_quant": True}, {"format": "int4"}, {"format": "int8"}],
    ids=["nf4", "nf4dq", "int4", "int8"],
)
def test_train_step_and_merge(tuner, options):
    model = peft.get_peft_model(quantized_mlp(**options), TUNERS[tuner]())
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    frozen = {
        n: p.dequantize().clone() for n, p in model.named_parameters() if isinstance(p, qbits.QuantizedTensor)
    }
    assert trainable and len(frozen) == 2
    before = {n: p.detach().clone() for n, p in trainable.items()}
    optimizer = torch.optim.SGD(trainable.values(), lr=0.2)
    x = torch.randn(16, 64)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert any(not torch.equal(p, before[n]) for n, p in trainable.items())
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter.dequantize(), frozen[name]), f"{name} changed while training"

    model.eval()
    with torch.no_grad():
        want = model(x)
        base = quantized_mlp(**options)(x)
        merged = model.merge_and_unload()
        got = merged(x)
    assert isinstance(merged.up.weight, qbits.QuantizedTensor)
    # Quantizing the merged weight again costs about what quantizing the dense one did; a merge that did
    # nothing would be off by the whole effect of training.
    error, effect = (got - want).norm(), (base - want).norm()
    assert error < 0.2 * want.norm(), f"merge error {error / want.norm()}"
    assert effect > 0
    if effect > 0.5 * want.norm():
        assert error < effect


def test_lora_on_a_bf16_transformer(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=qbits.QbitsConfig("nf4", double_quant=True), dtype=torch.bfloat16
    )
    model = peft.prepare_model_for_kbit_training(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, qbits.QuantizedTensor)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.train()
    ids = torch.randint(0, 128, (2, 16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05, losses
    merged = model.merge_and_unload()
    assert isinstance(merged.model.layers[0].mlp.up_proj.weight, qbits.QuantizedTensor)
