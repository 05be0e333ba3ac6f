"""`python -m benchmarks quality`: what each packing costs the demo model, in right answers."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.demo_tasks import Task, draw_tasks
from benchmarks.harness.files import temporary_folder
from benchmarks.harness.machine import this_machine
from benchmarks.harness.outputs import Outputs
from mlx_llama4.cli.console import terminal
from mlx_llama4.units import human_bytes

if TYPE_CHECKING:
    from mlx_llama4.convert.recipes import Recipe

MIXED = ((2, 4), (2, 6), (3, 6), (4, 6), (4, 8))
BITS = (8, 6, 5, 4, 3, 2)


@dataclass(frozen=True)
class Measured:
    """One packing of the demo."""

    name: str
    search: bool
    nbytes: int
    bits_per_weight: float
    error: float | None  # relative, mean over its packed tensors
    right: dict[str, float]  # by kind of task, 0 … 1

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.right.values())


@terminal.reports_errors
def quality(
    each: Annotated[int, typer.Option(metavar="N", min=1, help="Questions of each kind.")] = 40,
    seed: Annotated[int, typer.Option(metavar="S", help="Another seed draws other questions.")] = 1,
    json: options.Json = None,
) -> None:
    """Convert the demo model with every packing and ask each the same questions.

    \b
    Example:
      python -m benchmarks quality --each 40
    """
    outputs = Outputs(json)
    tasks = draw_tasks(each, seed)
    found = []
    for name, recipe in _recipes():
        terminal.note(name + (" with search" if recipe.search else ""))
        found.append(_measure(name, recipe, tasks))
    _print(found, len(tasks), seed)
    entries = [vars(one) | {"accuracy": one.accuracy} for one in found]
    outputs.write_json(
        {"machine": vars(this_machine()), "questions": len(tasks), "packings": entries}
    )


def _recipes() -> "list[tuple[str, Recipe]]":
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.quantization import FIXED_MODES, Quantization

    recipes = [("float32", Recipe("float32", None)), ("bfloat16", Recipe("bfloat16", None))]
    for bits in BITS:
        packed = Recipe("bfloat16", Quantization(64, bits))
        recipes += [(f"{bits} bits", packed), (f"{bits} bits", replace(packed, search=True))]
    recipes += [(mode, Recipe("bfloat16", packing)) for mode, packing in FIXED_MODES.items()]
    for low, high in MIXED:
        packings = Quantization(64, low), Quantization(64, high)
        mixed = Recipe("bfloat16", *packings)
        name = f"mixed-{low}-{high}"
        recipes += [(name, mixed), (name, replace(mixed, search=True))]
    return recipes


def _measure(name: str, recipe: "Recipe", tasks: list[Task]) -> Measured:
    from mlx_llama4.convert.run import convert
    from mlx_llama4.demo.questions import CHECKPOINT

    with temporary_folder() as temporary:
        folder = temporary / "demo"
        report = convert(CHECKPOINT, folder, recipe)
        right = _right_answers(folder, tasks)
    parameters = sum(part.parameters for part in report.quality.parts)
    errors = report.quality.tensors.values()
    return Measured(
        name=name,
        search=recipe.search,
        nbytes=report.output_bytes,
        bits_per_weight=report.output_bytes * 8 / parameters,
        error=statistics.mean(errors) if errors else None,
        right=right,
    )


def _right_answers(folder: Path, tasks: list[Task]) -> dict[str, float]:
    from mlx_llama4.chat import Chat, ChatOptions
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import load

    model, processor = load(folder)
    options = ChatOptions(GenerationSettings(max_tokens=64, temperature=0.0))
    hits: dict[str, list[bool]] = {}
    for task in tasks:
        chat = Chat(model, processor, options)
        pictures = [processor.tile(picture) for picture in task.pictures]
        answer = "".join(chat.send(task.text, pictures))
        hits.setdefault(task.kind, []).append(answer.strip() == task.expected)
    return {kind: statistics.mean(found) for kind, found in hits.items()}


def _print(found: list[Measured], questions: int, seed: int) -> None:
    terminal.line(f"the demo model, {questions} questions, seed {seed}; {this_machine()}")
    kinds = list(found[0].right)
    rows = [("packing", "search", "bytes", "bits a weight", "error", "right", *kinds)]
    for one in found:
        rows.append(
            (
                one.name,
                "yes" if one.search else "",
                human_bytes(one.nbytes),
                f"{one.bits_per_weight:.2f}",
                "" if one.error is None else f"{one.error:.2%}",
                f"{one.accuracy:.1%}",
                *(f"{one.right[kind]:.0%}" for kind in kinds),
            )
        )
    terminal.table(rows, right=tuple(range(2, len(rows[0]))))
