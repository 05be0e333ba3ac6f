"""`mlx-llama4 demo`: convert and ask the tiny checkpoint that comes with the package."""

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.known_models import remember

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.demo.questions import Question
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.planning.admission import Experts

NEXT_STEPS = """\
Next, with real weights (Llama 4 Scout in 4 bits: 62 GB to download):
  mlx-llama4 plan
  mlx-llama4 chat --model scout"""


@terminal.reports_errors
def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Keep the converted model in this folder, to chat with it. Default: delete it.",
            show_default=False,
        ),
    ] = None,
    experts: options.ExpertPlace = options.Where.auto,
    expert_memory: options.ExpertMemory = None,
    page_cache: options.PageCache = True,
) -> None:
    """Convert the built-in tiny model and ask it about pictures. Needs no network.

    Exit code 1 if an answer is wrong.

    \b
    Examples:
      mlx-llama4 demo
      mlx-llama4 demo -o demo-8bit
      mlx-llama4 demo --experts stream
    """
    placing = options.expert_options(experts, expert_memory, page_cache)
    terminal.import_mlx()
    from mlx_llama4.chat import ChatOptions
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.run import convert
    from mlx_llama4.demo.questions import CHECKPOINT, PICTURES, QUESTIONS
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import open_folder
    from mlx_llama4.planning.admission import Task
    from mlx_llama4.quantization import Quantization
    from mlx_llama4.units import human_bytes

    with _folder(output) as folder:
        recipe = Recipe("bfloat16", Quantization(group_size=64, bits=8))
        with terminal.status("Converting the demo model"):
            report = convert(CHECKPOINT, folder, recipe)
        terminal.line(
            f"Converted a {human_bytes(report.source_bytes)} Llama 4 (3 million parameters, "
            f"trained on drawn shapes) to 8 bits: {human_bytes(report.output_bytes)}."
        )
        terminal.line(f"Pictures: {PICTURES}")
        opened = open_folder(folder)
        placement = options.place_model(opened, Task(), _half_in_memory(opened, placing))
        settings = GenerationSettings(max_tokens=256)
        chat = options.load_chat(opened, ChatOptions(settings), placement)
        wrong = sum(not _show(chat, question, PICTURES) for question in QUESTIONS)
    terminal.line()
    if wrong:
        terminal.note(f"error: {wrong} of {len(QUESTIONS)} answers are wrong; please report it")
        raise typer.Exit(1)
    terminal.line(f"All {len(QUESTIONS)} answers are right.")
    terminal.line("To chat with it about drawn shapes, names and small sums:")
    if output is not None:
        remember(output)
    else:
        terminal.line("  mlx-llama4 demo -o demo-8bit")
    terminal.line(f"  mlx-llama4 chat --model {shlex.quote(str(output or 'demo-8bit'))}")
    terminal.line(NEXT_STEPS)


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    """The folder to convert the model to: `output`, or a temporary one."""
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-demo-") as temporary:
        yield Path(temporary) / "demo-8bit"


def _half_in_memory(folder: "ModelFolder", placing: "Experts") -> "Experts":
    """Halve the memory for experts: the default would hold all of so small a model."""
    from mlx_llama4.planning.expert_weights import stored_experts
    from mlx_llama4.planning.machine import this_machine
    from mlx_llama4.planning.planner import dtype_bytes

    if placing.where != options.Where.stream or placing.memory is not None:
        return placing
    width = dtype_bytes(folder.config.dtype, this_machine())
    weights = stored_experts(folder.source.matching, folder.config, width)
    return replace(placing, memory=weights.most_memory // 2)


def _show(chat: "Chat", question: "Question", pictures: Path) -> bool:
    """Ask in a new conversation. Returns whether the answer is the expected one."""
    chat.reset()
    images = [chat.open_image(pictures / name) for name in question.pictures]
    answer = "".join(chat.send(question.context + question.text, images))
    statistics = chat.statistics
    where = ", ".join(question.pictures)
    if question.context:
        where = f"about notes of {statistics.prompt_tokens} tokens"
    terminal.line()
    terminal.line(f"  question  {question.text}" + (f"  [{where}]" if where else ""))
    terminal.line(f"  answer    {answer}")
    right = answer == question.expected
    terminal.line(f"  expected  {question.expected}  {'✓' if right else '✗'}")
    terminal.line(
        f"  speed     {statistics.prompt_tokens} tokens read at "
        f"{statistics.prefill_tokens_per_second:.0f} tokens/s, {statistics.generated_tokens} "
        f"written at {statistics.decode_tokens_per_second:.0f} tokens/s"
    )
    return right
