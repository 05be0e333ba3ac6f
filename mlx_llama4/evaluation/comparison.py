"""Compare two models on the same tokens: KL divergence, agreement, perplexity.

Model A is the reference, B its converted form. Neither is ever in memory as a whole, nor is any
array of tokens × vocabulary. Works on windows of token ids, not on text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.config import VisionConfig
from mlx_llama4.errors import CheckpointError, PromptError, RunError
from mlx_llama4.evaluation.layerwise import SPAN, LayerwiseModel
from mlx_llama4.prompt.windows import Window

# How many rows of the heads (tokens of the vocabulary) have their logits in memory at once.
HEAD_ROWS = 4096
MOST_NATS = 700.0  # e to that power is about the largest float64


@dataclass(frozen=True, eq=False)
class WindowComparison:
    """Figures for each of the P positions of a window that count, float64."""

    divergences: np.ndarray  # KL(A‖B) in nats, [P]
    agreements: np.ndarray  # 1 where both models have the same likeliest next token, [P]
    # Negative log-likelihoods of the tokens that follow in the window, in nats: [P - 1].
    losses_a: np.ndarray
    losses_b: np.ndarray


@dataclass(frozen=True)
class Figures:
    """Figures over all positions of some windows. Divergences are KL(A‖B) in nats."""

    positions: int
    mean_divergence: float
    # Half the 95% interval of the mean, treating positions as independent.
    divergence_error: float
    median_divergence: float
    divergence_99th_percentile: float
    max_divergence: float
    top_1_agreement: float
    predicted_tokens: int
    perplexity_a: float
    perplexity_b: float

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity_b / self.perplexity_a


def _vision_of(source: Source) -> VisionConfig:
    if source.config.vision is None:
        raise PromptError(f"{source.folder} has no vision tower; leave out the images")
    return source.config.vision


def check_comparable(a: Source, b: Source, windows: Sequence[Window]) -> None:
    """Check that both models can be given these windows.

    Raises CheckpointError if a folder's weights are incomplete or the two models do not match,
    PromptError if one of them cannot take the windows.
    """
    for source in (a, b):
        source.matching.check(source.folder)
    sizes: dict[str, list[int | None]] = {
        "vocab_size": [one.config.text.vocab_size for one in (a, b)]
    }
    if any(window.prompt.images for window in windows):
        towers = [_vision_of(source) for source in (a, b)]
        sizes |= {
            "image_size": [tower.image_size for tower in towers],
            "tokens per tile": [tower.tokens_per_tile for tower in towers],
            "image_token_index": [one.config.image_token_id for one in (a, b)],
        }
    for name, (first, second) in sizes.items():
        if first != second:
            raise CheckpointError(
                f"{a.folder} and {b.folder} cannot be compared: {name} is {first} in the one and "
                f"{second} in the other"
            )
    longest = max(len(window.prompt.ids) for window in windows)
    for source in (a, b):
        context = source.config.text.max_position_embeddings
        if longest > context:
            raise PromptError(
                f"a window has {longest:,} tokens but the context of {source.folder} holds "
                f"{context:,}; use shorter ones"
            )
    largest = max(int(window.prompt.ids.max()) for window in windows)
    if largest >= a.config.text.vocab_size:
        raise CheckpointError(
            f"{a.folder}: its tokenizer gives id {largest}, but vocab_size is "
            f"{a.config.text.vocab_size}; the files do not belong together"
        )


def compare(
    a: Source,
    b: Source,
    windows: Sequence[Window],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[WindowComparison]:
    """Compare both models' next-token distributions at every position that counts.

    on_progress is called with (bytes of both models' weights used so far, bytes in all).

    Raises what `check_comparable` raises before reading any weights; then RunError for weights that
    cannot be read or that give logits which are not numbers.
    """
    check_comparable(a, b, windows)
    done = 0

    def on_bytes(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress(done, total)

    models = [LayerwiseModel(source, on_bytes) for source in (a, b)]
    total = sum(model.nbytes for model in models)
    prompts = [window.prompt for window in windows]
    counted = []
    for model in models:
        hidden = model.hidden_states(prompts)
        counted.append([x[window.first :] for x, window in zip(hidden, windows, strict=True)])
        mx.eval(counted)
        del hidden
    targets = [window.prompt.ids[window.first + 1 :] for window in windows]
    pieces = [
        [
            _Positions(ours[at : at + SPAN], theirs[at : at + SPAN], following[at : at + SPAN])
            for at in range(0, len(ours), SPAN)
        ]
        for ours, theirs, following in zip(*counted, targets, strict=True)
    ]
    first = 0
    for heads in zip(*(model.head_blocks(HEAD_ROWS) for model in models), strict=True):
        for positions in pieces:
            for piece in positions:
                piece.add(first, *heads)
        first += len(heads[0])
    return [_joined([piece.result(a, b) for piece in positions]) for positions in pieces]


def summarize(windows: Sequence[WindowComparison]) -> Figures:
    divergences = np.concatenate([window.divergences for window in windows])
    agreements = np.concatenate([window.agreements for window in windows])
    losses_a = np.concatenate([window.losses_a for window in windows])
    losses_b = np.concatenate([window.losses_b for window in windows])
    return Figures(
        positions=len(divergences),
        mean_divergence=float(divergences.mean()),
        divergence_error=1.96 * float(divergences.std()) / math.sqrt(len(divergences)),
        median_divergence=float(np.median(divergences)),
        divergence_99th_percentile=float(np.quantile(divergences, 0.99)),
        max_divergence=float(divergences.max()),
        top_1_agreement=float(agreements.mean()),
        predicted_tokens=len(losses_a),
        perplexity_a=_perplexity(losses_a),
        perplexity_b=_perplexity(losses_b),
    )


def _perplexity(losses: np.ndarray) -> float:
    """exp of the mean loss; infinite for a model so broken that a float cannot hold it."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < MOST_NATS else math.inf


class _Softmax:
    """Online softmax over logits that come one block of the vocabulary at a time.

    Keeps the largest logit so far, and the sum of exponentials relative to it, float64 [L]
    (arXiv 1805.02867).
    """

    def __init__(self, length: int):
        self.largest = np.full(length, -np.inf)
        self.total = np.zeros(length)
        self.winner = np.zeros(length, np.int64)

    def add(
        self, first: int, largest: np.ndarray, total: np.ndarray, winner: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the block that begins at token `first`. Returns two scales: one for the sums so far,
        one for the block's.
        """
        self.winner = np.where(largest > self.largest, first + winner, self.winner)
        both = np.maximum(self.largest, largest)
        before, now = np.exp(self.largest - both), np.exp(largest - both)
        self.largest, self.total = both, self.total * before + total * now
        return before, now

    @property
    def log_total(self) -> np.ndarray:
        return self.largest + np.log(self.total)


class _Positions:
    """L positions: their hidden states in both models, [L, D], and what is known so far of their
    next-token distributions. targets: ids of the next tokens, [L] or [L - 1].

    KL(A‖B) = Σ p (a − b) − (log Σ exp a − log Σ exp b), with logits a, b and p = softmax(a).
    """

    def __init__(self, a: mx.array, b: mx.array, targets: np.ndarray):
        self._hidden = (a, b)
        self._targets = targets
        self._softmaxes = (_Softmax(len(a)), _Softmax(len(b)))
        self._difference = np.zeros(len(a))  # Σ exp(a − largest a) (a − b)
        self._target_logits = np.zeros((2, len(targets)))

    def add(self, first: int, head_a: mx.array, head_b: mx.array) -> None:
        """Add the logits of tokens first, first + 1, …: the rows of `head_a` and `head_b`."""
        a, b = (x @ head.T for x, head in zip(self._hidden, (head_a, head_b), strict=True))
        statistics = [_statistics(a), _statistics(b)]
        difference = (mx.exp(a - a.max(axis=-1, keepdims=True)) * (a - b)).sum(axis=-1)
        last = first + len(head_a)
        rows = np.flatnonzero((first <= self._targets) & (self._targets < last))
        columns = self._targets[rows] - first
        here = [logits[mx.array(rows), mx.array(columns)] for logits in (a, b)] if len(rows) else []
        mx.eval(statistics, difference, here)
        for index, logits in enumerate(here):
            self._target_logits[index, rows] = np.array(logits)
        scales = [
            softmax.add(first, *map(np.array, one))
            for softmax, one in zip(self._softmaxes, statistics, strict=True)
        ]
        before, now = scales[0]
        self._difference = self._difference * before + np.array(difference) * now

    def result(self, a: Source, b: Source) -> WindowComparison:
        totals = [softmax.log_total for softmax in self._softmaxes]
        for source, total in zip((a, b), totals, strict=True):
            if not np.isfinite(total).all():
                raise RunError(
                    f"{source.folder} gives logits that are not numbers; its weights are damaged"
                )
        divergences = self._difference / self._softmaxes[0].total - (totals[0] - totals[1])
        known = len(self._targets)
        losses = [
            total[:known] - logits
            for total, logits in zip(totals, self._target_logits, strict=True)
        ]
        agreements = self._softmaxes[0].winner == self._softmaxes[1].winner
        # The divergence is at least 0, but rounding can make it slightly negative.
        return WindowComparison(np.maximum(divergences, 0), agreements.astype(float), *losses)


def _statistics(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """For logits [L, rows]: the largest, the sum of exponentials relative to it, and its index."""
    largest = logits.max(axis=-1, keepdims=True)
    total = mx.exp(logits - largest).sum(axis=-1)
    return largest[:, 0], total, logits.argmax(axis=-1)


def _joined(pieces: Sequence[WindowComparison]) -> WindowComparison:
    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    return WindowComparison(
        all_of("divergences"),
        all_of("agreements"),
        all_of("losses_a"),
        all_of("losses_b"),
    )
