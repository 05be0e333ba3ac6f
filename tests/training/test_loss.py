"""The loss of supervised tokens against the plain one over all logits, and its memory."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_llama4.errors import PromptError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.training.loss import Batch, cross_entropy, hidden_states, supervised_loss
from tests import tiny

# Of a tensor: the largest difference, divided by the largest value expected. Float32 sums in
# another order differ by less.
TOLERANCE = 1e-5


def plain_loss(model: Llama4, batch: Batch) -> mx.array:
    """As supervised_loss, from the logits of every position."""
    features = None if batch.tiles is None else model.image_features(batch.tiles)
    logits = model(model.embed(batch.ids, features))[:, :-1]
    losses = nn.losses.cross_entropy(logits, mx.array(batch.ids[:, 1:]))
    return (losses * mx.array(batch.supervised[:, 1:])).sum()


def gradients(model: Llama4, loss) -> tuple[float, dict[str, mx.array]]:
    value, found = nn.value_and_grad(model, lambda: loss(model))()
    return value.item(), dict(tree_flatten(found))


def worst(ours: dict[str, mx.array], expected: dict[str, mx.array]) -> float:
    assert ours.keys() == expected.keys()
    sizes = {key: mx.abs(array).max() for key, array in expected.items()}
    return max(
        (mx.abs(ours[key] - expected[key]).max() / mx.maximum(size, 1e-12)).item()
        for key, size in sizes.items()
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("which", ["batch", "picture_batch"])
def test_the_loss_and_every_gradient_are_those_over_all_logits(
    request: pytest.FixtureRequest, model: Llama4, which: str, recompute: bool
) -> None:
    batch = request.getfixturevalue(which)
    loss, ours = gradients(model, lambda m: supervised_loss(m, batch, recompute=recompute)[0])
    expected_loss, expected = gradients(model, lambda m: plain_loss(m, batch))
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert worst(ours, expected) <= TOLERANCE
    has_vision = [bool(mx.any(ours[key])) for key in ours if key.startswith("vision_model.")]
    assert has_vision and all(has_vision) == (which == "picture_batch")


def test_the_sum_counts_what_it_is_a_sum_of(model: Llama4, batch: Batch) -> None:
    loss, count = supervised_loss(model, batch)
    assert loss.dtype == mx.float32
    assert count == batch.num_supervised == 38


def test_only_marked_tokens_count(model: Llama4, batch: Batch) -> None:
    """-log p of one token after another, each from the logits before it."""
    logits = model(mx.array(batch.ids)).astype(mx.float32)
    logs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    expected = [
        -logs[row, place - 1, batch.ids[row, place]]
        for row, place in zip(*np.nonzero(batch.supervised), strict=True)
    ]
    assert supervised_loss(model, batch)[0].item() == pytest.approx(sum(expected), rel=TOLERANCE)


def test_what_fills_a_row_up_changes_nothing(model: Llama4, batch: Batch) -> None:
    other = batch.ids.copy()
    other[1, 50:] = 7
    loss, expected = (supervised_loss(model, b)[0] for b in (replace(batch, ids=other), batch))
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE)


def test_a_batch_is_the_sum_of_its_rows(model: Llama4, batch: Batch) -> None:
    rows = [Batch(batch.ids[i : i + 1], batch.supervised[i : i + 1]) for i in range(2)]
    total = sum(supervised_loss(model, row)[0].item() for row in rows)
    assert supervised_loss(model, batch)[0].item() == pytest.approx(total, rel=TOLERANCE)


def test_nothing_supervised_is_a_sum_of_nothing(model: Llama4, batch: Batch) -> None:
    loss, count = supervised_loss(model, Batch(batch.ids, np.zeros(batch.ids.shape, bool)))
    assert (loss.item(), count) == (0, 0)


@pytest.mark.parametrize("at_once", [1, 3, 10, 11])
def test_the_logits_of_some_tokens_at_once_add_up(at_once: int) -> None:
    mx.random.seed(0)
    head, vocabulary = nn.Linear(16, 50, bias=False), 50
    hidden, targets = mx.random.normal((10, 16)), mx.random.randint(0, vocabulary, (10,))

    def loss(head: nn.Module, hidden: mx.array) -> mx.array:
        return cross_entropy(head, hidden, targets, logits_bytes=at_once * 4 * vocabulary)

    def plain(head: nn.Module, hidden: mx.array) -> mx.array:
        return nn.losses.cross_entropy(head(hidden), targets, reduction="sum")

    ours, expected = (mx.value_and_grad(lambda h, f=f: f(head, h))(hidden) for f in (loss, plain))
    assert mx.allclose(ours[0], expected[0], rtol=TOLERANCE)
    assert worst({"hidden": ours[1]}, {"hidden": expected[1]}) <= TOLERANCE
    ours, expected = (
        nn.value_and_grad(head, lambda f=f: f(head, hidden))()[1] for f in (loss, plain)
    )
    assert worst(ours, expected) <= TOLERANCE


def peak_bytes(run) -> int:
    """Of MLX's memory, beyond what is there before."""
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    return mx.get_peak_memory() - before


def test_the_whole_of_the_logits_is_never_in_memory() -> None:
    """A frozen head, as for adapters: its gradient would be as large as it is."""
    vocabulary, tokens, at_once = 10_000, 800, 20
    mx.random.seed(0)
    head = nn.Linear(8, vocabulary, bias=False).freeze()
    hidden, targets = mx.random.normal((tokens, 8)), mx.random.randint(0, vocabulary, (tokens,))
    mx.eval(head.parameters(), hidden, targets)
    part = at_once * 4 * vocabulary
    loss = mx.value_and_grad(lambda h: cross_entropy(head, h, targets, logits_bytes=part))
    plain = mx.value_and_grad(lambda h: nn.losses.cross_entropy(head(h), targets, reduction="sum"))
    whole = 4 * vocabulary * tokens
    assert peak_bytes(lambda: plain(hidden)) >= whole
    assert peak_bytes(lambda: loss(hidden)) <= 10 * part <= whole / 4


def test_computing_again_takes_less_memory(model: Llama4) -> None:
    ids = tiny.text_ids(200, seed=3)
    supervised = np.zeros(ids.shape, bool)
    supervised[0, -4:] = True
    model.freeze()
    model.language_model.model.layers[0].unfreeze()  # all layers above pass a gradient on

    def peak(recompute: bool) -> int:
        def loss(m: Llama4) -> mx.array:
            return supervised_loss(m, Batch(ids, supervised), recompute=recompute)[0]

        return peak_bytes(lambda: list(gradients(model, loss)[1].values()))

    assert peak(recompute=True) < 0.7 * peak(recompute=False)


def test_hidden_states_are_what_the_head_reads(model: Llama4, batch: Batch) -> None:
    logits = model.language_model.lm_head(hidden_states(model, model.embed(batch.ids)))
    expected = model(mx.array(batch.ids))
    assert mx.abs(logits - expected).max() <= TOLERANCE * mx.abs(expected).max()


@pytest.mark.parametrize(
    ("ids", "supervised", "reason"),
    [
        (np.zeros((2, 5), int), np.zeros((2, 4), bool), r"\(2, 5\) and \(2, 4\)"),
        (np.zeros(5, int), np.zeros(5, bool), r"shape \[rows, tokens\]"),
        (np.zeros((1, 5), int), np.zeros((1, 5), int), "bool, not int64"),
        (np.zeros((1, 5), int), np.ones((1, 5), bool), "first token cannot be supervised"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    ids: np.ndarray, supervised: np.ndarray, reason: str
) -> None:
    with pytest.raises(PromptError, match=reason):
        Batch(ids, supervised)
