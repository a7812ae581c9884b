"""Saves a quantized language model and, in another process, loads it and compares the logits.

`python -m qbits.cli.checkpoint FOLDER DEVICE` is that process: it exits with 0 if every bit is equal.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import qbits

WEIGHTS, PROBE = "model.safetensors", "probe.safetensors"
_UNEQUAL = 3  # exit status


def save(model: nn.Module, folder: Path) -> int:
    """Writes the state dict of `model` and its configuration to `folder`; returns the bytes of weights.

    A tensor with several names (tied weights) is written once, under the first.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    aliases = tied_names(model)
    state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items() if name not in aliases}
    save_file(state, folder / WEIGHTS)
    model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
    return (folder / WEIGHTS).stat().st_size


def load(folder: Path, config: qbits.QuantizeConfig) -> nn.Module:
    """The model `save` wrote: built from its configuration, quantized, then filled from the state dict."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(settings, dtype=settings.dtype).eval()
    qbits.quantize_(model, config, progress=False)
    result = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    wrong = [*result.unexpected_keys, *(set(result.missing_keys) - tied_names(model))]
    if wrong:
        raise ValueError(f"[checkpoint] state dict: got other keys than the model's: {', '.join(wrong[:5])}")
    return model


def tied_names(model: nn.Module) -> set[str]:
    """Every name of a parameter but its first."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return names - {name for name, _ in model.named_parameters()}


def reloads_bit_equal(model: nn.Module, ids: Tensor, folder: Path) -> bool:
    """Whether the model saved in `folder` gives the same logits of `ids`, bit for bit, in a new process.

    Raises RuntimeError with the process's message if it fails.
    """
    from safetensors.torch import save_file

    save_file({"ids": ids.cpu(), "logits": logits(model, ids)}, folder / PROBE)
    command = [sys.executable, "-m", "qbits.cli.checkpoint", str(folder), str(ids.device)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / PROBE).unlink()
    if child.returncode not in (0, _UNEQUAL):
        raise RuntimeError(f"[checkpoint] reload: the process failed:\n{child.stderr}")
    return child.returncode == 0


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """[1, tokens, vocabulary] on the CPU."""
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits.cpu().contiguous()


def main(folder: Path, device: str) -> int:
    """The other process."""
    from safetensors.torch import load_file

    probe = load_file(folder / PROBE)
    model = load(folder, qbits.QuantizeConfig(format="nf4")).to(device)
    again = logits(model, probe["ids"].to(device))
    return 0 if torch.equal(again.view(torch.uint8), probe["logits"].view(torch.uint8)) else _UNEQUAL


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
