"""What the commands that run a language model begin with: where to print, which device, which model."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from qbits import runtime
from qbits.cli import language_model, report
from qbits.cli.language_model import LanguageModel


def console() -> Console:
    """Of a fixed width: narrow tables would lose digits."""
    return Console(highlight=False, width=report.WIDTH)


def usable(command: str, device: str | None) -> str:
    """`device`, by default the best. Raises ValueError if this machine cannot use it."""
    reason = runtime.cuda_unavailable_reason()
    if not reason and not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    if device is None:
        return "cpu" if reason else "cuda"
    if device != "cpu":
        if not reason and (torch.device(device).index or 0) >= (count := torch.cuda.device_count()):
            reason = f"this machine has {count} of them"
        if reason:
            raise ValueError(f"[{command}] device: got {device}, want one that can be used: {reason}")
    return device


def check_writable(command: str, option: str, folder: Path) -> None:
    """Makes `folder`. Raises OSError, now and not after minutes of work, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        want = "a folder that can be written to"
        raise OSError(f"[{command}] {option}: got {folder} ({error.strerror}), want {want}") from error


def load(console: Console, model: str | None) -> LanguageModel:
    """As language_model.load, with a word about it where there is a terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # its notes are about settings of the model, none of them the user's
    if model is not None:
        return language_model.load(model)  # Transformers shows bars of its own
    with quiet(console, f"loading {language_model.DEFAULT_MODEL}"):
        return language_model.load(None)


@contextlib.contextmanager
def quiet(console: Console, what: str) -> Iterator[None]:
    """Says what is going on where there is a terminal, in place of Transformers' bars."""
    with console.status(what), contextlib.redirect_stderr(io.StringIO()):
        yield
