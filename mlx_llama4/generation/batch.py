"""Several prompts at once: read one after the other, their answers decoded together.

A decode step reads the weights once, for as many rows as take part: so several answers together
come faster than one after another. Each row is what `stream_generate` would have made of it alone,
in caches of its own (cache/row_caches.py), with chunk borders of its own.
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
    """Pairs of a request's number, counted from 0, and its next step; at most `batch_size` rows
    are decoded at once. A row's last step has a finish_reason.

    A request is asked for when there is room for it, and its prompt is then read, while the others
    wait: what waits takes no memory. None instead of one says that none is there just now; it is
    asked for again after the next step, or at once if no row is left. Where a row's request
    cannot be done (its prompt is too long, a picture cannot be read) or continued (its schema
    is too complex after all), its error comes in place of a step and nothing after it; the others
    go on. What concerns them all is raised and ends the batch: RunError if experts cannot be read
    from the disk, InputError for a batch size below 1, and whatever `requests` or a row's
    `on_prefill` raises.

    Tokens are those of `stream_generate` up to rounding: products of several rows may be summed in
    another order. With a grammar in a row, or experts streamed, the device is not kept a token
    ahead.
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
            del request  # or its cache would stay for as long as others go on
            yield from batch.read_prompts()
        yield from batch._told()


class Batch:
    """Rows that are decoded together; requests join and leave between steps.

    For one thread, and within `wired_memory()` on a Mac; only `Request.cancel` may be called from
    another thread. Once a method has raised something, the batch is of no use any more; what each
    of them raises is what `generate_batch` raises.
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
        self._joining: deque[Row] = deque()  # the first of them may be reading its prompt
        self._rows: list[Row] = []  # whose prompts are read
        self._unfed: list[Row] = []  # whose last token has been told, and not been fed yet
        mx.reset_peak_memory()

    def add(self, request: Request) -> int:
        """The request's number, counted from 0. It waits until there is a row for it."""
        row = Row(next(self._numbers), request)
        self._joining.append(row)
        return row.number

    def cancel(self, number: int) -> None:
        """As its `Request.cancel`; nothing happens if it has ended."""
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
        """Read a span of the prompt that is to join next, and then choose a token for each row
        whose prompt is read: so a long prompt holds up the others for no longer than a span takes.

        With streamed experts each span reads them anew: there `read_prompts` reads less.
        """
        self._feed()
        events = [*self._read_span(), *self._choose()]
        self._drop_ended()
        return [(row.number, event) for row, event in events]

    def read_prompts(self) -> list[Event]:
        """Read prompts to their ends, one after the other, as long as there are rows for them. The
        events are errors.
        """
        events = []
        while self._joining and len(self._rows) < self._batch_size:
            events += self._read_span()
        return [(row.number, event) for row, event in events]

    def _told(self) -> Iterator[Event]:
        """Without reading: a token of each row, told only if its row is still wanted then. What
        streamed experts must be read for comes when all have been told.
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
        """The next token of each row, and what comes after it begun on the device as soon as can
        be.
        """
        self._drop_ended()
        # As in decode.py: the host waits for what streamed experts read, and for what a grammar
        # allows.
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
            # Of a row that turns out to end here, one token in vain: nobody looks at what it gives.
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
