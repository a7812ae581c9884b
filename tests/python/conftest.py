"""Fixtures of all Python tests: where to run (each CPU instruction set, CUDA) and how hard to search."""

import os

import hypothesis
import pytest
import torch

import qbits
from qbits.runtime import cuda_unavailable_reason

# The same 200 examples every time, so that a red run can be repeated; `make fuzz` searches for new ones.
hypothesis.settings.register_profile("default", max_examples=200, deadline=None, derandomize=True)
hypothesis.settings.register_profile("fuzz", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Processes that share a machine share its cores, too: references on the CPU otherwise wait for one another.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(share)
    qbits.set_num_threads(share)


def _why_no_gpu():
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    return cuda_unavailable_reason()


WHY_NO_GPU = _why_no_gpu()
CPU = [pytest.param(("cpu", isa), id=f"cpu-{isa}") for isa in qbits.available_isas()]
CUDA = pytest.param(("cuda", ""), id="cuda", marks=pytest.mark.gpu)


def pytest_collection_modifyitems(items):
    if WHY_NO_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=WHY_NO_GPU))


@pytest.fixture(params=[*CPU, CUDA])
def device(request):
    """Each place an op can run: the CPU once per instruction set it has, and the GPU."""
    kind, isa = request.param
    qbits.set_isa(isa)
    yield torch.device(kind)
    qbits.set_isa("")


@pytest.fixture
def gpu():
    """The GPU, for tests that carry the marker `gpu` and compare with the CPU or watch streams."""
    return torch.device("cuda")
