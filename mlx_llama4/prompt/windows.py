"""Text and pictures → prompts to compare models on, and the positions of each that count."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.tokenizer import Tokenizer

BEGIN_OF_TEXT = "<|begin_of_text|>"
QUESTION = "Describe this image in detail."
# English has about 4.5; so much is read that even long runs of blanks make enough tokens.
CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True, eq=False)
class Window:
    """first: the first position that counts."""

    prompt: Prompt
    first: int = 0


def text_windows(path: Path, tokenizer: Tokenizer, window: int, max_tokens: int) -> list[Window]:
    """The file's first `max_tokens` tokens in windows of `window`, <|begin_of_text|> before each.

    Raises PromptError for a file that cannot be read, is not UTF-8, or has no text.
    """
    begin = tokenizer.special_id(BEGIN_OF_TEXT)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(CHARACTERS_PER_TOKEN * max_tokens)
    except OSError as failure:
        raise PromptError(f"cannot read {path}: {failure.strerror or failure}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text; convert it first, with iconv say") from None
    if not text.strip():
        raise PromptError(f"{path} holds no text")
    ids = tokenizer.encode(text)[:max_tokens]
    return [
        Window(Prompt(np.array([begin, *ids[start : start + window]], np.int32)))
        for start in range(0, len(ids), window)
    ]


def image_windows(paths: Sequence[Path], processor: Processor) -> list[Window]:
    """For each picture the prompt that asks about it, up to where the answer begins. What comes
    after the picture counts.

    Raises ImageError for a bad picture, PromptError if the checkpoint takes none.
    """
    windows = []
    for path in paths:
        parts = [{"type": "image", "image": path}, {"type": "text", "text": QUESTION}]
        prompt = processor.encode([{"role": "user", "content": parts}])
        end = processor.tokenizer.special_id("<|image_end|>")
        windows.append(Window(prompt, int(np.flatnonzero(prompt.ids == end)[-1])))
    return windows
