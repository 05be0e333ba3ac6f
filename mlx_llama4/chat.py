"""A conversation: messages, images, and the cache that carries over from turn to turn.

Knows no terminal.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.config import GenerationConfig, load_generation_config
from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.generation.adjustments import Adjustment
from mlx_llama4.generation.generate import Statistics, Step, generate, room
from mlx_llama4.generation.grammar import Grammar
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import PREFILL_SPAN, ignore_progress, prefill
from mlx_llama4.generation.sampler import Sampler, greedy
from mlx_llama4.identity import Identity, identify
from mlx_llama4.load import load
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.prompt.image import ImageSource, PromptImage
from mlx_llama4.prompt.messages import (
    Message,
    document_parts,
    image_parts,
    joined_texts,
    user_message,
    with_text,
)
from mlx_llama4.prompt.processor import Processor, Prompt, check_length, place_images
from mlx_llama4.quantization import KVQuantization

# What a turn of the family ends with, whatever generation_config.json says or leaves out.
END_TOKENS = ("<|eot|>", "<|eom|>", "<|end_of_text|>")
PREFIX_BYTES = 2 * 10**9

OnPrefill = Callable[[int, int], None]


@dataclass
class ChatOptions:
    """kv_quantization: of global layers' keys and values; fixed once the Chat is made.
    prefix_bytes: of earlier prompts' beginnings, kept for later ones; fixed too. max_context:
    tokens of prompt and answer that there is memory for; None asks the model alone. `stop` and what
    follows are as `generate` takes them.
    """

    max_tokens: int = 4096
    sampler: Sampler = greedy
    system: str | None = None
    prefill_step: int = PREFILL_SPAN
    kv_quantization: KVQuantization | None = None
    prefix_bytes: int = PREFIX_BYTES
    max_context: int | None = None
    stop: tuple[str, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None


def opening_messages(options: ChatOptions) -> list[Message]:
    """What a conversation begins with."""
    return [{"role": "system", "content": options.system}] if options.system else []


def document_prompt(
    processor: Processor, options: ChatOptions, text: str, images: Sequence[PromptImage]
) -> Prompt:
    """What a conversation that begins with a document begins with."""
    message = {"role": "user", "content": document_parts(text, images)}
    return processor.encode_open([*opening_messages(options), message])


class Chat:
    """`messages` holds what was said; `statistics` tells of the last answer."""

    def __init__(
        self,
        model: Llama4,
        processor: Processor,
        generation_config: GenerationConfig,
        options: ChatOptions | None = None,
        identity: Identity | None = None,
    ):
        """identity: of the model's folder; only `save` and `load` need it."""
        self.model = model
        self.processor = processor
        self.options = options or ChatOptions()
        self.identity = identity
        special_ids = processor.tokenizer.special_ids
        self.end_tokens = frozenset(generation_config.eos_token_ids) | {
            special_ids[name] for name in END_TOKENS if name in special_ids
        }
        self.cache = PromptCache(model.make_cache(self.options.kv_quantization))
        self.prefixes = PrefixStore(
            model.config.text.attention_chunk_size, self.options.prefix_bytes
        )
        self.features = ImageFeatureCache()
        self.document: list[dict[str, Any]] = []  # parts that a user's message begins with
        self._document_turn: int | None = None  # that message's index; None: the next one
        self._answering: Generator[Step, None, None] | None = None
        self.reset()

    @classmethod
    def open(
        cls,
        folder: Path,
        options: ChatOptions | None = None,
        streaming: ExpertStreaming | None = None,
    ) -> "Chat":
        """With the model of an MLX folder. Raises what `load` raises."""
        model, processor = load(folder, streaming=streaming)
        generation_config = load_generation_config(folder)
        return cls(model, processor, generation_config, options, identify(folder))

    def reset(self) -> None:
        """Forget the conversation; the options stay, and a document that was read."""
        self._stop()
        self.messages = opening_messages(self.options)
        self._document_turn = None
        self.statistics = Statistics()

    def open_image(self, source: ImageSource) -> PromptImage:
        """Read and tile a picture. Raises ImageError or, without a vision tower, PromptError."""
        return self.processor.tile(source)

    def read(
        self, text: str, images: Sequence[PromptImage] = (), on_prefill: OnPrefill = ignore_progress
    ) -> int:
        """Take in a document, pictures before text: the next question will be about it, and after
        a `reset` the next again. Returns the tokens that the cache then holds.

        An interruption, by an exception of `on_prefill` say, keeps what was read so far in the
        cache: reading the same again goes on from there.
        """
        if not text.strip() and not images:
            raise PromptError("the document is empty")
        self._stop()
        parts = document_parts(text, images)
        prompt = self._open_prompt(parts)
        self._check_length(prompt)
        with self._feeding(prompt, len(prompt.ids)):
            prefill(
                self.model,
                prompt,
                self.cache.layers,
                span=self.options.prefill_step,
                features=self.features,
                on_progress=on_prefill,
            )
            mx.eval(self.cache.arrays)
        self.prefixes.keep_tail(self.cache)
        self.document, self._document_turn = parts, None
        return len(prompt.ids)

    def send(
        self, text: str, images: Sequence[PromptImage] = (), on_prefill: OnPrefill = ignore_progress
    ) -> Iterator[str]:
        """The answer, piece by piece as it is generated; the images come before the text.

        A caller that stops early, by closing the iterator, by an exception of its own or by
        sending something else, keeps the part that it has got in the conversation. A prompt that
        is refused leaves no trace.
        """
        if not text.strip() and not images:
            raise PromptError("the question is empty")
        self._stop()
        message = user_message(text, images)
        if self.document and self._document_turn is None:
            content = message["content"]
            said = [{"type": "text", "text": content}] if isinstance(content, str) else content
            message["content"] = [*self.document, *said]
        return self._say(self.messages, message, on_prefill)

    def retry(
        self, text: str | None = None, on_prefill: OnPrefill = ignore_progress
    ) -> Iterator[str]:
        """Answer the last question anew, or `text` in its place; its pictures stay.

        The former answer is gone once the new one begins.
        """
        self._stop()
        history = self._before(1)
        message = self.messages[len(history)]
        if text is not None:
            message = with_text(message, text)
        return self._say(history, message, on_prefill)

    def rewind(self, turns: int = 1) -> None:
        """Forget the last questions and their answers. Raises PromptError if there are fewer."""
        self._stop()
        self.messages = self._before(turns)
        if self._document_turn is not None and self._document_turn >= len(self.messages):
            self._document_turn = None

    def fork(self) -> "Chat":
        """A conversation that begins with the same and goes its own way.

        Keys and values are shared until one of the two goes on, which then has its own copy.
        """
        self._stop()
        forked = copy.copy(self)
        forked.options = dataclasses.replace(self.options)
        forked.messages = list(self.messages)
        forked.cache = self.cache.copy()
        forked.statistics = Statistics()
        return forked

    def save(self, path: Path, small: bool = False) -> int:
        """Write conversation and cache to a file that `load` reads. Returns its bytes.

        small: without what can be computed anew from less than a chunk of tokens. Raises
        OutputError or RunError; what was there before is then untouched.
        """
        self._stop()
        # An interruption may have left layers and tokens out of step.
        held = self.cache.rewind(len(self.cache.ids))
        if not (held or self.document or self.messages):
            raise PromptError("nothing has been read or said yet that could be saved")
        cache = self.cache
        if self.document and self._document_turn is None:
            # What came after the document was forgotten.
            cache, prompt = cache.copy(), self._open_prompt(self.document)
            images = place_images(prompt, self.model.config)
            self.prefixes.fit(cache, np.append(prompt.ids, 0), images)
        return save_prompt_file(
            path,
            cache,
            self._identity(),
            conversation={
                "messages": self.messages,
                "document": self.document,
                "document_turn": self._document_turn,
            },
            pictures=[
                part["image"] for part in image_parts([*self.messages, {"content": self.document}])
            ],
            features_of=self._known_features,
            small=small,
        )

    def load(self, path: Path) -> None:
        """Go on from a file that `save` wrote; its system prompt is taken over, and its packing if
        the options have none.

        Raises CheckpointError if it is damaged or belongs to another model or tokenizer, or
        holds keys and values packed otherwise than the options say.
        """
        self._stop()
        file = PromptFile(path)
        file.check(self._identity(), self.options.kv_quantization)
        quantization = self.options.kv_quantization or file.quantization
        dtype = self.model.language_model.model.norm.weight.dtype
        loaded = file.load(self.model.make_cache(quantization), dtype)
        try:
            said = [loaded.conversation[key] for key in ("messages", "document", "document_turn")]
        except (KeyError, TypeError):
            raise CheckpointError(f"{path} is damaged; make it again") from None
        self.messages, self.document, self._document_turn = said
        opening = (m["content"] for m in self.messages[:1] if m["role"] == "system")
        self.options.system = next(opening, None)
        if quantization != self.options.kv_quantization:
            # A fork may have the former store too, and go on with keys and values as they were.
            self.prefixes = PrefixStore(self.prefixes.chunk_size, self.options.prefix_bytes)
        self.options.kv_quantization = quantization
        self.cache = loaded.cache
        for digest, features in loaded.features.items():
            self.features.put(digest, features)
        if self.document and self._document_turn is None:  # the cache ends where the document does
            self.prefixes.keep_tail(self.cache)
        self.statistics = Statistics()

    def _open_prompt(self, document: list[dict[str, Any]]) -> Prompt:
        """What was said, and a document that the next question will be about."""
        message = {"role": "user", "content": document}
        return self.processor.encode_open(joined_texts([*self.messages, message]))

    def _known_features(self, image: PromptImage) -> mx.array | None:
        """Encoded anew if they were dropped and the pixels are at hand."""
        with contextlib.suppress(PromptError):
            return self.features.get(self.model, image)
        return None

    def _check_length(self, prompt: Prompt) -> int:
        """Tokens that there is room for behind the prompt. Raises PromptError if none."""
        check_length(prompt, self.model.config)
        context = self.model.config.text.max_position_embeddings
        if self.options.max_context is not None and self.options.max_context < context:
            context = self.options.max_context
            if len(prompt.ids) >= context:
                raise PromptError(
                    f"the prompt has {len(prompt.ids):,} tokens; beside the model this machine's "
                    f"memory holds {context:,}, answer included; pack them with --kv-bits, shorten "
                    "it or start a new conversation; --force tries anyway"
                )
        return context - len(prompt.ids)

    def _identity(self) -> Identity:
        if self.identity is None:
            raise PromptError("this Chat does not know its folder; make it with Chat.open(folder)")
        return self.identity

    def _stop(self) -> None:
        """End an answer under way: two at once would write into one cache."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None

    def _before(self, turns: int) -> list[Message]:
        """The messages before the last so many of the user's."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise PromptError("nothing has been asked yet")
        if not 1 <= turns <= len(asked):
            raise PromptError(f"cannot go back {turns} questions; {len(asked)} were asked")
        return self.messages[: asked[-turns]]

    def _say(
        self, history: list[Message], message: Message, on_prefill: OnPrefill
    ) -> Iterator[str]:
        self._answering = self._answer(history, message, on_prefill)
        return _texts(self._answering)

    def _answer(
        self, history: list[Message], message: Message, on_prefill: OnPrefill
    ) -> Generator[Step, None, None]:
        asked_at = time.perf_counter()
        prompt = self.processor.encode(joined_texts([*history, message]))
        max_tokens = min(self.options.max_tokens, self._check_length(prompt))
        self.statistics = Statistics()
        generated: list[int] = []
        texts: list[str] = []
        with self._feeding(prompt, room(prompt, max_tokens), generated):
            try:
                for step in generate(
                    self.model,
                    prompt,
                    token_bytes=self.processor.tokenizer.token_bytes,
                    end_tokens=self.end_tokens,
                    max_tokens=max_tokens,
                    sampler=self.options.sampler,
                    adjustments=self.options.adjustments,
                    grammar=self.options.grammar,
                    stop=self.options.stop,
                    logprobs=self.options.logprobs,
                    cache=self.cache.layers,
                    features=self.features,
                    prefill_step=self.options.prefill_step,
                    statistics=self.statistics,
                    on_prefill=on_prefill,
                ):
                    if not generated:  # with what made ids of text, and caches fit for them
                        self.statistics.time_to_first_token = time.perf_counter() - asked_at
                    generated.append(step.token)
                    texts.append(step.text)
                    yield step
            finally:
                if generated:
                    self._keep(history, message, self._assistant(texts, generated))

    def _keep(self, history: list[Message], message: Message, answer: Message) -> None:
        begins = message["content"][: len(self.document)] == self.document
        if self.document and self._document_turn is None and begins:
            self._document_turn = len(history)
        self.messages = [*history, message, answer]

    @contextlib.contextmanager
    def _feeding(
        self, prompt: Prompt, tokens: int, generated: Sequence[int] = ()
    ) -> Iterator[None]:
        """Have the cache hold as much as is known of the prompt's beginning, with room for
        `tokens`; then, however it ends, note how much of the prompt and what was generated it
        has come to hold.
        """
        images = place_images(prompt, self.model.config)
        held = self.prefixes.reach(self.cache, prompt.ids, images)
        # Before the cache is cut, which might not be fed again without the pictures either.
        self.features.check(image.image for image in images if image.stop > held)
        self.cache.reserve(tokens)
        self.prefixes.fit(self.cache, prompt.ids, images)
        try:
            yield
        finally:
            ids = np.concatenate([prompt.ids, np.array(generated, np.int32)])
            self.cache.record(ids, images)

    def _assistant(self, texts: list[str], generated: list[int]) -> Message:
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
