"""The CPU instruction set and threads libqbits uses, and what its build can do."""

from __future__ import annotations

from qbits import _C


def available_isas() -> list[str]:
    """The instruction sets this machine and build can use, slowest first: "scalar", "avx2", "avx512"."""
    return _C.available_isas()


def isa() -> str:
    """The instruction set in use: the best available, or what QBITS_ISA or `set_isa` chose."""
    return _C.isa()


def set_isa(name: str) -> None:
    """Uses the instruction set `name` from now on; "" goes back to the default choice.

    Raises ValueError for an unknown name and NotImplementedError for one this machine lacks.
    """
    _C.set_isa(name)


def num_threads() -> int:
    """Threads a CPU op may use, the calling one included.

    `import qbits` sets it to `torch.get_num_threads()`; a later `torch.set_num_threads` does not change it,
    `qbits.set_num_threads` does.
    """
    return _C.num_threads()


def set_num_threads(count: int) -> None:
    """Sizes the thread pool of the CPU ops. Raises ValueError unless `count` is at least 1."""
    _C.set_num_threads(count)


def cuda_archs() -> list[str]:
    """The compute capabilities compiled in, such as "9.0a"; empty in a build without CUDA."""
    return _C.cuda_archs()


def cuda_unavailable_reason() -> str:
    """One sentence saying why qbits cannot use CUDA here; "" if it can."""
    return _C.cuda_unavailable_reason()


def cuda_driver_version() -> int:
    """The newest CUDA the driver supports, as 13000 for 13.0; 0 where there is no driver."""
    return _C.cuda_driver_version()


def cuda_runtime_version() -> int:
    """The CUDA runtime this build holds, as 13000 for 13.0; 0 without CUDA."""
    return _C.cuda_runtime_version()
