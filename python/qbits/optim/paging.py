"""Paged optimizer state (Dettmers et al., arXiv 2305.14314): on the host, on a GPU what a budget allows."""

from __future__ import annotations

import bisect
import math
import mmap
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from qbits import _C
from qbits.optim import sharding, state_dict

DEVICES = ("cuda",)  # where state is paged; that of parameters on the CPU is in host memory anyway
RESERVE = 1 << 30
_PORTABLE = 1  # cudaHostRegisterPortable

T = TypeVar("T")


class Memory:
    """What a pager has allocated, as tensors: on its device from torch's allocator, else page-locked."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: dict[int, Tensor] = {}
        self._starts: list[int] | None = None  # of the blocks, in order
        self._locked: set[int] = set()

    def allocate(self, kind: str, size: int) -> int | None:
        """The address of `size` bytes of "host", "staging" or "resident" memory; None if it may lack."""
        if kind == "host" or self._device.type == "cpu":
            block = self._host(size)
        else:
            try:
                block = torch.empty(size, dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError:
                if kind == "resident":
                    return None
                raise
        address = block.data_ptr()
        self._blocks[address] = block
        self._starts = None
        return address

    def _host(self, size: int) -> Tensor:
        # Whole pages, which no other memory that gets locked shares. torch's own page-locked memory would be
        # rounded to a power of two, and kept when it is freed.
        size = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block = torch.frombuffer(pages, dtype=torch.uint8)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                code = int(torch.cuda.cudart().cudaHostRegister(block.data_ptr(), size, _PORTABLE))
            if code != 0:
                raise MemoryError(f"[pager] page-locked memory: got CUDA error {code}, want {size} bytes")
            self._locked.add(block.data_ptr())
        return block

    def free(self, address: int) -> None:
        """What allocate gave. Tensors made of it keep the memory, but no longer page-locked."""
        del self._blocks[address]
        self._starts = None
        if address in self._locked:
            self._locked.remove(address)
            if not sys.is_finalizing():
                torch.cuda.cudart().cudaHostUnregister(address)

    def view(self, address: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A tensor of `size` bytes that lie in one of the blocks."""
        if self._starts is None:
            self._starts = sorted(self._blocks)
        start = self._starts[bisect.bisect(self._starts, address) - 1]
        return self._blocks[start][address - start :][:size].view(dtype).view(shape)


class Pages:
    """The paged state of an optimizer on one device."""

    OPTIONS: ClassVar[dict[str, int]] = {}  # sizes of the pager's memory, if not the usual ones

    def __init__(self, device: torch.device, budget: int | None, reserve: int) -> None:
        self.device = device
        self.budget = budget
        self.reserve = reserve
        self.limit: int | None = None  # what running out of memory has left of the budget
        self.memory = Memory(device)
        self.pager = _C.Pager(device.index if device.type == "cuda" else None, self.memory, **self.OPTIONS)
        self.plan = ""
        self.is_placed = True
        self.is_captured = False
        self._prefetched: bool | None = None  # whether while a graph was captured
        self._watched: Tensor | None = None  # the parameter whose gradient starts a prefetch
        self._places: dict[Tensor, tuple[int, dict[str, Tensor]]] = {}

    def add(self, param: Tensor, algorithm: str, is_8bit: bool, divisible: bool) -> dict[str, Tensor]:
        """New state of a parameter, whose values are yet to be written."""
        layout = state_dict.layout(param, algorithm, is_8bit)
        index, former = self._places.get(param, (-1, {}))
        if _layout_of(former) != layout:  # otherwise state that was thrown away leaves its place
            index = self.pager.add(algorithm, param.numel(), is_8bit, divisible)
        self.is_placed = False
        tensors = self._tensors(index, layout)
        self._places[param] = (index, tensors)
        return tensors

    def _tensors(self, index: int, layout: state_dict.Layout) -> dict[str, Tensor]:
        arrays = self.pager.state(index)
        return {key: self.memory.view(*arrays[key], dtype, shape) for key, (shape, dtype) in layout.items()}

    def adopt(self, param: Tensor, own: dict[str, Any], algorithm: str, divisible: bool) -> dict[str, Any]:
        """The state of a parameter with its tensors in paged memory; where they do not fit, on the device."""
        is_8bit = "absmax1" in own or "absmax2" in own
        layout = state_dict.layout(param, algorithm, is_8bit)
        fits = layout and all(
            isinstance(own.get(key), Tensor)
            and (own[key].numel(), own[key].dtype) == (math.prod(shape), dtype)
            for key, (shape, dtype) in layout.items()
        )
        paged = self.add(param, algorithm, is_8bit, divisible) if fits else {}
        for key, tensor in paged.items():
            tensor.copy_(own[key].reshape(tensor.shape))
        rest = {key: value for key, value in own.items() if key not in paged}
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in rest.items()} | paged

    def before_step(self, state: Mapping[Tensor, dict[str, Any]], name: str) -> None:
        """Gives all state its place. Raises RuntimeError where a CUDA graph would not find it again."""
        if not self._is_capturing():
            if not self.is_placed:
                self._refuse_captured(name)
                self._place(state)
        elif self.budget is None or not self.is_placed or self._prefetched is False:
            raise RuntimeError(
                f"[{name}] capture: got paged state that may move or is on its way, want device_budget in "
                "bytes and a step() before the capture, and no prefetch() since"
            )
        else:
            self.is_captured = True
        self._prefetched = None

    def _place(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        self.synchronize()
        budget = self.budget
        if budget is None:
            budget = self._free_bytes() - self.reserve + self.pager.resident_bytes()
        if self.limit is not None:
            budget = min(budget, self.limit)
        self.plan = self.pager.place(max(budget, 0))
        self.is_placed = True
        self._show(state)

    def _free_bytes(self) -> int:
        # Not what torch keeps for itself: activations will be there again.
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def page_out(self, state: Mapping[Tensor, dict[str, Any]], name: str) -> int:
        """Moves all state to host memory; returns the bytes of it that were on the device."""
        self._refuse_captured(name)
        self.synchronize()
        resident = self.pager.resident_bytes()
        self._prefetched = None
        self.pager.page_out()
        self.is_placed = False
        self._show(state)
        return resident

    def prefetch(self) -> None:
        """Starts to load what the next step needs first."""
        if self.is_placed and self._prefetched is None:
            self._prefetched = self._is_capturing()
            self.pager.prefetch()

    def watch(self, params: Iterator[Tensor]) -> None:
        """Prefetches when the last parameter here has its gradient, mostly the first of a backward pass.

        Not with a budget in bytes, which is for steps that may be captured, where nothing must be on its way.
        """
        mine = [param for param in params if param.device == self.device and param.requires_grad]
        if self.budget is not None or not mine or self._watched is mine[-1]:
            return
        pages = weakref.ref(self)

        @torch._disable_dynamo
        def start(param: Tensor) -> None:
            own = pages()
            if own is not None and own._watched is param and not own._is_capturing():
                own.prefetch()

        self._watched = mine[-1]
        weakref.finalize(self, mine[-1].register_post_accumulate_grad_hook(start).remove)

    def synchronize(self) -> None:
        """Waits until the state is what the last step left, whatever its stream."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _show(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Puts tensors of the memory where state is now into the place of those where it was."""
        for param, (index, tensors) in list(self._places.items()):
            own = state.get(param, {})
            if any(own.get(key) is not tensor for key, tensor in tensors.items()):  # others have replaced it
                del self._places[param]
                continue
            moved = self._tensors(index, _layout_of(tensors))
            own.update(moved)
            self._places[param] = (index, moved)

    def _is_capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _refuse_captured(self, name: str) -> None:
        if self.is_captured:
            raise RuntimeError(f"[{name}] paging: got state that a CUDA graph uses, want it where it is")


class Paging:
    """What optimizers offer for paged state."""

    PAGED: ClassVar[bool] = False  # of classes that leave no choice
    SCALING: ClassVar[str]
    state: Any
    param_groups: list[dict[str, Any]]
    _require: Callable[..., None]

    def _init_paging(self, options: Mapping[str, Any]) -> None:
        name, is_paged = type(self).__name__, options.get("is_paged")
        if self.PAGED and is_paged is False:
            raise ValueError(f"[{name}] is_paged: got False, want True")
        self.is_paged = self.PAGED or bool(is_paged)
        budget = options.get("device_budget")
        self.device_budget = None if budget is None else self._bytes("device_budget", budget)
        self.device_reserve = self._bytes("device_reserve", options.get("device_reserve", RESERVE))

    def _bytes(self, key: str, size: Any) -> int:
        want = "a whole number from 0 to 2^63 - 1"
        self._require({key: size}, key, lambda got: 0 <= got < 2**63 and got == int(got), want)
        return int(size)

    def _forget_pages(self) -> None:
        self._pages: dict[torch.device, Pages] = {}

    def _pages_of(self, param: Tensor) -> Pages | None:
        """Where the state of a parameter goes, if it is paged."""
        if not self.is_paged or param.device.type not in DEVICES or param.numel() == 0:
            return None
        if sharding.as_dtensor(param) is not None:
            name = type(self).__name__
            raise TypeError(f"[{name}] param: got a DTensor, want plain tensors for paged state")
        if param.device not in self._pages:
            self._pages[param.device] = Pages(param.device, self.device_budget, self.device_reserve)
        return self._pages[param.device]

    def _place_pages(self) -> None:
        for pages in self._pages.values():
            if not pages.is_placed:
                pages.watch(param for group in self.param_groups for param in group["params"])
            pages.before_step(self.state, type(self).__name__)

    def _host_state(self) -> dict[Any, Any]:
        """The state with all tensors copied to host memory, after waiting for what is still to be written."""
        for pages in self._pages.values():
            pages.synchronize()
        return {param: dict(_host_copies(own)) for param, own in self.state.items()}

    @property
    def paging_plans(self) -> dict[torch.device, str]:
        """For each GPU, in words, which state of its parameters is where since the last step."""
        return {device: pages.plan for device, pages in self._pages.items()}

    def page_out(self) -> int:
        """Moves paged state to host memory and frees that of the GPU; the next step brings it back.

        Waits for the GPU.

        Returns:
            The bytes of state that were on GPUs.

        Raises:
            RuntimeError: a CUDA graph was captured, which would use what is freed.
        """
        return sum(pages.page_out(self.state, type(self).__name__) for pages in self._pages.values())

    def prefetch(self) -> None:
        """Starts to copy to the GPU what the next step needs first.

        Without device_budget the backward pass does so itself. With one, call this before or during it, on
        the stream of step(). Leave the state alone from then on. Without it the first copies of a step
        overlap with the update of resident state alone.
        """
        for pages in self._pages.values():
            pages.prefetch()

    def retry(self, step: Callable[[], T]) -> T:
        """Calls `step`, and once more with state paged out if a GPU runs out of memory in it.

        Where that happens the budget for resident state becomes half of what was resident.

        Args:
            step: a training step that may be repeated: it starts with zero_grad() and ends with step().

        Returns:
            What `step` returned.

        Raises:
            torch.cuda.OutOfMemoryError: no state was resident, or it was not enough.
        """
        try:
            return step()
        except torch.OutOfMemoryError:
            if not any(pages.pager.resident_bytes() for pages in self._pages.values()):
                raise
        # Out here nothing holds the frames of the step any more, and with them its activations.
        for pages in self._pages.values():
            pages.limit = pages.page_out(self.state, type(self).__name__) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return step()


def _layout_of(tensors: Mapping[str, Tensor]) -> state_dict.Layout:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def _host_copies(own: Any) -> Iterator[tuple[str, Any]]:
    for key, value in dict(own).items():
        yield key, value.to("cpu", copy=True) if isinstance(value, Tensor) else value
