"""Run by test_integrations_transformers.py in a process of its own, once per installed transformers version.

Argument: a folder for checkpoints. Prints "ok" last.
"""

import io
import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, OPTConfig

import qbits

MODELS = {
    "llama": LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "llama_tied": LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "mixtral": MixtralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "gpt2": GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=2, n_positions=64),
    "opt": OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    ),
}
QUANTIZED = (qbits.nn.Linear4bit, qbits.nn.Linear8bit)
CONFIGS = [
    {"format": "nf4"},
    {"format": "nf4", "double_quant": True},
    {"format": "fp4", "block_size": 32},
    {"format": "int4", "scale_dtype": "bfloat16"},
    {"format": "int8"},
    {"format": "int8", "threshold": 0.0},
    {"format": "int8", "activation_bits": 16},
]


def check(name: str, folder: str, dtype: torch.dtype, options: dict) -> None:
    dense_folder, saved, resaved = (os.path.join(folder, part) for part in ("dense", "saved", "resaved"))
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (1, 16))
    dense = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    dense.save_pretrained(dense_folder)

    config = qbits.QbitsConfig(**options)
    model = AutoModelForCausalLM.from_pretrained(dense_folder, quantization_config=config, dtype=dtype)
    layers = [m for m in model.modules() if isinstance(m, QUANTIZED)]
    assert layers and not isinstance(model.get_output_embeddings(), QUANTIZED)
    logits = model(ids).logits

    # The same weights as quantizing the dense model by hand.
    by_hand = AutoModelForCausalLM.from_pretrained(dense_folder, dtype=dtype)
    qbits.quantize_(by_hand, config.options(), progress=False)
    assert torch.equal(by_hand(ids).logits, logits), f"{name}: quantize_ and from_pretrained differ"
    error = (dense(ids).logits - logits.float()).norm() / dense(ids).logits.norm()
    assert error < 0.35, f"{name}: relative error {error}"

    model.save_pretrained(saved)
    again = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    assert torch.equal(again(ids).logits, logits), f"{name}: logits change on reload"
    again.save_pretrained(resaved)
    third = AutoModelForCausalLM.from_pretrained(resaved, dtype=dtype)
    assert torch.equal(third(ids).logits, logits), f"{name}: logits change on the second reload"
    for key, value in model.state_dict().items():
        assert torch.equal(third.state_dict()[key], value), f"{name}: {key} changed"

    back = third.dequantize()
    assert not any(isinstance(m, QUANTIZED) for m in back.modules())
    difference = (back(ids).logits - logits).float().norm() / logits.float().norm()
    exact = dtype == torch.float32 and config.format != "int8"  # whose products round x, too
    assert difference < (1e-5 if exact else 2e-2), f"{name}: dequantized model differs by {difference}"


def save_by_hand(folder: str) -> None:
    """Models quantized by quantize_, not by from_pretrained, and those dequantized since."""
    ids = torch.arange(16).unsqueeze(0)
    for number, (name, config, skip) in enumerate(
        [
            ("llama", qbits.QuantizeConfig(double_quant=True), None),
            ("llama", qbits.QuantizeConfig("int4", scale_dtype=torch.bfloat16), ["layers.0", "lm_head"]),
            ("llama_tied", qbits.QuantizeConfig(), None),
            ("gpt2", qbits.QuantizeConfig("fp4", block_size=32), []),
            ("opt", qbits.QuantizeConfig(), ["fc1"]),
            ("mixtral", qbits.QuantizeConfig("int4"), None),
            ("mixtral", qbits.QuantizeConfig(experts=False), None),
            ("mixtral", qbits.QuantizeConfig("int8"), None),
            ("gpt2", qbits.QuantizeConfig("int8", threshold=2.5), []),
            ("llama", qbits.QuantizeConfig("int8", activation_bits=16), None),
        ]
    ):
        saved, dense = (os.path.join(folder, f"{number}{part}") for part in ("saved", "dense"))
        model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
        qbits.quantize_(model, config, skip=skip, progress=False)
        kinds = {key: type(module) for key, module in model.named_modules()}
        logits = model(ids).logits
        model.save_pretrained(saved)
        assert not hasattr(model.config, "quantization_config")
        again = AutoModelForCausalLM.from_pretrained(saved)
        assert {key: type(module) for key, module in again.named_modules()} == kinds
        layers = [m for m in again.modules() if isinstance(m, QUANTIZED)]
        options = {(m.config.threshold, m.config.activation_bits) for m in layers}
        assert options == {(config.threshold, config.activation_bits)}
        assert torch.equal(again(ids).logits, logits), f"{name}: logits change on reload"
        qbits.dequantize_(again, progress=False).save_pretrained(dense)
        back = AutoModelForCausalLM.from_pretrained(dense)
        assert not any(isinstance(m, QUANTIZED) for m in back.modules())
        assert torch.equal(back(ids).logits, again(ids).logits), f"{name}: dense logits change on reload"

    mixed = AutoModelForCausalLM.from_config(MODELS["llama"])
    qbits.quantize_(mixed.model.layers[0], "int4", progress=False)
    qbits.quantize_(mixed, "nf4", progress=False)
    embedded = AutoModelForCausalLM.from_config(MODELS["llama"])
    qbits.quantize_(embedded, qbits.QuantizeConfig(embeddings=True), progress=False)
    for model in (mixed, embedded):
        try:
            model.save_pretrained(os.path.join(folder, "refused"))
        except ValueError as error:
            assert "[save_pretrained] model" in str(error)
        else:
            raise AssertionError("wrote a checkpoint that cannot be loaded")
    assert not os.path.exists(os.path.join(folder, "refused"))

    # The config of a bitsandbytes folder from which the model was made and its codes were loaded.
    model = AutoModelForCausalLM.from_config(MODELS["llama"])
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    qbits.quantize_(model, "int8", progress=False)
    try:
        model.save_pretrained(os.path.join(folder, "refused"))
    except ValueError as error:
        assert "got that of bitsandbytes, which" in str(error), error
        assert "del model.config.quantization_config" in str(error), error
    else:
        raise AssertionError("wrote the config of another library")
    del model.config.quantization_config
    model.save_pretrained(os.path.join(folder, "described"))


def refuse(folder: str) -> None:
    for bad in (
        {"format": "nf5"},
        {"block_size": 48},
        {"format": "int8_affine"},
        {"blocksize": 64},
        {"format": "int4", "scale_dtype": "float3"},
        {"threshold": 6.0},
        {"activation_bits": 16},
        {"format": "int8", "threshold": 6.0, "activation_bits": 16},
    ):
        try:
            qbits.QbitsConfig(**bad)
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"{bad} was accepted")
    # A NaN in a checkpoint is reported by name.
    model = AutoModelForCausalLM.from_config(MODELS["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    model.save_pretrained(folder)
    message = "layers.1.mlp.up_proj.weight: got nan at index [3, 5]"
    refuse_to_load(folder, message, quantization_config=qbits.QbitsConfig())
    # The config of quantize_ is not Transformers', which the error says.
    try:
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=qbits.QuantizeConfig())
    except AttributeError as error:
        assert "want a qbits.QbitsConfig" in str(error), error
    else:
        raise AssertionError("a QuantizeConfig was accepted")
    # Codes without their scales are not taken for a weight.
    for format, scales in (("nf4", "weight.absmax"), ("int8", "SCB")):
        damaged = os.path.join(folder, format)
        model = qbits.quantize_(AutoModelForCausalLM.from_config(MODELS["llama"]), format, progress=False)
        model.save_pretrained(damaged)
        file = os.path.join(damaged, "model.safetensors")
        state = load_file(file)
        del state[f"model.layers.0.mlp.up_proj.{scales}"]
        save_file(state, file, {"format": "pt"})
        refuse_to_load(damaged, "entries: got")


def warn_of_no_module(folder: str) -> None:
    AutoModelForCausalLM.from_config(MODELS["llama"]).save_pretrained(folder)
    config = qbits.QbitsConfig(skip=["lm_head", "up_prj", "layers.1"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    messages = [str(w.message) for w in caught if "QbitsConfig" in str(w.message)]
    assert messages == ["[QbitsConfig] skip: got 'up_prj', which names no module"], messages
    assert isinstance(model.model.layers[0].mlp.up_proj, QUANTIZED)


def refuse_to_load(folder: str, message: str, **options: object) -> None:
    report = io.StringIO()  # transformers raises without the reason, which it logs
    handler = logging.StreamHandler(report)
    logging.getLogger("transformers").addHandler(handler)
    try:
        AutoModelForCausalLM.from_pretrained(folder, **options)
    except RuntimeError:
        assert message in report.getvalue(), report.getvalue()
    else:
        raise AssertionError(f"{folder} was accepted")
    finally:
        logging.getLogger("transformers").removeHandler(handler)


def main() -> None:
    warnings.simplefilter("error", UserWarning)
    folder = sys.argv[1]
    print("transformers", transformers.__version__, "torch", torch.__version__)
    for options in CONFIGS:
        check("llama", os.path.join(folder, "llama"), torch.float32, options)
    for name in ("llama_tied", "gpt2", "opt", "mixtral"):
        check(name, os.path.join(folder, name), torch.float32, CONFIGS[0])
    check("llama", os.path.join(folder, "bf16"), torch.bfloat16, CONFIGS[1])
    save_by_hand(os.path.join(folder, "by_hand"))
    refuse(os.path.join(folder, "nan"))
    warn_of_no_module(os.path.join(folder, "skip"))
    print("ok")


main()
