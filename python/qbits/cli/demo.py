"""`qbits demo`: a real language model in every format, with what each costs and gives."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

from qbits.cli import checkpoint, language_model, report, setup
from qbits.cli.evaluate import decode, perplexity, windows
from qbits.cli.footprint import Footprint, footprint, footprints, model_config
from qbits.cli.language_model import LanguageModel
from qbits.cli.variants import Variant, cast

CONTEXT = 512
SAVED = "nf4"


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    format: str
    bytes: Footprint
    perplexity: float
    tokens_per_second: float
    text: str


def run(
    model: str | None, chosen: list[Variant], count: int, tokens: int, output: Path | None, device: str | None
) -> int:
    """The whole demo; returns the exit status: 0 if the saved model came back bit for bit."""
    device = setup.usable("demo", device)
    if output is not None:
        setup.check_writable("demo", "output", output)
    console = setup.console()
    loaded = setup.load(console, model)
    positions = loaded.positions()
    if (prompt := loaded.prompt().shape[1]) + tokens > positions:
        want = (
            f"at most {positions - prompt}: the model has {positions} positions, the prompt {prompt} tokens"
        )
        raise ValueError(f"[demo] tokens: got {tokens}, want {want}")
    ids = windows(loaded.encode(language_model.text()), count, int(min(CONTEXT, positions))).to(device)
    loaded.model.to(device)
    report.print_header(console, loaded.name, loaded.model.num_parameters(), ids, device, language_model.TEXT)
    results, saved = [], None
    with tqdm(total=len(chosen) * len(ids), unit="window", disable=None, leave=False) as bar:
        for variant, variant_model in _models(loaded.model, chosen):
            bar.set_description(variant.name)
            results.append(_measure(variant.name, variant_model, loaded, ids, tokens, bar.update))
            if variant.name == SAVED:
                saved = variant_model
    report.print_table(console, results)
    report.print_texts(console, results)
    report.print_caveat(console, results, default_model=model is None)
    equal = saved is None or _reload(console, saved, loaded, output)
    if output is not None:
        (output / "results.json").write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    return 0 if equal else 1


def run_footprint(name: str, chosen: list[Variant]) -> int:
    """The bytes of the model called `name` in each format."""
    console = setup.console()
    with setup.quiet(console, f"building {name} with random weights"):
        counted = footprints(model_config(name), chosen)
    report.print_footprints(console, name, counted)
    return 0


def _models(dense: nn.Module, chosen: list[Variant]) -> Iterator[tuple[Variant, nn.Module]]:
    """The model as each row wants it. The dense float32 one is converted once to each other dtype."""
    converted: dict[torch.dtype, nn.Module] = {torch.float32: dense}
    for variant in chosen:
        if variant.dtype not in converted:
            converted[variant.dtype] = cast(dense, variant.dtype)
        yield variant, variant.apply(converted[variant.dtype])


def _measure(
    name: str,
    model: nn.Module,
    loaded: LanguageModel,
    ids: Tensor,
    tokens: int,
    step: Callable[[], object],
) -> Result:
    decoded = decode(model, loaded.prompt().to(ids.device), tokens)
    # Activations in float32, so that perplexity shows what the stored weights lost and nothing else.
    in_float32 = model if name == "fp32" else cast(model, torch.float32)
    return Result(
        format=name,
        bytes=footprint(model),
        perplexity=perplexity(in_float32, ids, step),
        tokens_per_second=decoded.tokens_per_second,
        text=loaded.text(decoded.tokens),
    )


def _reload(console: Console, model: nn.Module, loaded: LanguageModel, output: Path | None) -> bool:
    with contextlib.ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbits-demo-")))
        with setup.quiet(console, "saving the nf4 model and loading it in a new process"):
            size = checkpoint.save(model, folder)
            ids = loaded.prompt().to(next(model.parameters()).device)
            equal = checkpoint.reloads_bit_equal(model, ids, folder)
            if output is not None:
                loaded.tokenizer.save_pretrained(output)
        report.print_reload(console, size, ids.shape[1], equal, output)
    return equal
