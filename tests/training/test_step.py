"""One step: accumulation by tokens, clipping, refusals that leave the model as it was."""

import random
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx.optimizers import SGD, Adam, AdamW, Optimizer
from mlx.utils import tree_flatten

from mlx_llama4.errors import InputError, RunError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.training.loss import Batch, supervised_loss
from mlx_llama4.training.step import TrainingStep
from tests import tiny


def parameters(model: Llama4) -> dict[str, np.ndarray]:
    return {key: np.array(array) for key, array in tree_flatten(model.parameters())}


def restore(model: Llama4, before: dict[str, np.ndarray]) -> None:
    model.load_weights([(key, mx.array(array)) for key, array in before.items()])


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    return Batch(batch.ids[rows], batch.supervised[rows])


def drawn_rows(seed: int, rows: int) -> Batch:
    """Rows of which each supervises some tokens, from 1 to most."""
    source = np.random.RandomState(seed)
    ids = np.concatenate([tiny.text_ids(40, seed * 100 + row) for row in range(rows)])
    supervised = np.zeros(ids.shape, bool)
    for row in range(rows):
        places = source.permutation(np.arange(1, 40))[: source.randint(1, 36)]
        supervised[row, places] = True
    return Batch(ids, supervised)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_batches_one_by_one_update_as_one_batch_does(model: Llama4, seed: int) -> None:
    """A mean of the batches' means would weigh the tokens of a short answer more."""
    batch, source = drawn_rows(seed, 4), random.Random(seed)
    cuts = sorted(source.sample([1, 2, 3], 2))
    parts = [rows_of(batch, list(range(a, b))) for a, b in zip([0, *cuts], [*cuts, 4], strict=True)]
    before, results, after = parameters(model), [], []
    for batches in ([batch], parts):
        restore(model, before)
        step = TrainingStep(model, SGD(learning_rate=0.1), supervised_loss)
        results.append(step(batches))
        after.append(parameters(model))
    whole, split = results
    assert split.count == whole.count == batch.num_supervised
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)
    assert split.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
    for key, array in after[0].items():
        change = np.abs(array - before[key]).max()
        assert np.abs(after[1][key] - array).max() <= 1e-3 * change + 1e-7, key


def test_a_batch_without_answers_adds_nothing(model: Llama4, batch: Batch) -> None:
    silent = Batch(batch.ids, np.zeros(batch.ids.shape, bool))
    step = TrainingStep(model, SGD(learning_rate=0.0), supervised_loss)
    assert step([silent, batch, silent]) == step([batch])


def test_a_step_goes_down_the_gradient_of_the_mean(model: Llama4, batch: Batch) -> None:
    """With plain descent, the loss falls by the rate times the squared norm."""
    rate = 1e-4
    step = TrainingStep(model, SGD(learning_rate=rate), supervised_loss, max_norm=None)
    first, second = step([batch]), step([batch])
    fall = rate * first.gradient_norm**2
    assert first.loss - second.loss == pytest.approx(fall, rel=0.05)


def test_a_large_gradient_is_scaled_down(model: Llama4, batch: Batch) -> None:
    before = parameters(model)
    step = TrainingStep(model, SGD(learning_rate=1.0), supervised_loss, max_norm=0.01)
    assert step([batch]).gradient_norm > 0.01
    moved = sum(((array - before[key]) ** 2).sum() for key, array in parameters(model).items())
    assert moved**0.5 == pytest.approx(0.01, rel=1e-2)


def test_steps_learn(model: Llama4, batch: Batch) -> None:
    step = TrainingStep(model, AdamW(learning_rate=3e-3), supervised_loss)
    losses = [step([batch]).loss for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]


def test_computing_again_changes_no_update(model: Llama4, batch: Batch) -> None:
    before, after = parameters(model), []
    for recompute in (False, True):
        restore(model, before)
        step = TrainingStep(
            model,
            Adam(learning_rate=1e-3),
            lambda m, b, recompute=recompute: supervised_loss(m, b, recompute=recompute),
        )
        for _ in range(3):
            step([batch])
        after.append(parameters(model))
    assert all(np.abs(after[0][key] - after[1][key]).max() <= 1e-5 for key in before)


def test_frozen_parameters_stay_and_dtypes_too(model: Llama4, batch: Batch) -> None:
    model.freeze()
    layer = model.language_model.model.layers[2].self_attn
    layer.unfreeze()
    layer.set_dtype(mx.bfloat16)
    before = dict(tree_flatten(model.parameters()))
    TrainingStep(model, AdamW(learning_rate=1e-2), supervised_loss)([batch])
    after = dict(tree_flatten(model.parameters()))
    changed = {key for key in before if not mx.array_equal(before[key], after[key])}
    prefix = "language_model.model.layers.2.self_attn"
    assert changed == {f"{prefix}.{name}_proj.weight" for name in "qkvo"}
    assert {key: array.dtype for key, array in after.items()} == {
        key: array.dtype for key, array in before.items()
    }


def test_what_is_not_a_number_updates_nothing(model: Llama4, batch: Batch) -> None:
    optimizer = Adam(learning_rate=1e-3)
    TrainingStep(model, optimizer, supervised_loss)([batch])
    before, count = parameters(model), optimizer.step.item()

    def broken(m: Llama4, b: Batch) -> tuple[mx.array, int]:
        loss, tokens = supervised_loss(m, b)
        return loss * mx.array(float("nan")), tokens

    with pytest.raises(RunError, match=r"loss is nan .* nothing was updated"):
        TrainingStep(model, optimizer, broken)([batch])
    after = parameters(model)
    assert all(np.array_equal(after[key], before[key]) for key in before)
    assert optimizer.step.item() == count
    assert np.isfinite(TrainingStep(model, optimizer, supervised_loss)([batch]).loss)


def test_an_interrupted_step_leaves_the_model_as_it_was(model: Llama4, batch: Batch) -> None:
    before = parameters(model)

    def interrupted(m: Llama4, b: Batch) -> tuple[mx.array, int]:
        supervised_loss(m, b)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrainingStep(model, SGD(learning_rate=1.0), interrupted)([batch])
    after = parameters(model)
    assert all(np.array_equal(after[key], before[key]) for key in before)


def test_an_update_that_fails_leaves_the_optimizer_as_it_was(
    model: Llama4, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the same step, done again, would differ from one that did not fail."""
    optimizer, before, after = Adam(learning_rate=1e-3), parameters(model), []
    for fails in (False, True):
        restore(model, before)
        optimizer.state = {"step": mx.array(0, mx.uint64), "learning_rate": mx.array(1e-3)}
        step = TrainingStep(model, optimizer, supervised_loss)
        step([batch])
        if fails:
            with monkeypatch.context() as patched:
                patched.setattr(optimizer, "update", _update_and_stop(optimizer))
                with pytest.raises(KeyboardInterrupt):
                    step([batch])
        step([batch])
        after.append(parameters(model))
    assert all(np.array_equal(after[0][key], after[1][key]) for key in before)


def _update_and_stop(optimizer: Optimizer) -> Callable[[Llama4, dict], None]:
    update = optimizer.update

    def stop(model: Llama4, gradient: dict) -> None:
        update(model, gradient)
        raise KeyboardInterrupt

    return stop


def test_nothing_to_learn_is_refused(model: Llama4, batch: Batch) -> None:
    silent = Batch(batch.ids, np.zeros(batch.ids.shape, bool))
    step = TrainingStep(model, SGD(learning_rate=1.0), supervised_loss)
    for batches in ([silent], []):
        with pytest.raises(InputError, match="none of the tokens"):
            step(batches)
    with pytest.raises(InputError, match="no trainable parameters"):
        TrainingStep(model.freeze(), SGD(learning_rate=1.0), supervised_loss)
