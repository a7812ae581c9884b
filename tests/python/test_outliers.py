"""qbits.outliers: what it counts, on which layers, how it leaves the model, what it refuses."""

import collections
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qbits
import qbits.functional as F
from qbits import outliers

PNG = b"\x89PNG"


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spiked(*shape, columns=(3,), value=20.0):
    """Normal values with `value` in some columns of every other row."""
    x = randn(*shape)
    x.view(-1, shape[-1])[::2, list(columns)] = value
    return x


class Block(nn.Module):
    """Dropout, batch norm and two layers, the second of them used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.rest = nn.Sequential(nn.BatchNorm1d(24), nn.Dropout(0.5), nn.Linear(24, 24))
        self.again = self.rest[2]

    def forward(self, x, scale=1.0):
        return self.again(self.rest(self.first(x * scale)))


def counted(layer):
    return {r["column"]: (r["rows"], r["largest"]) for r in layer.records()}


def expected(x, threshold):
    """From the definition, one element after the other."""
    rows = x.reshape(-1, x.shape[-1]).float().tolist()
    counts = [sum(abs(v) >= threshold for v in column) for column in zip(*rows, strict=True)]
    largest = [max((abs(v) for v in column if v == v), default=0.0) for column in zip(*rows, strict=True)]
    return counts, largest


def test_counts_by_hand(device):
    x = torch.zeros(2, 3, 4, device=device)
    x[0, 0], x[1, 2] = torch.tensor([6.0, -6.0, 5.999, 1.0]), torch.tensor([7.0, 0.0, -5.0, math.nan])
    x[0, 1, 1] = -math.inf
    found = outliers(nn.Linear(4, 5, device=device), x)
    layer = found.layers[""]
    assert (layer.name, layer.rows, layer.columns, layer.nans) == ("", 6, 4, 1)
    assert layer.counts.tolist() == [2, 2, 0, 0] and layer.counts.dtype == torch.int64
    assert layer.largest.tolist() == torch.tensor([7.0, math.inf, 5.999, 1.0]).tolist()
    assert layer.counts.device.type == layer.largest.device.type == "cpu"
    assert (layer.outlier_columns, layer.share) == ([0, 1], 0.5)
    assert counted(layer) == {0: (2, 7.0), 1: (2, math.inf)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("threshold", [6.0, 0.3, 6.01])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (5, 40), (2, 3, 40)])
def test_counts_are_those_of_the_definition(dtype, threshold, shape, device):
    x = spiked(*shape).to(device, dtype)
    inputs = [x, x * 2, x[:0] if len(shape) > 1 else x, x]
    layer = outliers(nn.Linear(40, 7, device=device, dtype=dtype), inputs, threshold).layers[""]
    # bfloat16 cannot hold 6.01, to which its elements must be compared all the same.
    limit = torch.tensor(threshold, dtype=torch.float32).item()
    counts, largest = expected(torch.cat([part.reshape(-1, 40).float() for part in inputs]), limit)
    assert layer.counts.tolist() == counts and layer.largest.tolist() == largest
    assert layer.rows == sum(part.numel() // 40 for part in inputs)


@given(
    st.lists(
        st.lists(
            st.floats(width=32) | st.sampled_from([6.0, -6.0, math.nan, math.inf]), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=6,
    ),
    st.floats(min_value=2.0**-100, max_value=2.0**100, width=32),
)
def test_agrees_with_quantize_int8_rowwise(rows, threshold):
    x = torch.tensor(rows)
    layer = outliers(nn.Linear(3, 2), x, threshold).layers[""]
    quantized = F.quantize_int8_rowwise(x, threshold)
    assert layer.outlier_columns == quantized.outlier_columns[: quantized.outlier_count.item()].tolist()
    assert (layer.counts.tolist(), layer.largest.tolist()) == expected(x, threshold)
    assert layer.nans == x.isnan().sum()


def test_a_shared_module_is_one_layer_with_the_rows_of_all_its_calls():
    model, x = Block(), spiked(6, 16)
    found = outliers(model, x)
    assert list(found.layers) == ["first", "rest.2"]
    assert [layer.rows for layer in found.layers.values()] == [6, 12]
    assert found.layers["first"].outlier_columns == [3]
    with torch.no_grad():
        inner = model.rest[:2].eval()(model.first(x))
    counts, largest = expected(torch.cat([inner, model.again(inner).detach()]), 6.0)
    assert found.layers["rest.2"].counts.tolist() == counts
    assert found.layers["rest.2"].largest.tolist() == pytest.approx(largest)


Pair = collections.namedtuple("Pair", "x scale")
X = spiked(4, 16)


@pytest.mark.parametrize(
    ("data", "rows", "largest"),
    [
        (X, 4, 20.0),
        ((X, 2.0), 4, 40.0),
        (Pair(X, 3.0), 4, 60.0),
        ({"x": X, "scale": 0.5}, 4, 10.0),
        ([X, X], 8, 20.0),
        ([X, (X,), [X, 2.0], {"x": X}], 16, 40.0),
        ((part for part in (X, X)), 8, 20.0),
        (collections.UserDict(x=X), 4, 20.0),
        (DataLoader(TensorDataset(X), batch_size=3), 4, 20.0),
        (DataLoader([{"x": row} for row in X], batch_size=2), 4, 20.0),
        (torch.nn.Parameter(X), 4, 20.0),
    ],
)
def test_what_data_may_be(data, rows, largest):
    layer = outliers(Block(), data).layers["first"]
    assert layer.rows == rows and counted(layer)[3] == (rows // 2, largest)


def test_rows_without_a_column_are_counted():
    layer = qbits.outliers(nn.Linear(0, 3), [torch.ones(2, 0), torch.ones(3, 4, 0)]).layers[""]
    assert (layer.rows, layer.columns, layer.nans, layer.records()) == (14, 0, 0, [])


def test_layers_that_are_watched():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    class Named(nn.Linear):
        def forward(self, *, other=None, x):
            return super().forward(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(16, 16)
            self.quantized = qbits.nn.Linear4bit(16, 16, block_size=16)
            self.transposed = Conv1D(24, 16)
            self.lazy = nn.LazyLinear(16)
            self.subclass = Named(16, 16)
            self.idle = nn.Linear(8, 8)
            self.embedding = nn.Embedding(4, 16)

        def forward(self, x):
            self.dense(input=x), self.quantized(x), self.transposed(x=x), self.lazy(x)
            return self.subclass(other=None, x=x)

    found = outliers(Model(), X)
    assert [(name, layer.rows, layer.columns) for name, layer in found.layers.items()] == [
        ("dense", 4, 16), ("quantized", 4, 16), ("transposed", 4, 16), ("lazy", 4, 16), ("subclass", 4, 16),
        ("idle", 0, 8),
    ]  # fmt: skip
    assert [layer.outlier_columns for layer in found.layers.values()] == [[3]] * 5 + [[]]
    assert "; 1 layers got no rows" in str(found)


def hooks(model):
    return [len(module._forward_pre_hooks) for module in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = Block().train()
    model.rest[1].eval()
    model.first.register_forward_pre_hook(lambda module, args: None)
    modes, before = [m.training for m in model.modules()], hooks(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def watch(module, args, kwargs):
        seen.append((module.training, torch.is_grad_enabled()))

    with model.register_forward_pre_hook(watch, with_kwargs=True):
        if fails:
            with pytest.raises(RuntimeError, match="dtype"):
                outliers(model, [X, X.double()])
        else:
            outliers(model, X)
    assert set(seen) == {(False, False)}
    assert [m.training for m in model.modules()] == modes and hooks(model) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model(X).requires_grad and all(p.grad is None for p in model.parameters())


def test_a_compiled_model_is_counted_and_stays_compiled():
    model = Block().eval()
    calls = []

    def backend(graph, inputs):
        def run(*args):
            calls.append(1)
            return graph.forward(*args)

        return run

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        want = compiled(X)
        assert len(calls) == 1
        found = outliers(compiled, X)
        assert len(calls) == 1 and list(found.layers) == ["_orig_mod.first", "_orig_mod.rest.2"]
        assert found.layers["_orig_mod.first"].outlier_columns == [3]
        assert torch.equal(compiled(X), want) and len(calls) == 2


def test_inference_mode_inside_and_around():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            with torch.inference_mode(self.calls % 2 == 1):
                return self.layer(x)

    assert outliers(Inner(), [X] * 3).layers["layer"].rows == 12
    with torch.inference_mode():
        assert outliers(Block(), [X] * 3).layers["first"].rows == 12


def test_export_of_the_result():
    found = outliers(Block(), {"x": spiked(6, 16, columns=(3, 11))}, threshold=np.float32(6))
    as_dict = json.loads(json.dumps(found.to_dict()))
    first = as_dict["layers"]["first"]
    assert as_dict["threshold"] == 6.0
    assert first["outliers"] == [{"column": c, "rows": 3, "largest": 20.0} for c in (3, 11)]
    assert {key: first[key] for key in first if key != "outliers"} == {
        "rows": 6, "columns": 16, "share": 0.125, "largest": 20.0, "nans": 0,
    }  # fmt: skip


def test_table_names_the_largest_columns_and_sums_up():
    x = spiked(6, 40, columns=(3, 11, 12, 30))
    x[0, 11], x[1, 0] = 90.0, math.nan
    found = outliers(nn.Sequential(nn.Linear(40, 2), nn.Hardtanh(), nn.Linear(2, 2)), x)
    heading, line, summary = str(found).splitlines()
    assert " ".join(heading.split()) == "layer rows columns outliers share largest column (in rows)"
    assert line.split("   ")[-1] == "11 (3), 3 (3), 12 (3), ..."
    assert line.split()[:6] == ["0", "6", "40", "4", "10.00%", "90.0"]
    # One NaN and, in the layer after it, the two that it became.
    want = "1 of 2 layers have elements |x| >= 6, in 4 of 42 columns (9.52%); 3 elements were NaN"
    assert summary == want
    assert "11 (3), 3 (3), 12 (3), 30 (3)\n" in found.table(columns=4)
    none = outliers(nn.Linear(40, 2), randn(5, 40), 1e3)
    assert str(none) == "0 of 1 layers have elements |x| >= 1000, in 0 of 40 columns (0.00%)"


@pytest.mark.parametrize("value", [20.0, 0.0, math.inf, math.nan])
def test_plot(value, tmp_path):
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Linear(16, 700), nn.Linear(700, 3))
    outliers(model, spiked(6, 16, value=value)).plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_plot_needs_its_library_and_a_place(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    found = outliers(Block(), X)
    with pytest.raises(OSError, match="missing"):
        found.plot(tmp_path / "missing" / "plot.png")
    with pytest.raises(ValueError, match="nothing"):
        found.plot(tmp_path / "plot.nothing")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"\[Outliers\.plot\] matplotlib: .*pip install 'qbits\[plot\]'"):
        found.plot(tmp_path / "plot.png")


def test_bins_keep_the_largest_of_their_columns():
    from qbits.outliers import _binned

    for columns, bins in [(1, 1), (5, 5), (7, 3), (1536, 512), (700, 512), (513, 512)]:
        values = randn(columns).abs()
        parts = [
            max(v for i, v in enumerate(values.tolist()) if i * bins // columns == b) for b in range(bins)
        ]
        assert _binned(values, bins).tolist() == parts
    assert _binned(torch.tensor([1.0, 2.0, 3.0]), 7).tolist() == [1, 1, 1, 2, 2, 3, 3]
    assert _binned(torch.empty(0), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, -math.inf, 1e39, 10**400, 1e-60, 1e-40])
def test_a_threshold_that_does_not_fit(bad):
    with pytest.raises(ValueError, match=r"\[outliers\] threshold: got .*, want a positive number"):
        outliers(Block(), X, bad)


@pytest.mark.parametrize(
    ("model", "data", "threshold", "error", "message"),
    [
        ("a model", X, 6.0, TypeError, r"model: got str, want nn\.Module"),
        (Block(), X, "6", TypeError, "threshold: got '6', want a number"),
        (Block(), X, None, TypeError, "threshold: got None, want a number"),
        (nn.ReLU(), X, 6.0, ValueError, "model: got ReLU without a linear layer, want one"),
        (Block(), [], 6.0, ValueError, "data: got no row that reached"),
        (Block(), randn(0, 16), 6.0, ValueError, "data: got no row that reached"),
        (Block(), None, 6.0, TypeError, "data: got NoneType, want an iterable of inputs, or one"),
        (Block(), "text", 6.0, TypeError, "data: got str, want an iterable of inputs, or one"),
        (Block(), [X, 5], 6.0, TypeError, "data: got an input of type int, want a tensor"),
        (
            nn.Linear(16, 2),
            randn(4, 5),
            6.0,
            ValueError,
            r"input of \(the model\): got float32 \[4, 5\], want",
        ),
        (
            Block(),
            X.to(torch.complex64),
            6.0,
            ValueError,
            r"input of first: got complex64 \[4, 16\], want real",
        ),
    ],
)
def test_refusals(model, data, threshold, error, message):
    with pytest.raises(error, match=rf"^\[outliers\] {message}"):
        outliers(model, data, threshold)


def test_nothing_is_imported_before_it_is_needed():
    code = "import qbits, sys; print(sorted({'matplotlib', 'rich', 'transformers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.gpu
def test_calls_do_not_wait_for_the_gpu(gpu):
    from qbits.outliers import _Watched

    layer = _Watched("", nn.Linear(64, 8, device=gpu))
    x = spiked(32, 64).to(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            layer.add(x, 6.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert layer.counts[3].item() == 48
