"""A conversation: messages, images, and the cache that carries over from turn to turn.

Knows no terminal.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.config import GenerationConfig
from mlx_llama4.errors import PromptError
from mlx_llama4.generation.generate import Statistics, Step, generate
from mlx_llama4.generation.sampler import Sampler, greedy
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.image import ImageSource, TiledImage
from mlx_llama4.prompt.processor import Processor, check_length

# What a turn of the family ends with, whatever generation_config.json says or leaves out.
END_TOKENS = ("<|eot|>", "<|eom|>", "<|end_of_text|>")


@dataclass
class ChatOptions:
    max_tokens: int = 4096
    sampler: Sampler = greedy
    system: str | None = None


def opening_messages(options: ChatOptions) -> list[dict[str, Any]]:
    """What a conversation begins with."""
    return [{"role": "system", "content": options.system}] if options.system else []


def user_message(text: str, images: Sequence[TiledImage]) -> dict[str, Any]:
    """A user's turn, its images before its text."""
    parts = [{"type": "image", "image": image} for image in images]
    content = [*parts, {"type": "text", "text": text}] if images else text
    return {"role": "user", "content": content}


class Chat:
    """`messages` holds what was said; `statistics` tells of the last answer."""

    def __init__(
        self,
        model: Llama4,
        processor: Processor,
        generation_config: GenerationConfig,
        options: ChatOptions | None = None,
    ):
        self.model = model
        self.processor = processor
        self.options = options or ChatOptions()
        special_ids = processor.tokenizer.special_ids
        self.end_tokens = frozenset(generation_config.eos_token_ids) | {
            special_ids[name] for name in END_TOKENS if name in special_ids
        }
        self._answering: Generator[Step, None, None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the options stay."""
        if self._answering is not None:
            self._answering.close()
        self.messages = opening_messages(self.options)
        self.cache = PromptCache(self.model.make_cache())
        self.statistics = Statistics()

    def open_image(self, source: ImageSource) -> TiledImage:
        """Read and tile a picture. Raises ImageError or, without a vision tower, PromptError."""
        return self.processor.tile(source)

    def send(
        self,
        text: str,
        images: Sequence[TiledImage] = (),
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[str]:
        """The answer, piece by piece as it is generated; the images come before the text.

        A caller that stops early, by closing the iterator, by an exception of its own or by
        sending something else, keeps the part that it has got in the conversation. A prompt that
        is refused leaves no trace.
        """
        if not text.strip() and not images:
            raise PromptError("the question is empty")
        if self._answering is not None:
            self._answering.close()  # two answers at once would write into one cache
        self._answering = self._answer(user_message(text, images), on_prefill)
        return _texts(self._answering)

    def _answer(
        self, message: dict[str, Any], on_prefill: Callable[[int, int], None]
    ) -> Generator[Step, None, None]:
        prompt = self.processor.encode([*self.messages, message])
        check_length(prompt, self.model.config)
        digests = [image.digest for image in prompt.images]
        if not self.cache.rewind_to_common_prefix(prompt.ids, digests):
            self.cache = PromptCache(self.model.make_cache())
        self.statistics = Statistics()
        steps = generate(
            self.model,
            prompt,
            token_bytes=self.processor.tokenizer.token_bytes,
            end_tokens=self.end_tokens,
            max_tokens=self.options.max_tokens,
            sampler=self.options.sampler,
            cache=self.cache.layers,
            statistics=self.statistics,
            on_prefill=on_prefill,
        )
        generated: list[int] = []
        texts: list[str] = []
        try:
            for step in steps:
                generated.append(step.token)
                texts.append(step.text)
                yield step
        finally:
            ids = np.concatenate([prompt.ids, np.array(generated, np.int32)])
            if not self.cache.record(ids, digests):
                self.cache = PromptCache(self.model.make_cache())
            if generated:
                self.messages += [message, self._assistant(texts, generated)]

    def _assistant(self, texts: list[str], generated: list[int]) -> dict[str, Any]:
        """The answer with its own tokens, which its text might not be tokenised to again."""
        ids = generated[:-1] if generated[-1] in self.end_tokens else generated
        # A slot for an image, which a model may well emit, would ask for one in every later turn.
        ids = [token for token in ids if token != self.model.config.image_token_id]
        return {"role": "assistant", "content": "".join(texts), "token_ids": ids}


def _texts(steps: Generator[Step, None, None]) -> Iterator[str]:
    with contextlib.closing(steps):
        for step in steps:
            if step.text:
                yield step.text
