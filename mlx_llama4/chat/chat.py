"""A conversation: messages, images, and the cache that carries over from turn to turn.

Knows no terminal.
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.chat.chat_file import ConversationState, load_chat, save_chat
from mlx_llama4.chat.conversation import (
    before,
    opening_messages,
    questions,
    with_document,
    with_system,
)
from mlx_llama4.chat.fitting import fit_messages, room_behind
from mlx_llama4.chat.loading import load_for_chat
from mlx_llama4.chat.options import ChatOptions
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.errors import PromptError
from mlx_llama4.generation.generate import Statistics, Step, room, stream_generate
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import ignore_progress, prefill
from mlx_llama4.generation.reuse import feeding
from mlx_llama4.generation.sampler import Sampler
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.generation.wired import wired_memory
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import ModelFolder, OnLoad, ignore_load
from mlx_llama4.planning.admission import Experts
from mlx_llama4.planning.placement import Where
from mlx_llama4.prompt.answers import answer_message, reply_of
from mlx_llama4.prompt.image import PromptImage
from mlx_llama4.prompt.messages import (
    Message,
    document_parts,
    joined_texts,
    user_message,
    with_text,
)
from mlx_llama4.prompt.picture_file import ImageSource
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.replies import Reply

OnProgress = Callable[[int, int], None]


class Chat:
    """A conversation: `messages` holds what was said, `statistics` describes the last answer."""

    def __init__(
        self,
        model: Llama4,
        processor: Processor,
        options: ChatOptions | None = None,
        folder: ModelFolder | None = None,
    ):
        """folder: the model's folder, which only `save` and `load` need."""
        self.model = model
        self.processor = processor
        self.options = options or ChatOptions()
        self.folder = folder
        self.cache = PromptCache(model.make_cache(self.options.kv_quantization))
        self.prefixes = PrefixStore(
            model.config.text.attention_chunk_size, self.options.prefix_bytes
        )
        self.features = ImageFeatureCache()
        # Parts that one user message begins with: the next message, if none has them yet.
        self.document: list[dict[str, Any]] = []
        self._answering: Generator[Step, None, None] | None = None
        self._drawing: tuple[GenerationSettings, Sampler] | None = None
        self.reset()

    @classmethod
    def open(
        cls,
        folder: str | Path | ModelFolder,
        options: ChatOptions | None = None,
        *,
        experts: Where = "auto",
        expert_memory: int | None = None,
        page_cache: bool = True,
        force: bool = False,
        on_load: OnLoad = ignore_load,
    ) -> "Chat":
        """Load the model of an MLX folder: a path, or OWNER/NAME on the Hugging Face hub.

        The conversation and the store of earlier prompts may grow as far as this machine's memory
        allows. experts, expert_memory, page_cache, force: as for `load`; with `force` the model's
        context is the only limit. Raises what `load` raises.
        """
        wanted = Experts(experts, expert_memory, page_cache)
        model, folder, options = load_for_chat(folder, options, wanted, force, on_load)
        return cls(model, folder.processor, options, folder)

    def __repr__(self) -> str:
        said = len(questions(self.messages))
        return f"Chat({self.name!r}, {said} question{'s' * (said != 1)})"

    @property
    def name(self) -> str:
        """The model's name, for display."""
        return "model" if self.folder is None else self.folder.path.resolve().name

    @property
    def identity(self) -> Identity | None:
        """The identity of the model's keys and values; None if its folder is unknown."""
        return None if self.folder is None else self.folder.identity

    def reset(self) -> None:
        """Forget the conversation; the options and a document that was read stay."""
        self.stop()
        self.messages = opening_messages(self.options.system)
        self.statistics = Statistics()

    def open_image(self, source: ImageSource | PromptImage) -> PromptImage:
        """Read and tile a picture. Raises ImageError or, without a vision tower, PromptError."""
        return self.processor.tile(source)

    @property
    def settings(self) -> GenerationSettings:
        """The options' settings, with the model's own defaults where those are None."""
        return self.options.settings.resolved(self.processor.defaults)

    @property
    def context(self) -> int:
        """How many tokens of prompt and answer the model and this machine's memory allow."""
        most = self.model.config.text.max_position_embeddings
        return most if self.options.max_context is None else min(most, self.options.max_context)

    @property
    def reply(self) -> Reply:
        """The last answer: its text and its tool calls. Raises PromptError if there is none."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant":
            raise PromptError("nothing has been answered yet")
        return reply_of(last, self.processor, self.options.tools)

    def set_system(self, system: str | None) -> None:
        """Replace or remove the system prompt; the next prompt is then read from the start."""
        self.stop()
        self.options.system = system
        self.messages = with_system(self.messages, system)

    def set_settings(self, settings: GenerationSettings) -> None:
        """Use these settings from the next answer on; random draws restart at the seed.

        Raises InputError for values out of range.
        """
        settings.check()
        self.options.settings, self._drawing = settings, None

    def read(
        self,
        text: str,
        images: Sequence[ImageSource | PromptImage] = (),
        on_prefill: OnProgress = ignore_progress,
    ) -> int:
        """Read a document, pictures before text. The next question will be about it, and after a
        `reset` the next one again. Returns how many tokens the cache then holds.

        If reading is interrupted, for example by an exception in `on_prefill`, the cache keeps what
        was read so far: reading the same document again continues from there.
        """
        if not text.strip() and not images:
            raise PromptError("the document is empty")
        self.stop()
        parts = document_parts(text, [self.open_image(image) for image in images])
        prompt = self.open_prompt(parts)
        room_behind(prompt, self.model.config, self.context)
        known = (self.model.config, self.cache, self.prefixes, self.features)
        with wired_memory(), feeding(prompt, *known, len(prompt.ids)):
            prefill(
                self.model,
                prompt,
                self.cache.layers,
                span=self.options.span,
                features=self.features,
                on_progress=on_prefill,
            )
            mx.eval(self.cache.arrays)
        self.prefixes.keep_tail(self.cache)
        self.document = parts
        return len(prompt.ids)

    def send(
        self,
        text: str,
        images: Sequence[ImageSource | PromptImage] = (),
        on_prefill: OnProgress = ignore_progress,
        on_picture: OnProgress = ignore_progress,
    ) -> Iterator[str]:
        """Ask, and yield the answer piece by piece; the images come before the text.

        on_prefill is called with (tokens read, tokens in all) after each span but the last,
        on_picture with (pictures encoded, pictures to encode) before each picture.

        If the caller stops early (closes the iterator, raises, or sends something else), the part
        of the answer received so far stays in the conversation. A refused prompt leaves no trace.
        """
        if not text.strip() and not images:
            raise PromptError("the question is empty")
        self.stop()
        message = user_message(text, [self.open_image(image) for image in images])
        if self.is_document_pending:
            message = with_document(message, self.document)
        return self._say([*self.messages, message], on_prefill, on_picture)

    def retry(
        self,
        text: str | None = None,
        on_prefill: OnProgress = ignore_progress,
        on_picture: OnProgress = ignore_progress,
    ) -> Iterator[str]:
        """Answer the last question again, or `text` in its place; its pictures stay.

        The old answer is dropped once the new one begins.
        """
        self.stop()
        history = before(self.messages, 1)
        message = self.messages[len(history)]
        if text is not None:
            message = with_text(message, text)
        return self._say([*history, message], on_prefill, on_picture)

    def give_results(
        self, results: Sequence[str], on_prefill: OnProgress = ignore_progress
    ) -> Iterator[str]:
        """Continue after an answer that calls tools, given each call's result in order."""
        self.stop()
        if len(results) != (calls := len(self.reply.calls)):
            raise PromptError(f"{len(results)} results are given for {calls} calls")
        new = [{"role": "ipython", "content": result} for result in results]
        return self._say([*self.messages, *new], on_prefill, ignore_progress)

    def rewind(self, turns: int = 1) -> None:
        """Forget the last `turns` questions and answers. Raises PromptError if there are fewer."""
        self.stop()
        self.messages = before(self.messages, turns)

    def fork(self) -> "Chat":
        """Return a copy of this conversation that continues independently.

        The two share keys and values until one of them continues; it then gets its own copy.
        """
        self.stop()
        forked = copy.copy(self)
        forked.options = dataclasses.replace(self.options)
        forked.messages = list(self.messages)
        forked.cache = self.cache.copy()
        forked.statistics = Statistics()
        return forked

    @property
    def is_document_pending(self) -> bool:
        """Does the next question begin with the document?"""
        return self._state.is_document_pending

    @property
    def _state(self) -> ConversationState:
        options = self.options
        return ConversationState(
            self.messages, self.document, self.cache, self.prefixes, self.features, options.system,
            options.kv_quantization,
        )  # fmt: skip

    def save(self, path: str | Path, small: bool = False) -> int:
        """Write conversation and cache to a file that `load` reads. Returns its size in bytes.

        small: leave out what can be recomputed from less than a chunk of tokens. Raises OutputError
        or RunError; an existing file is then left untouched.
        """
        self.stop()
        return save_chat(
            Path(path), self._state, self.model, self.identity, self.open_prompt, small
        )

    def load(self, path: str | Path) -> None:
        """Continue from a file that `save` wrote.

        Takes over the file's system prompt, and its KV quantization if the options have none.
        Raises CheckpointError if the file is damaged, belongs to another model or tokenizer, or is
        quantized differently from what the options say.
        """
        self.stop()
        state = load_chat(Path(path), self._state, self.model, self.identity)
        self.messages, self.document = state.messages, state.document
        self.cache, self.prefixes = state.cache, state.prefixes
        self.options.system, self.options.kv_quantization = state.system, state.quantization
        self.statistics = Statistics()

    def open_prompt(self, document: list[dict[str, Any]]) -> Prompt:
        """Encode the conversation and a document that the next question will be about."""
        message = {"role": "user", "content": document}
        messages = joined_texts([*self.messages, message])
        return self.processor.encode_open(messages, self.options.tools)

    def stop(self) -> None:
        """End a running answer, since two at once would write into the same cache."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None

    def _say(
        self,
        messages: list[Message],
        on_prefill: OnProgress,
        on_picture: OnProgress,
    ) -> Iterator[str]:
        self._answering = self._answer(messages, on_prefill, on_picture)
        return _texts(self._answering)

    def _answer(
        self,
        messages: list[Message],
        on_prefill: OnProgress,
        on_picture: OnProgress,
    ) -> Generator[Step, None, None]:
        asked_at = time.perf_counter()
        said, prompt = self._fitting(messages)
        settings = self.settings
        behind = room_behind(prompt, self.model.config, self.context)
        max_tokens = min(settings.max_tokens, behind)
        settings = dataclasses.replace(settings, max_tokens=max_tokens, sampler=self._sampler())
        self.statistics = Statistics()
        generated: list[int] = []
        texts: list[str] = []
        known = (self.model.config, self.cache, self.prefixes, self.features)
        with feeding(prompt, *known, room(prompt, max_tokens), generated, on_picture):
            try:
                for step in stream_generate(
                    self.model,
                    self.processor,
                    prompt,
                    settings,
                    cache=self.cache.layers,
                    features=self.features,
                    prefill_step=self.options.span,
                    statistics=self.statistics,
                    on_prefill=on_prefill,
                ):
                    if not generated:  # count tokenising and fitting the caches too
                        self.statistics.time_to_first_token = time.perf_counter() - asked_at
                    generated.append(step.token)
                    texts.append(step.text)
                    yield step
            finally:
                if generated:
                    text, tools = "".join(texts), self.options.tools
                    slot = self.model.config.image_token_id
                    answer = answer_message(text, generated, self.processor, tools, slot)
                    self.messages = [*said, answer]

    def _sampler(self) -> Sampler:
        """Return one sampler for all answers, so that draws continue from one to the next.

        Settings that change how tokens are drawn get a new one.
        """
        settings = self.settings
        if self._drawing is None or not settings.draws_like(self._drawing[0]):
            self._drawing = settings, settings.make_sampler()
        return self._drawing[1]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens these messages take."""
        return len(self._encode(messages, False).ids) if messages else 0

    def _encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        tools = self.options.tools
        return self.processor.encode(joined_texts(messages), add_generation_prompt, tools)

    def _fitting(self, messages: list[Message]) -> tuple[list[Message], Prompt]:
        """Return the messages and their prompt, without the oldest questions if they must go."""
        told, tokens = self.options.on_dropped, self.options.settings.max_tokens
        if told is None:
            return messages, self._encode(messages)
        fitted = fit_messages(messages, self.document, self._encode, self.context, tokens)
        if fitted.dropped and len(fitted.prompt.ids) < self.context:
            told(fitted.dropped)
        return fitted.messages, fitted.prompt


def _texts(steps: Generator[Step, None, None]) -> Iterator[str]:
    with contextlib.closing(steps):
        for step in steps:
            if step.text:
                yield step.text
