"""What docs/llm_int8.md claims of `python -m bench quality`, on smaller stacks of layers."""

import json

import pytest
import torch

import qbits.functional as F
from bench import quality_int8
from bench.quality_int8 import METHODS, SETTINGS, Setting, Size, Stack, absmax, measure, zero_point

SIZE = Size(tokens=64, columns=1024, layers=4)


@pytest.fixture(scope="module")
def results():
    return {result.setting: result for result in measure(SETTINGS, SIZE)}


def test_llm_int8_stays_within_one_percent_at_every_depth(results):
    for result in results.values():
        errors = result.errors["LLM.int8()"]
        assert len(errors) == 1 + SIZE.layers and min(errors) > 1e-4 and max(errors) <= quality_int8.LIMIT


@pytest.mark.parametrize("setting", quality_int8.TENFOLD, ids=str)
def test_plain_int8_errs_ten_times_as_much(setting, results):
    for depth in range(1 + SIZE.layers):
        assert results[setting].gain(depth) >= quality_int8.FACTOR
    assert max(results[setting].errors["absmax"]) > 0.05


def test_it_is_the_outliers_that_the_others_lose_to(results):
    for setting, result in results.items():
        ratios = [result.errors[name][0] / result.errors["LLM.int8()"][0] for name in METHODS]
        if setting.share == 0:
            assert all(0.9 < ratio < 1.3 for ratio in ratios)
        else:
            assert all(ratio > 2 for ratio in ratios[:-1])


def test_the_gain_falls_with_the_share_and_rises_with_the_magnitude(results):
    for m in (20.0, 40.0, 60.0):
        gains = [results[Setting(share, m)].gain(0) for share in (0.001, 0.003, 0.01)]
        assert gains == sorted(gains, reverse=True)
    for share in (0.001, 0.003, 0.01):
        gains = [results[Setting(share, m)].gain(0) for m in (20.0, 40.0, 60.0)]
        assert gains == sorted(gains)


def test_outliers_are_where_they_were_planted_after_every_layer():
    stack = Stack(Setting(0.003, 20.0), SIZE, 0)
    start = stack.exact[:, stack.columns]
    held = start.abs() >= 10.0
    assert 0.6 < held.float().mean() < 0.9 and start.abs().max() <= 20.0
    assert all(len(column[column.abs() >= 10].sign().unique()) == 1 for column in start.T)
    for _ in range(SIZE.layers):
        weight = torch.nn.Linear(SIZE.columns, SIZE.columns).weight.detach()
        stack.add(weight, {name: prepare(weight) for name, prepare in METHODS.items()})
        assert torch.equal(stack.exact[:, stack.columns], start)
        rms = stack.exact[:, stack.ordinary].square().mean(1).sqrt()
        torch.testing.assert_close(rms, torch.ones(SIZE.tokens))
        found = F.quantize_int8_rowwise(stack.exact, quality_int8.THRESHOLD)
        columns = found.outlier_columns[: found.outlier_count.item()]
        assert columns.tolist() == stack.columns.sort().values.tolist() and len(columns) == 3


def test_baselines_by_hand():
    x = torch.tensor([[127.0, -3.4, 0.6], [12.7, 0.26, -1.0]])
    assert torch.equal(absmax(x, False), torch.tensor([[127.0, -3.0, 1.0], [13.0, 0.0, -1.0]]))
    torch.testing.assert_close(absmax(x, True)[1], torch.tensor([12.7, 0.3, -1.0]))
    x = torch.tensor([[254.0, 0.0, 99.6], [126.0, -1.0, 0.4]])
    torch.testing.assert_close(zero_point(x, True), torch.tensor([[254.0, 0.0, 100.0], [126.0, -1.0, 0.5]]))
    assert (zero_point(x, False) - x).abs().max() <= 255 / 254 / 2


def test_table_verdict_and_chart(results, tmp_path):
    pytest.importorskip("matplotlib")
    chosen = list(results.values())
    lines = quality_int8.table(chosen).splitlines()
    heading = "one product absmax zero point row-wise vector-wise zp vector-wise LLM.int8() gain"
    assert " ".join(lines[0].split()) == heading
    assert lines[1].startswith("no outliers ") and lines[24].startswith("after 4 of 4 layers ")
    assert lines[4].startswith("0.1% up to 60 ") and lines[4].endswith(f"{chosen[3].gain(0):.1f}x")
    text, met = quality_int8.verdict(chosen)
    assert met and text.endswith("times as much or more: 0.1% up to 60, 0.3% up to 60.")
    quality_int8.draw(chosen, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_verdict_wants_all_the_settings_where_absmax_must_fail(results, monkeypatch):
    assert quality_int8.verdict([results[setting] for setting in quality_int8.TENFOLD])[1]
    assert not quality_int8.verdict([results[quality_int8.TENFOLD[0]]])[1]
    monkeypatch.setattr(quality_int8, "TENFOLD", (Setting(0.01, 20.0),))
    assert not quality_int8.verdict(list(results.values()))[1]


def test_verdict_sees_an_llm_int8_that_rounds_outliers(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(quality_int8, "THRESHOLD", 0.0)
    monkeypatch.setattr(quality_int8, "Size", lambda: SIZE)
    monkeypatch.setattr(quality_int8, "SETTINGS", (Setting(0.001, 60.0),))
    assert quality_int8.main(["--json", str(tmp_path / "errors.json")]) == 1
    assert capsys.readouterr().out.endswith("times as much or more: nowhere.\n")
    (record,) = json.loads((tmp_path / "errors.json").read_text())
    assert record["setting"] == {"share": 0.001, "magnitude": 60.0} and set(record["errors"]) == set(METHODS)
