"""`python -m benchmarks drafting`: answers with and without `--draft ngram`.

The model has random weights and does all its work, but which tokens it says is given, so the
answers are real ones: a text again with changes in it, or another text. So the share of accepted
drafts is what such answers allow. mlx-lm and mlx-vlm have nothing to compare with: they draft with
a second model, not from the prompt.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from benchmarks.harness import options
from benchmarks.harness.files import temporary_folder
from benchmarks.harness.machine import this_machine
from benchmarks.harness.outputs import Outputs
from benchmarks.harness.presets import Preset, check_preset, preset_folder
from benchmarks.harness.ratios import ratio_of_medians
from benchmarks.harness.report import show_ratio
from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from mlx_llama4.generation.sampler import RandomSampler
    from mlx_llama4.model.llama4 import Llama4
    from mlx_llama4.prompt.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "harness"
# The prompt is one of our files. The answers: that file, the same with names changed, another.
TEXT, OTHER = FOLDER / "ratios.py", FOLDER / "rounds.py"
CHANGES = (("median", "middle"), ("rounds", "runs"), ("seed", "start"))


@dataclass(frozen=True)
class Answered:
    """One answer."""

    rate: float  # tokens a second after the first
    drafted: int = 0  # tokens
    accepted: int = 0  # of them


@terminal.reports_errors
def drafting(
    preset: options.PresetName = Preset.tiny,
    tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of each answer.")] = 400,
    rounds: options.Rounds = 5,
    json: options.Json = None,
) -> None:
    """Answers that repeat the prompt, and one that does not, with drafts and without.

    \b
    Example:
      python -m benchmarks drafting --preset small --rounds 7
    """
    outputs = Outputs(json)
    check_preset(preset)
    terminal.import_mlx()
    from mlx_llama4.opening import load_model, open_folder

    with temporary_folder() as temporary:
        folder = preset_folder(preset, temporary)
        model, processor = load_model(folder), open_folder(folder).processor
        prompt, answers = _texts(processor.tokenizer, tokens)
        tokens = min(map(len, answers.values()))
        found: dict[str, dict[bool, list[Answered]]] = {}
        for number in range(rounds):
            for name, answer in answers.items():
                terminal.note(f"round {number + 1} of {rounds}: {name}")
                ways = found.setdefault(name, {False: [], True: []})
                for drafts in (False, True) if number % 2 else (True, False):
                    ways[drafts].append(_answer(model, prompt, answer, drafts))
    _print(found, preset, len(prompt), tokens, rounds)
    entries = {
        name: {
            "ngram" if drafts else "off": [vars(one) for one in runs]
            for drafts, runs in ways.items()
        }
        for name, ways in found.items()
    }
    outputs.write_json({"machine": vars(this_machine()), "preset": preset, "answers": entries})


def _texts(tokenizer: "Tokenizer", count: int) -> tuple[np.ndarray, dict[str, list[int]]]:
    """The prompt's ids, and `count` ids of each answer, or as many as the shortest has."""
    text = TEXT.read_text()
    changed = text
    for old, new in CHANGES:
        changed = changed.replace(old, new)
    answers = {"the text again": text, "with names changed": changed, "another": OTHER.read_text()}
    ids = {name: tokenizer.encode(answer) for name, answer in answers.items()}
    count = min(count, *map(len, ids.values()))
    return np.array(tokenizer.encode(text), np.int32), {n: one[:count] for n, one in ids.items()}


def _given(tokens: Sequence[int]) -> "RandomSampler":
    """A sampler that says these tokens, whatever the logits are, but waits for the logits."""
    import mlx.core as mx

    from mlx_llama4.generation.sampler import RandomSampler

    class Given(RandomSampler):
        def __init__(self) -> None:
            self._tokens = mx.array(list(tokens))
            self.key = mx.array(0)

        def __call__(self, logits: mx.array) -> mx.array:
            token = self._tokens[self.key] + 0 * mx.argmax(logits, axis=-1).astype(mx.int32)
            self.key = self.key + 1
            return token

    return Given()


def _answer(model: "Llama4", prompt: np.ndarray, answer: list[int], drafts: bool) -> Answered:
    from mlx_llama4.generation.drafting import NgramDrafter
    from mlx_llama4.generation.generate import Statistics, Wordless, stream_generate
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.prompt.prompt import Prompt

    found = Statistics()
    settings = GenerationSettings(
        max_tokens=len(answer),
        draft=NgramDrafter if drafts else None,
        sampler=_given(answer),
    )
    steps = stream_generate(model, Wordless(), Prompt(prompt), settings, statistics=found)
    assert [step.token for step in steps] == answer
    rate = found.decode_tokens_per_second
    assert rate is not None  # there are at least two tokens
    if found.drafts is None:
        return Answered(rate)
    return Answered(rate, found.drafts.drafted, found.drafts.accepted)


def _print(
    found: dict[str, dict[bool, list[Answered]]], preset: str, prompt: int, tokens: int, rounds: int
) -> None:
    terminal.line("answers, drafted by what followed in the prompt and not")
    terminal.table(
        [
            ("model", f"{preset}, random weights"),
            ("prompt", f"{TEXT.name} of this folder, {prompt:,} tokens"),
            ("answers", f"the tokens of a text each, up to {tokens:,}; the last is {OTHER.name}"),
            ("rounds", f"{rounds}, the ways taking turns, in one process"),
            ("machine", str(this_machine())),
        ]
    )
    terminal.line()
    rows: list[tuple[str, ...]] = [
        ("answer", "off: tokens/s", "ngram: tokens/s", "ngram / off", "right", "a pass")
    ]
    for name, ways in found.items():
        off, ngram = ([one.rate for one in ways[drafts]] for drafts in (False, True))
        one = ways[True][0]
        right = f"{one.accepted / one.drafted:.0%} of {one.drafted:,}" if one.drafted else "none"
        rows.append(
            (
                name,
                f"{statistics.median(off):.1f}",
                f"{statistics.median(ngram):.1f}",
                show_ratio(ratio_of_medians(ngram, off)),
                right,
                f"{tokens / (tokens - one.accepted):.2f} tokens",
            )
        )
    terminal.table(rows, right=(1, 2, 3, 4, 5))
