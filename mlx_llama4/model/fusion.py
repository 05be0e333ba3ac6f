"""Early fusion: image features take the place of the <|patch|> tokens' embeddings."""

import mlx.core as mx
import numpy as np

from mlx_llama4.errors import PromptError


def fuse(
    embeddings: mx.array, ids: np.ndarray, features: mx.array, image_token_id: int
) -> mx.array:
    """Embeddings [B, L, D] with row i of features [N, D] at the i-th <|patch|> of ids [B, L].

    The ids are on the host, so finding the slots waits for no device.
    Raises PromptError unless there are exactly N such ids.
    """
    slots = np.flatnonzero(ids.reshape(-1) == image_token_id)
    if len(slots) != features.shape[0]:
        raise PromptError(
            f"the prompt has {len(slots)} <|patch|> tokens but its images give "
            f"{features.shape[0]} features"
        )
    if not len(slots):
        return embeddings
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    flat[mx.array(slots)] = features.astype(flat.dtype)
    return flat.reshape(embeddings.shape)
