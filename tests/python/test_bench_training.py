"""The training bench, with a small model: 8-bit state trains as 32-bit state does."""

import math
import re
from pathlib import Path

import pytest

from bench import cpu, training


@pytest.fixture(scope="module")
def runs():
    size = training.Size(width=64, layers=1, heads=2, context=32, batch=16, steps=60, rate=5e-3, points=3)
    return training.compare(size, range(1))


def test_the_help_of_the_benches_names_each():
    names = re.findall(r'== \["(\w+)"\]', (Path(cpu.__file__).parent / "__main__.py").read_text())
    assert len(names) > 3 and all(f"`python -m bench {name}`" in cpu.OTHERS for name in names)


def test_losses_are_the_same(runs):
    assert abs(training.difference(runs)) <= training.LIMIT
    for run in runs:
        assert run.steps == [20, 40, 60]
        assert run.losses[-1] < run.losses[0] < math.log(103)


def test_state_is_smaller(runs):
    # Embedding, norms and biases keep 32 bits.
    assert runs[1].bits == 8 and runs[1].state_bytes < 0.45 * runs[0].state_bytes


def test_table_and_chart(runs, tmp_path):
    assert "mean difference" in training.table(runs) and f"{runs[0].losses[-1]:.4f}" in training.table(runs)
    pytest.importorskip("matplotlib")
    training.draw(runs, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
