"""`qbits demo` and `qbits outliers` with a model of a few thousand parameters: the same code, in seconds."""

import json
import math

import pytest
import torch

import qbits

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("rich")

from qbits.cli import checkpoint, demo, main  # noqa: E402
from qbits.cli.evaluate import decode, perplexity, windows  # noqa: E402
from qbits.cli.footprint import footprint, footprints, model_config  # noqa: E402
from qbits.cli.variants import CALLS, variants  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a random Llama of 2 layers, tied embeddings, and a tokenizer of single characters."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    characters = tokenizers.models.WordLevel({chr(i): i for i in range(128)}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(characters)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_demo_prints_every_format_and_reloads_bit_equal(tiny, tmp_path, capsys):
    assert (
        main(["demo", "--model", str(tiny), "--windows", "2", "--tokens", "4", "--output", str(tmp_path)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "are bit-equal to those before" in " ".join(printed.split())
    for name, call in CALLS.items():  # as it is printed it makes that row
        assert f"\n{name}: qbits.{call}\n" in printed
        model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        eval(f"qbits.{call}")
        assert model[0].config == next(v.quantization for v in variants() if v.name == name)
    results = json.loads((tmp_path / "results.json").read_text())
    expected = ["fp32", "bf16", *(row.name for row in qbits.FORMATS.values() if row.in_layers)]
    expected.insert(expected.index("nf4") + 1, "nf4-dq")
    expected.insert(expected.index("int8") + 1, "int8-t0")
    assert [result["format"] for result in results] == expected
    for result in results:
        assert math.isfinite(result["perplexity"]) and result["tokens_per_second"] > 0
        assert f"\n{result['format']} " in printed
    size = {result["format"]: sum(result["bytes"].values()) for result in results}
    assert size["bf16"] == pytest.approx(size["fp32"] / 2, rel=0.01)  # rotary buffers stay float32
    assert size["nf4"] < size["int8"] == size["int8-t0"] < size["bf16"]


def test_demo_stays_within_the_positions_of_the_model(tiny, tmp_path, capsys):
    config = transformers.GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=2, n_positions=48)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    arguments = ["demo", "--model", str(tmp_path), "--windows", "2", "--formats", "nf4", "--tokens"]
    assert main([*arguments, "4"]) == 0
    assert "2 windows of 48 tokens" in capsys.readouterr().out
    assert main([*arguments, "400"]) == 1
    assert "[demo] tokens: got 400, want at most 28: the model has 48 positions" in capsys.readouterr().err


def test_demo_takes_some_formats(tiny, capsys):
    arguments = ["--windows", "1", "--tokens", "2", "--formats", "int4"]
    assert main(["demo", "--model", str(tiny), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "\nint4 " in printed and "\nfp32 " in printed
    assert "nf4 " not in printed


def test_demo_fails_if_the_reloaded_model_differs(tiny, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "reloads_bit_equal", lambda *_: False)
    arguments = ["--windows", "1", "--tokens", "2", "--formats", "nf4"]
    assert main(["demo", "--model", str(tiny), *arguments]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_reload_sees_one_changed_bit(tiny, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    qbits.quantize_(model, "nf4")
    checkpoint.save(model, tmp_path)
    ids = torch.arange(40, 60).unsqueeze(0)
    assert checkpoint.reloads_bit_equal(model, ids, tmp_path)
    model.model.layers[1].mlp.down_proj.weight.absmax[3] *= 1.5
    assert not checkpoint.reloads_bit_equal(model, ids, tmp_path)


def test_checkpoint_holds_tied_weights_once_and_refuses_other_keys(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    qbits.quantize_(model, "nf4")
    checkpoint.save(model, tmp_path)
    state = load_file(tmp_path / checkpoint.WEIGHTS)
    assert "model.embed_tokens.weight" in state and "lm_head.weight" not in state
    del state["model.norm.weight"]
    save_file(state, tmp_path / checkpoint.WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        checkpoint.load(tmp_path, qbits.QuantizeConfig(format="nf4"))


def test_perplexity_is_that_of_the_definition(tiny):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.randint(0, 128, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert perplexity(model, ids) == pytest.approx(math.exp(loss), rel=1e-5)


def test_decode_is_greedy(tiny):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    prompt = torch.tensor([[40, 41, 42]])
    generated = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None)
    assert decode(model, prompt, 8).tokens == generated[0, 3:].tolist()


def test_windows_are_spread_and_do_not_overlap():
    ids = torch.arange(1000)
    chosen = windows(ids, 3, 100)
    assert chosen[:, 0].tolist() == [0, 300, 600]
    assert chosen.shape == (3, 100)
    assert windows(ids, 99, 100).flatten().equal(ids)
    with pytest.raises(ValueError, match="want at least 2000"):
        windows(ids, 1, 2000)


def test_footprint_of_opt_350m_is_the_published_one():
    """1,325 MB in fp32, 208 MB in 4 and 359 MB in 8 bits with the rest in 16 bits and no scales."""
    sizes = footprints(model_config("facebook/opt-350m"), variants(["nf4", "nf4-dq", "int8"]))
    assert round(sizes["fp32"].weights / 1e6) == 1325
    assert round(sizes["nf4"].weights / 1e6) == 208
    assert round(sizes["int8"].weights / 1e6) == 359
    assert sizes["int8"].scales == 4 * (24 * (5 * 1024 + 4096) + 512 + 1024)  # one for each output
    assert sizes["fp32"].scales == 0
    blocks = 24 * (4 * 1024**2 + 2 * 1024 * 4096) // 64 + 2 * 512 * 1024 // 64
    assert sizes["nf4"].scales == blocks * 4
    assert sizes["nf4-dq"].weights == sizes["nf4"].weights
    assert blocks < sizes["nf4-dq"].scales < 1.1 * blocks


def test_footprint_agrees_with_transformers(tiny):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    assert footprint(model).total == model.get_memory_footprint()


def test_variants_leave_the_model_alone(tiny):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for variant in variants():
        if variant.quantization is not None:
            quantized = variant.apply(model)
            assert quantized.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert demo.SAVED in {variant.name for variant in variants()}


def test_outliers_of_a_model_as_a_table_a_plot_and_json(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "new" / "plot.png"
    arguments = ["outliers", str(tiny), "--windows", "2", "--threshold", "0.9"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "Text: Python's reference pages (pydoc_data.topics), 2 windows of 512 tokens" in printed
    assert "\nmodel.layers.0.self_attn.q_proj   1024        64" in printed
    assert "of 15 layers have elements |x| >= 0.9, in " in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert found["threshold"] == pytest.approx(0.9) and list(found["layers"]) == names
    assert all(layer["rows"] == 1024 for layer in found["layers"].values())
    assert sum(f"\n{name} " in printed for name, layer in found["layers"].items() if layer["outliers"]) == (
        sum(bool(layer["outliers"]) for layer in found["layers"].values())
    )


def test_outliers_of_a_text_of_the_users(tiny, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("forty tokens of text, one for each letter")
    assert main(["outliers", str(tiny), "--text", str(text), "--json"]) == 0
    assert {layer["rows"] for layer in json.loads(capsys.readouterr().out)["layers"].values()} == {41}
    for content, message in [(b"", f"text: got no tokens in {text}"), (b"\xff", "want a text in UTF-8")]:
        text.write_bytes(content)
        assert main(["outliers", str(tiny), "--text", str(text)]) == 1
        assert message in capsys.readouterr().err
