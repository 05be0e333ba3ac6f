"""Cross-entropy of the tokens that a model shall learn to write, given those before them.

The head is the widest layer of the family: at 2,048 tokens its float32 logits take 1.7 GB, and
their gradient as much again. So only positions before a supervised token reach it, some at a time.

Shapes: B rows, L tokens, D hidden size, N supervised tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.nn.utils import checkpoint
from mlx.utils import tree_map

from mlx_llama4.errors import PromptError
from mlx_llama4.model.llama4 import ATTENTION_STEP, Llama4, make_layer_cache

# Of float32 logits at once: those of 83 tokens for the releases, enough for a matmul that computes
# for longer than it reads the head. The passes hold about nine arrays of this size (measured on
# MLX's CPU backend).
LOGITS_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Batch:
    """B conversations in rows of L tokens.

    Shorter ones are filled up on the right, with any id: attention is causal, so what follows the
    last supervised token changes nothing. Every row starts a sequence, at a chunk border.
    """

    ids: np.ndarray  # int [B, L]
    supervised: np.ndarray  # bool [B, L]: the loss counts this token
    # Normalised float32 [n, 3, S, S]: of all rows' pictures, in the order of their slots in `ids`.
    tiles: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raises PromptError if the arrays do not fit together."""
        if self.ids.ndim != 2 or self.ids.shape != self.supervised.shape:
            raise PromptError(
                f"a batch's ids and marks of supervised tokens need one shape [rows, tokens], "
                f"not {self.ids.shape} and {self.supervised.shape}"
            )
        if self.supervised.dtype != bool:
            raise PromptError(f"supervised tokens are marked by bool, not {self.supervised.dtype}")
        if self.supervised[:, :1].any():
            raise PromptError("a row's first token cannot be supervised: no token is before it")

    @property
    def num_supervised(self) -> int:
        return int(self.supervised.sum())


def supervised_loss(
    model: Llama4, batch: Batch, *, recompute: bool = False
) -> tuple[mx.array, int]:
    """The sum of -log p over the batch's supervised tokens, in nats, float32; and their number N.

    A sum, so that several batches add up to what one of all their rows would be.

    recompute: keep no activations within a layer for the backward pass but compute them again,
    which takes less memory and one more forward pass.
    """
    features = None if batch.tiles is None else model.image_features(batch.tiles)
    hidden = hidden_states(model, model.embed(batch.ids, features), recompute=recompute)
    rows, columns = np.nonzero(batch.supervised)
    if not len(rows):
        return mx.array(0.0), 0
    before = mx.array(rows * batch.ids.shape[1] + columns - 1)
    hidden = hidden.reshape(-1, hidden.shape[-1])[before]  # [N, D]
    targets = mx.array(batch.ids[rows, columns])
    return cross_entropy(model.language_model.lm_head, hidden, targets), len(rows)


def hidden_states(model: Llama4, embeddings: mx.array, *, recompute: bool = False) -> mx.array:
    """What the head reads: embeddings [B, L, D] → [B, L, D], after the final norm.

    recompute: as for `supervised_loss`.
    """
    text, x = model.config.text, embeddings
    for layer, kind in zip(model.language_model.model.layers, text.layers, strict=True):

        def run(x: mx.array, layer: nn.Module = layer, cache_kind=kind) -> mx.array:
            # The cache is made inside: the second pass must not find the first one's keys.
            return layer(x, make_layer_cache(text, cache_kind), ATTENTION_STEP)

        x = checkpoint(layer, run)(x) if recompute else run(x)
    return model.language_model.model.norm(x)


def cross_entropy(
    head: nn.Module, hidden: mx.array, targets: mx.array, *, logits_bytes: int = LOGITS_BYTES
) -> mx.array:
    """The sum of -log p(target), in nats, float32. hidden [N, D], targets int [N].

    Only about `logits_bytes` of float32 logits [.., V] are computed at once, both in the forward
    pass and in the backward pass, which computes them again.
    """
    at_once = max(1, logits_bytes // (4 * head.weight.shape[0]))
    places = [slice(start, start + at_once) for start in range(0, len(targets), at_once)]

    def of_some(parameters: dict, hidden: mx.array, targets: mx.array) -> mx.array:
        head.update(parameters)
        logits = head(hidden).astype(mx.float32)
        chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return (mx.logsumexp(logits, axis=-1) - chosen).sum()

    @mx.custom_function
    def of_all(parameters: dict, hidden: mx.array) -> mx.array:
        total = mx.array(0.0)
        for place in places:
            # One after the other: MLX would compute several at once, and hold their logits.
            some = mx.depends(hidden[place], total)
            total = total + of_some(parameters, some, targets[place])
        return total

    @of_all.vjp
    def backward(primals: tuple[dict, mx.array], cotangent: mx.array, total: mx.array):
        parameters, hidden = primals
        of_hidden: list[mx.array] = []
        of_parameters = tree_map(mx.zeros_like, parameters)
        for place in places:
            some = mx.depends(hidden[place], of_hidden[-1] if of_hidden else total)
            found, gradient = mx.grad(of_some, argnums=(0, 1))(parameters, some, targets[place])
            of_parameters = tree_map(mx.add, of_parameters, found)
            of_hidden.append(gradient)
        scaled = tree_map(lambda array: array * cotangent.astype(array.dtype), of_parameters)
        return scaled, mx.concatenate(of_hidden) * cotangent.astype(hidden.dtype)

    return cast(mx.array, of_all(head.trainable_parameters(), hidden))
