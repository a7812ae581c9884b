"""The parts of the GPU bench that need no GPU: limits, verdicts, the text of the tables, the chart."""

import functools
import gc
import json
import math
import os
import statistics
import weakref

import pytest
import torch

from bench.gpu import cells, chart, main, optimizers, targets, timing
from bench.gpu.cells import Bound, Cell
from bench.gpu.run import Run, Unavailable

OF_BF16 = Bound("of bf16", "ratio", 0.34, ("bf16",))
OF_PEERS = Bound("of best peer", "ratio", 1.02, ("humming", "gemlite"))


def linear_cell(qbits, bf16=100.0, **others):
    times = {"qbits": qbits, "bf16": bf16, **others}
    return Cell(
        "linear_4bit",
        "28672x8192 M=1",
        [OF_BF16, OF_PEERS],
        31.0,
        {"n": 28672, "k": 8192, "m": 1},
        {name: time for name, time in times.items() if time is not None},
    )


def test_every_weight_has_a_target_for_every_number_of_rows():
    assert list(targets.OF_BF16) == list(targets.SHAPES)
    assert all(len(fractions) == len(targets.ROWS) for fractions in targets.OF_BF16.values())
    assert set(targets.FORMAT_ROWS) <= set(targets.ROWS)


def test_optimizers_have_targets_for_every_case():
    for case in targets.OPTIMIZER_CASES:
        assert set(case.of_torch) == set(optimizers.STATE_BYTES) and set(case.share) <= set(case.of_torch)
    elements = [sum(math.prod(shape) for shape in shapes) for shapes in targets.OPTIMIZER_SHAPES.values()]
    assert elements == [1_073_741_824, 1_235_814_400, 131_072_000]


def test_limit_is_the_longer_of_bytes_and_operations():
    assert cells.limit_us(4e6, 1e6, 4e12, 1e12) == pytest.approx(1.0)
    assert cells.limit_us(4e6, 3e6, 4e12, 1e12) == pytest.approx(3.0)


def test_product_bytes_count_codes_scales_x_and_result():
    n, k = 28672, 8192
    assert cells.product_bytes(n, k, 1, n * k // 2 + n * k // 64 * 4) == 132_194_304


def test_ratio_is_of_the_fastest_and_rounded_like_its_limit():
    assert OF_PEERS.value(linear_cell(30, humming=40, gemlite=20)) == 1.5
    assert OF_PEERS.met(linear_cell(102.4, humming=100, gemlite=200))
    assert not OF_PEERS.met(linear_cell(102.6, humming=100, gemlite=200))


@pytest.mark.parametrize("missing", ["qbits", "humming", "gemlite"])
def test_a_missing_time_misses_the_bound(missing):
    cell = linear_cell(10, humming=20, gemlite=20)
    del cell.times[missing]
    assert OF_PEERS.value(cell) is None
    assert not OF_PEERS.met(cell)


def test_share_and_microseconds():
    cell = Cell(
        "quantizers", "quantize_4bit nf4", [], limit_us=60, times={"qbits": 100, "bitsandbytes": 1000}
    )
    assert Bound("of copy", "share", 0.6).met(cell)
    assert not Bound("of copy", "share", 0.61).met(cell)
    assert Bound("host us", "us", 100).met(cell)
    assert not Bound("host us", "us", 99).met(cell)
    assert cell.share == 0.6


def test_measured_takes_median_and_spread_between_quartiles():
    cell = Cell("formats", "M=1", [])
    cell.measured({"nf4": [9.0, 12.0, 10.0, 8.0, 100.0], "fp4": [7.0, 7.0, 7.0]})
    assert cell.times == {"nf4": 10.0, "fp4": 7.0}
    assert cell.spreads == {"nf4": 0.3, "fp4": 0.0}


def test_bound_of_another_contender():
    cell = Cell("formats", "M=1", [], times={"nf4": 10, "nf4 double": 10.6})
    assert Bound("nf4 double/nf4", "ratio", 1.06, ("nf4",), "nf4 double").met(cell)
    assert not Bound("nf4 double/nf4", "ratio", 1.05, ("nf4",), "nf4 double").met(cell)


def test_a_cell_of_one_bound_has_what_that_compares():
    bounds = [Bound(f"{name}/nf4", "ratio", 1.0, ("nf4",), name) for name in ("fp4", "int4")]
    errors = {"int4": "ImportError: no such module"}
    cell = Cell("formats", "M=1", bounds, times={"nf4": 10, "fp4": 9}, errors=errors)
    fp4, int4 = map(cell.for_bound, bounds)
    assert (fp4.name, fp4.bounds, fp4.times, fp4.errors, fp4.met) == (
        "M=1 fp4",
        bounds[:1],
        cell.times,
        {},
        True,
    )
    assert (int4.name, int4.times, int4.errors, int4.met) == ("M=1 int4", {"nf4": 10}, errors, False)


def test_an_error_fails_a_cell_whose_bounds_are_met():
    cell = linear_cell(30, humming=40, gemlite=50)
    assert cell.met
    cell.errors["bitsandbytes"] = "ImportError: no such module"
    assert not cell.met


def test_table_shows_values_limits_and_what_failed():
    met = linear_cell(33.5, humming=40, gemlite=50)
    missed = linear_cell(62, humming=40, gemlite=50)
    failed = linear_cell(33.5, humming=40)
    failed.errors["gemlite"] = "ImportError: no such module"
    met.deviations["qbits"], missed.deviations["qbits"] = 0.0017, 0.0031
    lines = cells.table([met, missed, failed]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "linear_4bit qbits us bf16 us humming us gemlite us of bf16 of best peer of limit",
        "28672x8192 M=1 33.5 100.0 40.0 50.0 0.34 <= 0.34 0.84 <= 1.02 93 % met",
        "28672x8192 M=1 62.0 100.0 40.0 50.0 0.62 > 0.34 1.55 > 1.02 50 % missed",
        "28672x8192 M=1 33.5 100.0 40.0 failed 0.34 <= 0.34 - 93 % failed",
        "failed: gemlite: ImportError: no such module",
        "largest relative error against the values of the codes: qbits 0.0031",
    ]


def test_summary_counts_and_judges_each_table():
    met, missed = linear_cell(33, humming=40, gemlite=50), linear_cell(40, humming=40, gemlite=50)
    assert cells.summary([met] * 4 + [missed], 0.8).endswith(
        "4 of 5 cells met, 0 slower than the best peer allows, 0 with something missing: met"
    )
    assert cells.summary([met] * 3 + [missed] * 2, 0.8).endswith(": missed")
    slower = linear_cell(50, humming=40, gemlite=50)
    assert cells.summary([met] * 9 + [slower], 0.8).endswith(
        "9 of 10 cells met, 1 slower than the best peer allows, 0 with something missing: missed"
    )


def test_a_cell_survives_json():
    cell = linear_cell(33, humming=40, gemlite=50)
    cell.deviations["qbits"] = 0.001
    record = json.loads(json.dumps(cell.record()))
    assert record["met"] is True
    assert record["bounds"][0]["value"] == 0.33
    assert Cell.from_record(record) == cell


def test_run_filters_and_keeps_what_fails():
    run = Run(only_shapes=[(8192, 8192)], only_rows=[1, 2048], peers=["humming"])
    assert run.shapes(targets.SHAPES) == [(8192, 8192)]
    assert run.rows(targets.ROWS) == [1]
    assert run.rows(targets.GRAD_ROWS) == [2048]
    assert list(run.contenders()) == ["qbits", "bf16", "humming"]
    assert run.fastest_peer() == [Bound("of best peer", "ratio", 1.02, ("humming",))]
    assert run.fastest_peer(("bitsandbytes",)) == []

    def missing():
        raise ImportError("no such module\nreally")

    made = run.make({"humming": missing})
    assert made == {"humming": Unavailable("ImportError: no such module")}
    cell = linear_cell(33)
    assert run.attempt(cell, "humming", missing) is None
    assert run.attempt(cell, "gemlite", lambda: 5.0) == 5.0
    assert cell.errors == {"humming": "ImportError: no such module"}
    assert cell.times["gemlite"] == 5.0
    assert len(run.traces) == 2


def test_arguments_refuse_an_unknown_table(capsys):
    assert main.arguments(["--tables", "formats", "--shapes", "4096x4096", "--rows", "1,16"]).shapes == [
        (4096, 4096)
    ]
    with pytest.raises(SystemExit):
        main.arguments(["--tables", "nothing"])
    assert "want some of linear_4bit, formats" in capsys.readouterr().err


def test_chart_draws_every_weight_and_contender(tmp_path):
    made = []
    for n, k in targets.SHAPES:
        for m in targets.ROWS:
            cell = linear_cell(30.0 + m / 50, humming=40.0, gemlite=None)
            cell.work = {"n": n, "k": k, "m": m}
            made.append(cell)
    lines = chart.series(made, "qbits")
    assert list(lines) == ["28672 x 8192", "8192 x 8192", "4096 x 14336", "14336 x 4096", "4096 x 4096"]
    assert lines["8192 x 8192"][0] == (1, pytest.approx(0.3002))
    assert chart.series(made, "gemlite") == {}

    report = tmp_path / "report.json"
    report.write_text(json.dumps({"gpu": "a GPU", "cells": [cell.record() for cell in made]}))
    assert chart.main([str(report), str(tmp_path / "chart.png")]) == 0
    image = (tmp_path / "chart.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) < 100_000


@pytest.mark.gpu
def test_a_graph_keeps_its_operands_and_writes_its_results(gpu):
    operand = torch.randn(1 << 20, device=gpu)
    want, kept = -operand, weakref.ref(operand)
    graph = timing.Graph([functools.partial(torch.neg, operand)])
    del operand
    gc.collect()
    torch.cuda.empty_cache()
    assert kept() is not None
    graph.results[0].zero_()
    assert graph.replay().seconds() > 0
    assert torch.equal(graph.results[0], want)


@pytest.mark.gpu
@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="other tests share the GPU, so times say nothing"
)
def test_a_graph_is_as_fast_as_the_same_calls_on_a_stream(gpu):
    x = torch.randn(1 << 26, device=gpu)
    calls = [functools.partial(torch.neg, x), functools.partial(torch.neg, x.clone())]
    times = timing.interleaved_us({"graph": timing.Graph(calls), "stream": timing.Stream(calls)})
    assert len(times["graph"]) >= 5
    assert 0.8 < statistics.median(times["graph"]) / statistics.median(times["stream"]) < 1.25


def test_a_table_that_breaks_keeps_the_others(monkeypatch, tmp_path, capsys):
    """Such as by an error that leaves the device unusable."""

    def breaks(run):
        yield linear_cell(30, humming=40, gemlite=50)
        raise RuntimeError("illegal memory access\nhint")

    monkeypatch.setattr(main, "TABLES", {"linear_4bit": breaks, "formats": lambda run: []})
    monkeypatch.setattr(main, "machine", lambda: {"gpu": "a GPU", "driver": None, "versions": {}})
    monkeypatch.setattr(timing, "copy_bytes_per_s", lambda: 4e12)
    monkeypatch.setattr(timing, "matrix_flops_per_s", lambda: 8e14)
    path = tmp_path / "gpu.json"
    grad = torch.is_grad_enabled()
    try:
        assert main.main(["--json", str(path), "--peers", ""]) == 1
    finally:
        torch.set_grad_enabled(grad)
    report = json.loads(path.read_text())
    assert report["broken"] == {"linear_4bit": "RuntimeError: illegal memory access"}
    assert len(report["cells"]) == 1
    assert "linear_4bit: ended early: RuntimeError: illegal memory access" in capsys.readouterr().out
