"""Cut text and pictures into prompts for comparing models, with the positions that count."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.image import PromptImage
from mlx_llama4.prompt.picture_file import ImageSource
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.tokenizer import Tokenizer

BEGIN_OF_TEXT = "<|begin_of_text|>"
QUESTION = "Describe this image in detail."
# English has about 4.5; this reads enough even if long runs of blanks make single tokens.
CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True, eq=False)
class Window:
    """A prompt to compare models on."""

    prompt: Prompt
    first: int = 0  # the first position that counts


def text_windows(path: Path, tokenizer: Tokenizer, window: int, max_tokens: int) -> list[Window]:
    """Cut a file's first `max_tokens` tokens into windows of `window`, each with
    <|begin_of_text|> in front.

    Raises PromptError for a file that cannot be read, is not UTF-8, or has no text.
    """
    begin = tokenizer.special_id(BEGIN_OF_TEXT)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(CHARACTERS_PER_TOKEN * max_tokens)
    except OSError as failure:
        raise PromptError(f"cannot read {path}: {failure.strerror or failure}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text; convert it first, e.g. with iconv") from None
    if not text.strip():
        raise PromptError(f"{path} holds no text")
    ids = tokenizer.encode(text)[:max_tokens]
    return [
        Window(Prompt(np.array([begin, *ids[start : start + window]], np.int32)))
        for start in range(0, len(ids), window)
    ]


def image_windows(
    images: Sequence[ImageSource | PromptImage], processor: Processor
) -> list[Window]:
    """Make a prompt about each picture, up to where the answer begins. Positions after the picture
    count.

    Raises ImageError for a bad picture, PromptError if the checkpoint takes none.
    """
    windows = []
    for image in images:
        parts = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
        prompt = processor.encode([{"role": "user", "content": parts}])
        end = processor.tokenizer.special_id("<|image_end|>")
        windows.append(Window(prompt, int(np.flatnonzero(prompt.ids == end)[-1])))
    return windows
