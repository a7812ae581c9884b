"""Views of a QuantizedTensor that cannot stay quantized: dense, but what is written into one is kept."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._pytree import tree_leaves, tree_map

from qbits.tensor import QuantizedTensor

_VIEW_PROPERTIES = {"T", "H", "mT", "mH", "real", "imag", "data"}
_WRITERS = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__"}
_WRITERS |= {"__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}


class _Calls(threading.local):
    """The views taken by the function of torch that runs now, as (owner, dense)."""

    taken: list[tuple[QuantizedTensor, Tensor]] | None = None


_calls = _Calls()


class DenseView(Tensor):
    """A view of a QuantizedTensor, such as its transpose or a column: dense memory of its own.

    It shows the values of the time it was taken. An op that writes into it puts the result into the
    QuantizedTensor, which is quantized again as a whole, and shows what came of it.
    """

    owner: QuantizedTensor  # over the memory the view was taken of
    dense: Tensor  # all its values; the view is one of this tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(t, QuantizedTensor) for t in types):
            return NotImplemented  # it knows what to do with both
        return call(func, types, args, kwargs or {})

    def plain(self) -> Tensor:
        """The same memory as a torch.Tensor, or as a Parameter if this is one."""
        tensor = self.as_subclass(Tensor)
        return nn.Parameter(tensor.detach(), self.requires_grad) if isinstance(self, nn.Parameter) else tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return memo.setdefault(id(self), copy.deepcopy(self.plain(), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)


def take(owner: QuantizedTensor, view: Callable[[Tensor], Any]) -> Any:
    """`view` of the dense values of `owner`, as part of a call of torch."""
    dense = owner.dequantize()
    if isinstance(dense, FunctionalTensor):  # of a graph, in which a write to it would be lost: torch refuses
        torch._freeze_functional_tensor(dense.elem)  # type: ignore[attr-defined]
    if _calls.taken is not None:
        _calls.taken.append((owner.like(), dense))
    return view(dense)


def call(func: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Calls a function of torch on QuantizedTensors and views of them."""
    with torch._C.DisableTorchFunctionSubclass():
        name = getattr(func, "__name__", "")
        fact = (
            name == "__get__" and func.__self__.__name__ not in _VIEW_PROPERTIES
        )  # shape, device, grad, ...
        # What is traced or transformed is not memory that could be written back.
        if fact or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        written = _written(name, args, kwargs)
        views, targets = [], []
        if DenseView in types:
            views, targets = _views((args, kwargs)), _views(written)
            if len(types) > 1 or isinstance(func, (OpOverload, OpOverloadPacket)):
                # Kernels in Python would be handed the subclass.
                others = {id(v) for v in views} - {id(v) for v in targets}
                args, kwargs = tree_map(lambda a: a.plain() if id(a) in others else a, (args, kwargs))
        for view in targets:
            view.dense.copy_(view.owner.dequantize())
        versions = [_version(view) for view in targets]
        outer, _calls.taken = _calls.taken, []
        try:
            result = func(*args, **kwargs)
            taken = _calls.taken
        finally:
            _calls.taken = outer
        if not (taken or views):
            return result
        if targets:
            _put_back(
                [v for v, old in zip(targets, versions, strict=True) if old is None or _version(v) != old]
            )
        for owner, dense in taken:
            if any(isinstance(t, QuantizedTensor) and t.codes is owner.codes for t in written):
                owner.copy_(dense)  # an op in place that torch makes of views, such as fill_diagonal_
        sources = [*taken, *((view.owner, view.dense) for view in views)]
        return _mark(result, sources)


def _written(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    """What a function writes into: `out`, or its first argument where, as torch's do, its name says so."""
    if "out" in kwargs:
        return tree_leaves(kwargs["out"])
    name = name.partition(".")[0]  # of an overload
    if (name.endswith("_") and not name.endswith("__")) or name in _WRITERS:
        return tree_leaves(args[0] if args else next(iter(kwargs.values()), None))
    return ()


def _version(view: DenseView) -> int | None:
    """Grows with each write; None in inference mode, which does not count them."""
    return None if view.is_inference() else view._version


def _views(values: Any) -> list[DenseView]:
    return [value for value in tree_leaves(values) if type(value) is DenseView]


@torch.no_grad()
def _put_back(targets: list[DenseView]) -> None:
    """Puts what was written into views, of which several may show the same elements, into their owners."""
    written = [(view, view.data.clone()) for view in targets]
    for view, values in written:
        view.dense.copy_(view.owner.dequantize())
        view.data.copy_(values)  # `data`, since autograd need not know
        view.owner.copy_(view.dense)
    for view in targets:
        view.dense.copy_(view.owner.dequantize())


def _mark(result: Any, sources: list[tuple[QuantizedTensor, Tensor]]) -> Any:
    """`result`, with the tensors in it that lie in the memory of `sources` made DenseViews."""
    if type(result) in (list, tuple):
        return type(result)(_mark(value, sources) for value in result)
    if type(result) is not Tensor or result.layout != torch.strided:
        return result
    memory = result.untyped_storage()._cdata
    for owner, dense in sources:
        if dense.untyped_storage()._cdata == memory:
            view = result.as_subclass(DenseView)
            view.owner, view.dense = owner, dense
            return view
    return result
