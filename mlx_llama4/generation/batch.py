"""Answer several prompts at once: prompts are read one by one, answers are decoded together.

A decode step reads the weights once for all rows, so answering together is faster than one after
another. Each row gets the answer that `stream_generate` would give it alone: it has its own caches
(cache/row_caches.py) and its own chunk borders.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import mlx.core as mx

from mlx_llama4.cache.row_caches import decoded_together
from mlx_llama4.errors import InputError, Llama4Error
from mlx_llama4.generation.generate import Step, TokenText
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import PREFILL_SPAN
from mlx_llama4.generation.rows import CancelledError, Request, Row, without_frames
from mlx_llama4.generation.wired import wired
from mlx_llama4.model.llama4 import Llama4

BATCH_SIZE = 8

Event = tuple[int, Step | Llama4Error]  # a request's number, and what came of it


@wired
def generate_batch(
    model: Llama4,
    processor: TokenText,
    requests: Iterable[Request | None],
    *,
    batch_size: int = BATCH_SIZE,
    features: ImageFeatureCache | None = None,
    prefill_step: int = PREFILL_SPAN,
) -> Iterator[Event]:
    """Yield (a request's number, counted from 0; its next step), decoding at most `batch_size` rows
    at once. A row's last step has a finish_reason.

    The next request is taken from `requests` only when there is room for it, so waiting requests
    use no memory. Its prompt is then read while the other rows wait. If `requests` yields None,
    none is ready yet: it is asked again after the next step, or at once if no row is left.

    If a request cannot be started (its prompt is too long, a picture cannot be read) or continued
    (its schema turns out too complex), its error is yielded in place of a step and ends that row;
    the other rows continue. An error that concerns all rows is raised and ends the batch: RunError
    if experts cannot be read from the disk, InputError for a batch size below 1, and whatever
    `requests` or a row's `on_prefill` raises.

    The tokens equal those of `stream_generate` up to rounding, because products over several rows
    may be summed in another order. The device is not kept a token ahead if a row has a grammar or
    experts are streamed.
    """
    batch = Batch(
        model, processor, batch_size=batch_size, features=features, prefill_step=prefill_step
    )
    waiting, is_open = iter(requests), True
    while is_open or batch.is_busy:
        while is_open and batch.has_room:
            try:
                request = next(waiting)
            except StopIteration:
                is_open = False
                break
            if request is None:
                break
            batch.add(request)
            del request  # or its cache would stay for as long as other rows run
            yield from batch.read_prompts()
        yield from batch._told()


class Batch:
    """Rows that are decoded together; requests join and leave between steps.

    Use it from one thread and, on a Mac, within `wired_memory()`; only `Request.cancel` may be
    called from another thread. Its methods raise what `generate_batch` raises. Do not use the batch
    after a method has raised.
    """

    def __init__(
        self,
        model: Llama4,
        processor: TokenText,
        *,
        batch_size: int = BATCH_SIZE,
        features: ImageFeatureCache | None = None,
        prefill_step: int = PREFILL_SPAN,
    ):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} must be 1 or more")
        self._model = model
        self._processor = processor
        self._batch_size = batch_size
        self._features = ImageFeatureCache() if features is None else features
        self._prefill_step = prefill_step
        self._numbers = itertools.count()
        self._joining: deque[Row] = deque()  # the first may have read part of its prompt
        self._rows: list[Row] = []  # rows whose prompts have been read
        self._unfed: list[Row] = []  # rows whose last token was yielded but not yet fed
        mx.reset_peak_memory()

    def add(self, request: Request) -> int:
        """Queue a request until a row is free, and return its number, counted from 0."""
        row = Row(next(self._numbers), request)
        self._joining.append(row)
        return row.number

    def cancel(self, number: int) -> None:
        """Cancel a request by its number; does nothing if it has ended."""
        for row in (*self._joining, *self._rows):
            if row.number == number:
                row.request.cancel()

    @property
    def is_busy(self) -> bool:
        """Is anything left to do?"""
        self._drop_ended()
        return bool(self._joining or self._rows)

    @property
    def has_room(self) -> bool:
        """Would one more request have a row at once?"""
        self._drop_ended()
        return len(self._joining) + len(self._rows) < self._batch_size

    def step(self) -> list[Event]:
        """Read one span of the next prompt, then choose a token for each row that has read its own.

        A long prompt thus delays the other rows by no more than one span at a time. With streamed
        experts every span reads them from the disk again; `read_prompts` reads less.
        """
        self._feed()
        events = [*self._read_span(), *self._choose()]
        self._drop_ended()
        return [(row.number, event) for row, event in events]

    def read_prompts(self) -> list[Event]:
        """Read whole prompts, one after the other, while rows are free. Returns errors only."""
        events = []
        while self._joining and len(self._rows) < self._batch_size:
            events += self._read_span()
        return [(row.number, event) for row, event in events]

    def _told(self) -> Iterator[Event]:
        """Yield a token of each row, unless the row has been cancelled by then; reads no prompt.

        Streamed experts for the next step are read only after all tokens have been yielded.
        """
        for row, event in self._choose():
            if not row.request.is_cancelled:
                yield row.number, event
        self._drop_ended()
        self._feed()

    def _drop_ended(self) -> None:
        self._joining = deque(row for row in self._joining if row.goes_on)
        self._rows = [row for row in self._rows if row.goes_on]

    def _read_span(self) -> list[tuple[Row, Step | Llama4Error]]:
        """Only one prompt at a time has activations in memory."""
        if not self._joining or len(self._rows) >= self._batch_size:
            return []
        row = self._joining[0]
        events: list[tuple[Row, Step | Llama4Error]] = []
        try:
            if not row.has_begun:
                row.begin(self._model, self._processor, self._features, self._prefill_step)
            if not row.read_on():
                return []
            self._rows.append(row)
        except CancelledError:
            pass
        except InputError as failure:
            events.append((row, without_frames(failure)))
        self._joining.popleft()
        return events

    def _choose(self) -> list[tuple[Row, Step | Llama4Error]]:
        """Choose the next token of each row, and start the step after it as early as possible."""
        self._drop_ended()
        # As in decode.py: the host waits for reads of streamed experts, and for a grammar's mask.
        streamed = self._model.expert_statistics is not None
        ahead = not streamed and all(row.request.settings.grammar is None for row in self._rows)
        events: list[tuple[Row, Step | Llama4Error]] = []
        for row in self._rows:
            try:
                row.choose_token()
            except Llama4Error as failure:
                row.has_ended = True
                events.append((row, without_frames(failure)))
        rows = [row for row in self._rows if row.goes_on]
        mx.async_eval([row.choice for row in rows])
        if ahead:
            # For a row that turns out to end here, this step is wasted: its result is ignored.
            self._forward([row for row in rows if row.left > 1])
        events += [(row, row.take_token()) for row in rows]
        self._unfed = [] if ahead else [row for row in rows if row.goes_on]
        if not streamed:
            self._feed()
        return events

    def _feed(self) -> None:
        rows, self._unfed = self._unfed, []
        self._forward([row for row in rows if row.goes_on])

    def _forward(self, rows: Sequence[Row]) -> None:
        """Feed each row its token, all in one pass."""
        if not rows:
            return
        tokens = mx.concatenate([row.choice.token for row in rows])
        logits = self._model(tokens[:, None], decoded_together([row.cache for row in rows]))[:, -1]
        mx.async_eval(logits)
        for row, row_logits in zip(rows, mx.split(logits, len(rows)), strict=True):
            row.logits = row_logits
