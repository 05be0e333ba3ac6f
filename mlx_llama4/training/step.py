"""One step of training: the gradient of a loss over some batches, then one update.

What is trained is what the model has as trainable parameters; which loss, the caller says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.optimizers import Optimizer, clip_grad_norm
from mlx.utils import tree_flatten, tree_map

from mlx_llama4.errors import InputError, RunError
from mlx_llama4.model.llama4 import Llama4

BatchT = TypeVar("BatchT")
# A batch's loss: a sum over tokens (or pairs, or rewarded answers), and how many it is a sum of.
LossOf = Callable[[Llama4, BatchT], tuple[mx.array, int]]


@dataclass(frozen=True)
class StepResult:
    """loss: the mean over `count` tokens, before the update; in nats where the loss is.

    gradient_norm: of the mean's gradient over all trained parameters, before it was clipped.
    """

    loss: float
    count: int
    gradient_norm: float


class TrainingStep(Generic[BatchT]):
    """Updates a model; keeps the optimizer with it.

    loss_of: for example loss.supervised_loss. max_norm: a gradient of a larger norm is scaled down
    to it; None: never.
    """

    def __init__(
        self,
        model: Llama4,
        optimizer: Optimizer,
        loss_of: LossOf[BatchT],
        *,
        max_norm: float | None = 1.0,
    ):
        """Raises InputError if the model has nothing to train."""
        if not tree_flatten(model.trainable_parameters()):
            raise InputError(
                "the model has no trainable parameters; unfreeze some, or add adapters"
            )
        self.model = model
        self.optimizer = optimizer
        self.max_norm = max_norm
        self._loss_and_gradient = nn.value_and_grad(model, lambda batch: loss_of(model, batch))

    def __call__(self, batches: Sequence[BatchT]) -> StepResult:
        """One update by the mean over the tokens of all `batches`, read one after the other.

        It is the update that one batch of all their rows would give, whatever the share of tokens
        of each, in the memory of the largest.

        Raises InputError if no token is supervised, RunError if the loss or a gradient is not a
        finite number. After any failure, and Ctrl-C, model and optimizer are as they were.
        """
        parameters = self.model.trainable_parameters()
        state = tree_map(lambda array: array, self.optimizer.state)  # a copy of the tree alone
        try:
            return self._update(batches)
        except BaseException:
            # MLX's transforms leave arrays of their own in the model, and it may be half updated.
            self.model.update(parameters)
            self.optimizer.state = state
            raise

    def _update(self, batches: Sequence[BatchT]) -> StepResult:
        total, count, gradient = mx.array(0.0), 0, None
        for batch in batches:
            (loss, counted), found = self._loss_and_gradient(batch)
            if not counted:
                continue
            found = tree_map(lambda array: array.astype(mx.float32), found)
            gradient = found if gradient is None else tree_map(mx.add, gradient, found)
            total, count = total + loss, count + counted
            mx.eval(total, gradient)  # so that this batch's activations go before the next's come
        if gradient is None:
            raise InputError("none of the tokens of this step is supervised; nothing can be learnt")
        gradient = tree_map(lambda array: array / count, gradient)
        gradient, norm = clip_grad_norm(
            gradient, math.inf if self.max_norm is None else self.max_norm
        )
        loss, size = float(total) / count, float(norm)
        if not math.isfinite(loss) or not math.isfinite(size):
            raise RunError(
                f"the loss is {loss:g} and its gradient's norm {size:g}; nothing was updated. "
                "Lower the learning rate"
            )
        # In the parameters' dtype, or the optimizer would make them float32.
        trained = self.model.trainable_parameters()
        gradient = tree_map(lambda array, old: array.astype(old.dtype), gradient, trained)
        self.optimizer.update(self.model, gradient)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return StepResult(loss, count, size)
