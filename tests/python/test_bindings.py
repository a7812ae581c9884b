"""qbits._C takes plain torch tensors and nothing else, whatever claims to be one."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import qbits
from qbits import _C
from qbits.formats import FORMATS

N = 128


@pytest.fixture
def outputs():
    return torch.empty(N // 2, dtype=torch.uint8), torch.empty(N // 64)


def quantize(x, outputs):
    _C.quantize_4bit(x, "nf4", 64, *outputs)
    return outputs


class Subclass(torch.Tensor):
    pass


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


class PretendsToBeATensor:
    __dlpack_c_exchange_api__ = torch.Tensor.__dlpack_c_exchange_api__


def fake():
    with FakeTensorMode():
        return torch.randn(N)


def functional():
    return torch._to_functional_tensor(torch.randn(N))


def batched():
    """The tensor a function sees inside vmap."""
    seen = []
    torch.vmap(lambda x: (seen.append(x), x)[1])(torch.randn(2, N))
    return seen[0]


REFUSED = {
    "None": (lambda: None, TypeError, "quantize_4bit"),
    "numpy": (
        lambda: np.zeros(N, np.float32),
        TypeError,
        r"\[quantize_4bit\] x: got ndarray, want torch.Tensor",
    ),
    "list": (lambda: [0.0] * N, TypeError, r"\[quantize_4bit\] x: got list"),
    "storage": (lambda: torch.zeros(N).untyped_storage(), TypeError, r"x: got UntypedStorage"),
    "same API": (PretendsToBeATensor, TypeError, r"x: got PretendsToBeATensor"),
    "subclass": (lambda: torch.randn(N).as_subclass(Subclass), TypeError, r"x: got Subclass"),
    "wrapper": (lambda: Wrapper(torch.randn(N)), TypeError, r"x: got Wrapper"),
    "FakeTensor": (fake, TypeError, r"x: got FakeTensor"),
    "functional": (functional, TypeError, r"x: got a tensor without (plain )?memory"),
    "batched": (batched, TypeError, r"x: got a tensor without (plain )?memory"),
    "meta": (
        lambda: torch.empty(N, device="meta"),
        TypeError,
        r"x: got a tensor without plain memory .*meta",
    ),
    "sparse": (lambda: torch.eye(4).to_sparse(), TypeError, r"x: got a tensor of layout torch.sparse_coo"),
    "bool": (lambda: torch.zeros(N, dtype=torch.bool), TypeError, r"x: got dtype torch.bool, want float32, "),
    "float64": (lambda: torch.zeros(N, dtype=torch.float64), TypeError, r"x: got dtype torch.float64"),
    "complex64": (lambda: torch.zeros(N, dtype=torch.complex64), TypeError, r"x: got dtype torch.complex64"),
    "fp8": (lambda: torch.zeros(N).to(torch.float8_e4m3fn), TypeError, r"x: got dtype torch.float8_e4m3fn"),
    "int16": (lambda: torch.zeros(N, dtype=torch.int16), TypeError, r"x: got dtype torch.int16"),
    "int32": (lambda: torch.zeros(N, dtype=torch.int32), TypeError, r"\[quantize_4bit\] x: got int32\[128\]"),
    "9 dimensions": (lambda: torch.zeros([1] * 9), ValueError, r"x: got 9 dimensions, want at most 8"),
    "gaps": (lambda: torch.zeros(2 * N)[::2], ValueError, r"\[quantize_4bit\] x: got .* want a contiguous"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_is_not_a_plain_tensor(name, outputs):
    make, error, message = REFUSED[name]
    outputs[0].fill_(7)
    with pytest.raises(error, match=message):
        quantize(make(), outputs)
    assert (outputs[0] == 7).all(), "written before it was refused"


def test_refuses_dtensor(outputs):
    # A process group of one in a process of its own: it is global state.
    script = """
import torch, torch.distributed as dist
from torch.distributed.tensor import distribute_tensor, init_device_mesh
from qbits import _C
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
x = distribute_tensor(torch.randn(128), init_device_mesh("cpu", (1,)))
try:
    _C.quantize_4bit(x, "nf4", 64, torch.empty(64, dtype=torch.uint8), torch.empty(2))
except TypeError as error:
    print(error)
dist.destroy_process_group()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "[quantize_4bit] x: got DTensor, want torch.Tensor or torch.nn.Parameter" in result.stdout


def test_names_the_argument_it_refuses(outputs):
    codes, absmax = outputs
    with pytest.raises(TypeError, match=r"\[quantize_4bit\] absmax: got list, want torch.Tensor"):
        _C.quantize_4bit(torch.randn(N), "nf4", 64, codes, [1.0])
    with pytest.raises(TypeError, match=r"\[dequantize_4bit\] offset: got float"):
        _C.dequantize_4bit(codes, absmax, "nf4", 64, torch.empty(N), None, None, 1.0)


def test_takes_parameters_and_tensors_that_require_grad(outputs):
    x = torch.randn(N)
    want = [t.clone() for t in quantize(x, outputs)]
    for same in (torch.nn.Parameter(x), x.clone().requires_grad_(), torch.cat([x, x])[N:]):
        assert all(torch.equal(a, b) for a, b in zip(quantize(same, outputs), want, strict=True))


def test_negative_views_are_resolved_above_the_bindings():
    x = torch.randn(N)
    view = torch._neg_view(x)
    assert view.is_neg()
    for got, want in zip(
        qbits.ops.quantize_4bit(view, "nf4", 64), qbits.ops.quantize_4bit(-x, "nf4", 64), strict=True
    ):
        assert torch.equal(got, want)
    imaginary = torch.complex(x, -x).conj().imag
    assert imaginary.is_neg()
    codes, _ = qbits.ops.quantize_4bit(imaginary, "nf4", 64)
    assert torch.equal(codes, qbits.ops.quantize_4bit(x, "nf4", 64)[0])


def test_eight_dimensions_and_none_are_fine(outputs):
    x = torch.randn(N)
    want = [t.clone() for t in quantize(x, outputs)]
    assert all(torch.equal(a, b) for a, b in zip(quantize(x.view([2] * 7 + [1]), outputs), want, strict=True))
    scalar = torch.empty(1, dtype=torch.uint8), torch.empty(1)
    _C.quantize_4bit(torch.tensor(-3.0), "nf4", 64, *scalar)
    assert scalar[1].item() == 3.0


def test_empty_tensors_have_no_data_and_pass():
    x = torch.empty(0)
    assert x.data_ptr() == 0
    _C.quantize_4bit(x, "nf4", 64, torch.empty(0, dtype=torch.uint8), torch.empty(0))


def test_errors_become_the_python_ones(outputs):
    x = torch.randn(N)
    with pytest.raises(ValueError, match="nf5"):
        _C.quantize_4bit(x, "nf5", 64, *outputs)
    with pytest.raises(ValueError, match=r"\[quantize_4bit\] block size: got 63, want 16, 32"):
        _C.quantize_4bit(x, "nf4", 63, *outputs)
    with pytest.raises(ValueError, match="avx1024"):
        _C.set_isa("avx1024")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.quantize_4bit(x)
    with pytest.raises(TypeError):
        _C.quantize_4bit(x, "nf4", 64.0, *outputs)
    with pytest.raises(TypeError):
        _C.quantize_4bit(x, "nf4", 2**70, *outputs)


def test_the_gil_is_free_while_libqbits_works():
    x = torch.randn(1 << 24)
    codes, absmax = torch.empty(x.numel() // 2, dtype=torch.uint8), torch.empty(x.numel() // 64)
    qbits.set_num_threads(1)
    try:
        worker = threading.Thread(target=_C.quantize_4bit, args=(x, "nf4", 64, codes, absmax))
        ticks = 0
        worker.start()
        while worker.is_alive():
            ticks += 1
        worker.join()
    finally:
        qbits.set_num_threads(torch.get_num_threads())
    assert ticks > 10, "this thread could not run beside the op"


def test_the_format_table_is_the_one_of_libqbits():
    rows = _C.formats()
    assert [row.name for row in rows] == list(FORMATS)
    for row in rows:
        assert set(row.block_sizes) == set(FORMATS[row.name].block_sizes)
        assert len(row.codebook) in (0, 2**row.bits)


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_those_of_libqbits(name):
    row = FORMATS[name]
    for rows in (0, 1, 3, 64):
        for cols in (0, 1, 15, 16, 17, 257, 4096):
            assert row.codes_size(rows * cols) == _C.codes_size(name, rows * cols)
            for block_size in (*row.block_sizes, 0) if row.whole_rows else row.block_sizes:
                assert row.num_scales(rows, cols, block_size) == _C.num_scales(name, rows, cols, block_size)


def test_threads_follow_torch_at_import():
    script = "import torch; torch.set_num_threads(2); import qbits; print(qbits.num_threads())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2"
    with pytest.raises(ValueError):
        qbits.set_num_threads(0)


def test_isa_can_be_chosen():
    for name in qbits.available_isas():
        qbits.set_isa(name)
        assert qbits.isa() == name
    qbits.set_isa("")
    with pytest.raises(ValueError, match=r"\[set_isa\] instruction set: got avx1024, want scalar, avx2 or"):
        qbits.set_isa("avx1024")


def test_a_wrong_isa_in_the_environment_is_reported_under_the_name_of_the_variable():
    script = """
import qbits
try:
    qbits.isa()
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "QBITS_ISA": "avx1024"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == ("[QBITS_ISA] instruction set: got avx1024, want scalar, avx2 or avx512")


@pytest.mark.gpu
def test_work_goes_to_torch_s_current_stream(gpu):
    x = torch.randn(1 << 20, device=gpu)
    codes, absmax = (
        torch.empty(x.numel() // 2, dtype=torch.uint8, device=gpu),
        torch.empty(x.numel() // 64, device=gpu),
    )
    _C.quantize_4bit(x, "nf4", 64, codes, absmax)
    want = codes.clone()
    codes.zero_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Capture fails for work that goes to any stream but the current one.
    with torch.cuda.graph(graph):
        _C.quantize_4bit(x, "nf4", 64, codes, absmax)
    assert (codes == 0).all()
    graph.replay()
    assert torch.equal(codes, want)


@pytest.mark.gpu
def test_refuses_tensors_on_different_devices(gpu, outputs):
    with pytest.raises(ValueError, match=r"\[quantize_4bit\] codes: got .* on cpu, want a tensor on cuda:0"):
        quantize(torch.randn(N, device=gpu), outputs)


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_a_process_that_gets_no_more_threads_goes_on():
    script = """
import resource, torch, qbits
x = torch.randn(1 << 20)
codes, absmax = qbits.ops.quantize_4bit(x, "nf4", 64)
want = codes.clone()
codes.zero_()
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), limits[1]))
qbits.set_num_threads(4000)
qbits._C.quantize_4bit(x, "nf4", 64, codes, absmax)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(torch.equal(codes, want))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"
