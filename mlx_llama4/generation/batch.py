"""Several prompts at once: read one after the other, gone on with together.

A decode step reads the weights once, for as many rows as take part: so several answers together
come faster than one after another. Each row is what `stream_generate` would have made of it alone,
in caches of its own (cache/row_caches.py), with chunk borders of its own.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.cache.row_caches import decoded_together
from mlx_llama4.errors import InputError, Llama4Error
from mlx_llama4.generation.choice import Choice, Chooser, wait_for
from mlx_llama4.generation.generate import Statistics, Step, StepWriter, TokenText, room
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import PREFILL_SPAN, ignore_progress, prefill
from mlx_llama4.generation.settings import DEFAULTS, GenerationSettings
from mlx_llama4.generation.stop import StopStrings
from mlx_llama4.generation.wired import wired
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt, check_length

BATCH_SIZE = 8


@dataclass(eq=False)
class Request:
    """A prompt and its generation settings, as `stream_generate` takes them, without `draft`.

    A cache, and a sampler that is given and draws, must be the request's own. The cache can be
    used afterwards; its `offset` tells what it has taken in: prompt and tokens, perhaps without
    the last, or after `cancel`, or where the batch was closed, with one that was never yielded.
    statistics: of the row; its seconds count from when it joins, and none of the experts is in
    them.
    """

    prompt: Prompt
    settings: GenerationSettings = DEFAULTS
    cache: Sequence[KVCache] | None = None
    statistics: Statistics = field(default_factory=Statistics)
    on_prefill: Callable[[int, int], None] = ignore_progress
    is_cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Have the row leave, or never join; no step of it comes any more. A prompt that is being
        read is given up after `prefill_step` tokens at most.
        """
        self.is_cancelled = True


@wired
def generate_batch(
    model: Llama4,
    processor: TokenText,
    requests: Iterable[Request | None],
    *,
    batch_size: int = BATCH_SIZE,
    features: ImageFeatureCache | None = None,
    prefill_step: int = PREFILL_SPAN,
) -> Iterator[tuple[int, Step | Llama4Error]]:
    """Pairs of a request's number, counted from 0, and its next step; at most `batch_size` rows
    go on at once. A row's last step has a finish_reason.

    A request is asked for when there is room for it, and its prompt is then read, while the others
    wait: what waits takes no memory. None instead of one says that none is there just now; it is
    asked for again after the next step, or at once if no row is left. Where a row's request
    cannot be done (its prompt is too long, a picture cannot be read) or gone on with (its schema
    is too complex after all), its error comes in place of a step and nothing after it; the others
    go on. What concerns them all is raised and ends the batch: RunError if experts cannot be read
    from the disk, InputError for a batch size below 1, and whatever `requests` or a row's
    `on_prefill` raises.

    Tokens are those of `stream_generate` up to rounding: products of several rows may be summed in
    another order. With a grammar in a row, or experts streamed, the device is not kept a token
    ahead.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be 1 or more")
    features = ImageFeatureCache() if features is None else features
    waiting, number, is_open = iter(requests), 0, True
    rows: list[_Row] = []
    mx.reset_peak_memory()
    while is_open or rows:
        while is_open and len(rows) < batch_size:
            try:
                request = next(waiting)
            except StopIteration:
                is_open = False
                break
            if request is None:
                break
            try:
                row = _Row(number, request)
                row.join(model, processor, features, prefill_step)
                rows.append(row)
            except _CancelledError:
                pass
            except InputError as failure:
                yield number, _alone(failure)
            del row, request  # or their caches would stay for as long as others go on
            number += 1
        yield from _step(model, rows)
        rows = [row for row in rows if row.goes_on]


def _step(model: Llama4, rows: Sequence["_Row"]) -> Iterator[tuple[int, Step | Llama4Error]]:
    """The next token of each row, and what comes after it begun on the device as soon as can be."""
    # As in decode.py: the host waits for what streamed experts read, and for what a grammar allows.
    streamed = model.expert_statistics is not None
    ahead = not streamed and all(row.request.settings.grammar is None for row in rows)
    for row in (row for row in rows if row.goes_on):
        try:
            row.choose_token()
        except Llama4Error as failure:
            row.has_ended = True
            yield row.number, _alone(failure)
    rows = [row for row in rows if row.goes_on]
    mx.async_eval([row.choice for row in rows])
    if ahead:
        # Of a row that turns out to end here, one token in vain: what it gives is never looked at.
        _forward(model, [row for row in rows if row.left > 1])
    steps = [row.take_token() for row in rows]
    if not ahead and not streamed:
        _forward(model, [row for row in rows if row.goes_on])
    for row, step in zip(rows, steps, strict=True):
        if not row.request.is_cancelled:
            yield row.number, step
    if streamed:
        _forward(model, [row for row in rows if row.goes_on])


def _forward(model: Llama4, rows: Sequence["_Row"]) -> None:
    """Feed each row its token, all in one pass."""
    if not rows:
        return
    tokens = mx.concatenate([row.choice.token for row in rows])
    logits = model(tokens[:, None], decoded_together([row.cache for row in rows]))[:, -1]
    mx.async_eval(logits)
    for row, row_logits in zip(rows, mx.split(logits, len(rows)), strict=True):
        row.logits = row_logits


class _CancelledError(Exception):
    """Of a row that has not joined yet."""


def _alone(failure: Llama4Error) -> Llama4Error:
    """Without its traceback, whose frames would keep the caches of all rows."""
    return failure.with_traceback(None)


class _Row:
    """A request that has joined. left: tokens that may yet come."""

    cache: Sequence[KVCache]
    logits: mx.array  # [1, vocabulary]
    choice: Choice

    def __init__(self, number: int, request: Request):
        self.number = number
        self.request = request
        self.left = request.settings.max_tokens
        self.has_ended = False

    @property
    def goes_on(self) -> bool:
        return not self.has_ended and not self.request.is_cancelled

    def join(
        self,
        model: Llama4,
        processor: TokenText,
        features: ImageFeatureCache,
        prefill_step: int,
    ) -> None:
        """Read the prompt to its end, so that only one at a time has activations in memory.

        Raises InputError for what is wrong with the request, _CancelledError if it was cancelled,
        RunError if experts cannot be read.
        """
        request, prompt, settings = self.request, self.request.prompt, self.request.settings
        self._check_wanted()
        check_length(prompt, model.config)
        if request.cache is not None and request.cache[0].offset >= len(prompt.ids):
            raise InputError(
                f"the cache holds {request.cache[0].offset} tokens, the prompt has only "
                f"{len(prompt.ids)}"
            )
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
        self._joined_at = time.perf_counter()
        self.cache = model.make_cache() if request.cache is None else request.cache
        request.statistics.begin(model, prompt, cached=self.cache[0].offset)
        for layer in self.cache:
            layer.reserve(room(prompt, self.left))
        self.logits = prefill(
            model,
            prompt,
            self.cache,
            span=prefill_step,
            features=features,
            on_progress=self._on_prefill,
        )
        mx.eval(self.logits, [array for layer in self.cache for array in layer.arrays])
        self._prefill_seconds = time.perf_counter() - self._joined_at
        self._check_wanted()

    def _on_prefill(self, done: int, total: int) -> None:
        self.request.on_prefill(done, total)
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self.request.is_cancelled:
            raise _CancelledError

    def choose_token(self) -> None:
        """Lazily. Raises RunError if the schema turns out to be too complex."""
        allowed = None if self._matcher is None else self._matcher.allowed()
        self.choice = self._choose(self.logits, allowed)

    def take_token(self) -> Step | Llama4Error:
        """Wait for the token that was chosen; an error if the schema does not allow it."""
        chosen = wait_for(self.choice)
        self.left -= 1
        if self._matcher is not None:
            try:
                self._matcher.accept(chosen.token)
            except Llama4Error as failure:
                self.has_ended = True
                return _alone(failure)
        step = self._writer.step(chosen)
        self.has_ended = step.finish_reason is not None
        statistics = self.request.statistics
        statistics.count(time.perf_counter() - self._joined_at)
        # Others may have joined between the prompt's end and the first token.
        new = statistics.prompt_tokens - statistics.cached_tokens
        statistics.prefill_tokens_per_second = new / self._prefill_seconds
        statistics.finish_reason = step.finish_reason
        if self.request.settings.logprobs is not None:
            statistics.steps.append(step)
        return step
