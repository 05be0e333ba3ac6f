"""Ask the built-in model the questions of `mlx-llama4 demo`, and measure a model of the user's."""

import errno
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, NOTES, PICTURES, QUESTIONS
from mlx_llama4.errors import OutputError
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.quantization import Quantization

NEW_TOKENS = 64
REPEATED = 4  # times; the notes are some 230 tokens long


@dataclass(frozen=True)
class DemoAnswers:
    """How the built-in model answered."""

    right: int
    questions: int
    tokens_per_second: float  # while decoding; median of the answers


@dataclass(frozen=True)
class ModelSpeed:
    """How fast a model folder loads and answers."""

    variant: str
    architecture: str
    quantization: str
    nbytes: int
    load_seconds: float  # until its weights are in memory
    streamed: bool  # the experts' weights stay on the disk
    prompt_tokens: int
    prefill_tokens_per_second: float | None
    new_tokens: int
    decode_tokens_per_second: float | None
    peak_bytes: int


def ask_demo() -> DemoAnswers:
    """Convert the built-in model to 8 bits in a temporary folder, and ask it.

    Raises OSError if there is no room.
    """
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-doctor-") as temporary:
        folder = Path(temporary) / "demo-8bit"
        try:
            convert(CHECKPOINT, folder, Recipe("bfloat16", Quantization(group_size=64, bits=8)))
        except OutputError:  # its message begins with the folder's name
            raise OSError(errno.ENOSPC, "there is no room in the temporary folder") from None
        chat = Chat.open(folder, ChatOptions(GenerationSettings(max_tokens=256, temperature=0.0)))
    right, rates = 0, []
    for question in QUESTIONS:
        chat.reset()
        images = [chat.open_image(PICTURES / name) for name in question.pictures]
        answer = "".join(chat.send(question.context + question.text, images))
        right += answer == question.expected
        if rate := chat.statistics.decode_tokens_per_second:
            rates.append(rate)
    return DemoAnswers(right, len(QUESTIONS), statistics.median(rates))


def measure_model(folder: Path, chat: Chat, load_seconds: float) -> ModelSpeed:
    """Describe a loaded model and measure its speed, without naming its folder."""
    found = inspect_folder(folder)
    chat.options.settings = GenerationSettings(max_tokens=NEW_TOKENS, temperature=0.0)
    for _ in chat.send(REPEATED * NOTES + "Tell a long story about these notes."):
        pass
    measured = chat.statistics
    return ModelSpeed(
        found.variant,
        found.architecture,
        found.quantization,
        found.nbytes,
        load_seconds,
        chat.model.expert_cache is not None,
        measured.prompt_tokens,
        measured.prefill_tokens_per_second,
        measured.generated_tokens,
        measured.decode_tokens_per_second,
        measured.peak_memory_bytes,
    )
