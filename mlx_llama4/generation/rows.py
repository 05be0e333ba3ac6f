"""A prompt's request, and the row of a batch that answers it."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.errors import InputError, Llama4Error
from mlx_llama4.generation.choice import Choice, Chooser, wait_for
from mlx_llama4.generation.generate import Statistics, Step, StepWriter, TokenText, room
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import ignore_progress, prefill_spans
from mlx_llama4.generation.settings import DEFAULTS, GenerationSettings
from mlx_llama4.generation.stop import StopStrings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt, check_length


@dataclass(eq=False)
class Request:
    """A prompt and its generation settings, as for `stream_generate`; `draft` is not supported."""

    prompt: Prompt
    # Requests must not share a `sampler` that draws at random.
    settings: GenerationSettings = DEFAULTS
    # Requests must not share a cache. It can be used afterwards: `offset` counts the tokens it
    # holds. It may lack the last token yielded; after `cancel`, or if the batch was closed early,
    # it may hold one that was never yielded.
    cache: Sequence[KVCache] | None = None
    # Of this row alone, timed from the start of its prefill. It has no figures for experts.
    statistics: Statistics = field(default_factory=Statistics)
    on_prefill: Callable[[int, int], None] = ignore_progress
    is_cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """End this request: no further step of it is yielded. Any thread may call this.

        A prompt that is being read is abandoned within `prefill_step` tokens.
        """
        self.is_cancelled = True


class CancelledError(Exception):
    """Raised when a request is cancelled before its prompt has been read."""


class Row:
    """A request in a batch.

    It waits, then reads its prompt (`begin`, then `read_on` until that returns True). Then it has
    `logits`: a token is chosen and taken from them, and the batch computes the next ones.
    """

    cache: Sequence[KVCache]
    logits: mx.array  # [1, vocabulary]
    choice: Choice

    def __init__(self, number: int, request: Request):
        self.number = number
        self.request = request
        self.left = request.settings.max_tokens  # tokens that may still be generated
        self.has_ended = False
        self._spans: Generator[tuple[int, int], None, mx.array] | None = None

    @property
    def goes_on(self) -> bool:
        return not self.has_ended and not self.request.is_cancelled

    @property
    def has_begun(self) -> bool:
        return self._spans is not None

    def begin(
        self,
        model: Llama4,
        processor: TokenText,
        features: ImageFeatureCache,
        prefill_step: int,
    ) -> None:
        """Check the request and set the row up, without reading the prompt yet.

        Raises InputError if the request is invalid, CancelledError if it was cancelled.
        """
        request, prompt = self.request, self.request.prompt
        self._check_wanted()
        check_length(prompt, model.config)
        if request.cache is not None and request.cache[0].offset >= len(prompt.ids):
            raise InputError(
                f"the cache holds {request.cache[0].offset} tokens, the prompt has only "
                f"{len(prompt.ids)}"
            )
        settings = request.settings.resolved(processor.defaults)
        settings.check()
        if settings.draft is not None:
            raise InputError("rows of a batch are decoded without drafts; leave out draft")
        room_left = model.config.text.max_position_embeddings - len(prompt.ids)
        self.left = min(settings.max_tokens, room_left)
        self._writer = StepWriter(processor, StopStrings(settings.stop), self.left)
        self._matcher = None if settings.grammar is None else settings.grammar.start()
        self._choose = Chooser(
            settings.make_sampler(), settings.make_adjustments(), settings.logprobs or 0, prompt.ids
        )
        self._begun_at, self._prefill_seconds = time.perf_counter(), 0.0
        self.cache = model.make_cache() if request.cache is None else request.cache
        request.statistics.begin(model, prompt, cached=self.cache[0].offset)
        for layer in self.cache:
            layer.reserve(room(prompt, self.left))
        self._spans = prefill_spans(model, prompt, self.cache, span=prefill_step, features=features)

    def read_on(self) -> bool:
        """Read a span of the prompt. Returns whether it was the last.

        Raises InputError for a picture that cannot be read, CancelledError if the request was
        cancelled, RunError if experts cannot be read.
        """
        assert self._spans is not None
        started_at = time.perf_counter()
        progress = None
        try:
            progress = next(self._spans)
        except StopIteration as end:
            self.logits = end.value
            mx.eval(self.logits, [array for layer in self.cache for array in layer.arrays])
        self._prefill_seconds += time.perf_counter() - started_at
        if progress is not None:
            self.request.on_prefill(*progress)
        self._check_wanted()
        return progress is None

    def _check_wanted(self) -> None:
        if self.request.is_cancelled:
            raise CancelledError

    def choose_token(self) -> None:
        """Choose the next token, lazily. Raises RunError if the schema turns out too complex."""
        allowed = None if self._matcher is None else self._matcher.allowed()
        self.choice = self._choose(self.logits, allowed)

    def take_token(self) -> Step | Llama4Error:
        """Wait for the chosen token. Returns its step, or an error if the schema forbids it."""
        chosen = wait_for(self.choice)
        self.left -= 1
        if self._matcher is not None:
            try:
                self._matcher.accept(chosen.token)
            except Llama4Error as failure:
                self.has_ended = True
                return without_frames(failure)
        step = self._writer.step(chosen)
        self.has_ended = step.finish_reason is not None
        statistics = self.request.statistics
        statistics.count(time.perf_counter() - self._begun_at)
        # Other rows may have read or decoded between this prompt's start and its first token.
        new = statistics.prompt_tokens - statistics.cached_tokens
        statistics.prefill_tokens_per_second = new / self._prefill_seconds
        statistics.finish_reason = step.finish_reason
        if self.request.settings.logprobs is not None:
            statistics.steps.append(step)
        return step


def without_frames(failure: Llama4Error) -> Llama4Error:
    """The error without its traceback, whose frames would keep the caches of all rows."""
    return failure.with_traceback(None)
