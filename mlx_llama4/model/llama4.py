"""Llama 4: a text tower, and in multimodal checkpoints a vision tower and a projector.

Module names are the tensor names of an MLX folder (tensors.py). The model knows ids and pixels, not
text.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_llama4.cache.chunked import ChunkedKVCache
from mlx_llama4.cache.kv import AttentionCache, KVCache
from mlx_llama4.cache.quantized import QuantizedKVCache
from mlx_llama4.config import Config, LayerKind, TextConfig
from mlx_llama4.errors import PromptError
from mlx_llama4.memory import TILES_PER_BATCH
from mlx_llama4.model.block import Block
from mlx_llama4.model.fusion import fuse
from mlx_llama4.model.projector import MultiModalProjector
from mlx_llama4.model.streaming import ExpertCache, StreamingStatistics
from mlx_llama4.model.vision import VisionModel
from mlx_llama4.quantization import KVQuantization

# The most queries of one attention call. Without a fused kernel, the more keys there are, the fewer
# queries a call takes (memory.queries_at_once).
ATTENTION_STEP = 2048


def make_layer_cache(
    text: TextConfig, kind: LayerKind, quantization: KVQuantization | None = None
) -> KVCache:
    """An empty cache for a layer of this kind; `quantization` is for global layers."""
    if kind.attention == "chunked":
        return ChunkedKVCache(text.attention_chunk_size)
    return KVCache() if quantization is None else QuantizedKVCache(quantization)


class TextModel(nn.Module):
    """Embeddings, decoder layers and the final norm."""

    def __init__(self, text: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.layers = [Block(text, kind) for kind in text.layers]
        self.norm = nn.RMSNorm(text.hidden_size, text.rms_norm_eps)

    def embed(self, ids: mx.array) -> mx.array:
        """ids int [B, L] → [B, L, D]"""
        # MLX unpacks its mx modes to bfloat16, since their scales have no float dtype.
        return self.embed_tokens(ids).astype(self.norm.weight.dtype)

    def __call__(
        self, x: mx.array, cache: Sequence[AttentionCache], attention_step: int, last_only: bool
    ) -> mx.array:
        final = self.layers[-1]
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, layer_cache, attention_step, last_only and layer is final)
        return self.norm(x)


class LanguageModel(nn.Module):
    """The text model and its head."""

    def __init__(self, text: TextConfig):
        super().__init__()
        self.model = TextModel(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def __call__(
        self, x: mx.array, cache: Sequence[AttentionCache], attention_step: int, last_only: bool
    ) -> mx.array:
        return self.lm_head(self.model(x, cache, attention_step, last_only))


class Llama4(nn.Module):
    """B rows of L tokens → logits [B, L, vocabulary]. All rows of a batch have L tokens."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.expert_cache: ExpertCache | None = None  # where experts are read from the disk
        self.language_model = LanguageModel(config.text)
        if config.vision is not None:
            self.vision_model = VisionModel(config.vision)
            self.multi_modal_projector = MultiModalProjector(
                config.vision.vision_output_dim, config.text.hidden_size
            )

    def __repr__(self) -> str:
        # One line: nn.Module's has one for each of some thousand modules.
        text = self.config.text
        kind = "text only" if self.config.vision is None else "text and images"
        where = "" if self.expert_cache is None else ", experts on the disk"
        experts = f"{text.num_local_experts} experts" if text.num_local_experts else "dense"
        return (
            f"Llama4({text.num_hidden_layers} layers of {text.hidden_size}, "
            f"{experts}, {kind}{where})"
        )

    @property
    def expert_statistics(self) -> StreamingStatistics | None:
        """What streaming cost so far; None if all experts are in memory."""
        return None if self.expert_cache is None else self.expert_cache.statistics

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[AttentionCache] | None = None,
        *,
        last_only: bool = False,
        attention_step: int = ATTENTION_STEP,
    ) -> mx.array:
        """Logits after each token of `inputs`: ids [B, L] or embeddings [B, L, D].

        The tokens continue those in `cache`, which takes them in; without a cache they start a new
        sequence. `last_only` returns the last position's logits alone.
        """
        embeddings = self.language_model.model.embed(inputs) if inputs.ndim == 2 else inputs
        cache = self.make_cache() if cache is None else cache
        return self.language_model(embeddings, cache, attention_step, last_only)

    def make_cache(self, quantization: KVQuantization | None = None) -> list[KVCache]:
        """An empty cache for each layer. `quantization` packs those of global layers.

        Raises InputError if this model's heads cannot be packed that way.
        """
        text = self.config.text
        if quantization is not None:
            quantization.check(text.head_dim)
        return [make_layer_cache(text, kind, quantization) for kind in text.layers]

    def embed(self, ids: np.ndarray, features: mx.array | None = None) -> mx.array:
        """Embeddings [B, L, D] of ids [B, L], with image features [N, D] in their slots."""
        embeddings = self.language_model.model.embed(mx.array(ids))
        if self.config.image_token_id is None:
            return embeddings
        if features is None:
            features = mx.zeros((0, embeddings.shape[-1]), embeddings.dtype)
        return fuse(embeddings, ids, features, self.config.image_token_id)

    def image_features(self, tiles: np.ndarray) -> mx.array:
        """Normalised tiles [n, 3, S, S] → features [n · tokens_per_tile, D], evaluated.

        The tower takes a few tiles at a time, because its activations are far larger than its
        features.
        """
        if self.config.vision is None:
            raise PromptError("this checkpoint has no vision tower; it cannot take images")
        features = []
        dtype = self.vision_model.class_embedding.dtype
        for start in range(0, len(tiles), TILES_PER_BATCH):
            pixels = mx.array(tiles[start : start + TILES_PER_BATCH]).astype(dtype)
            batch = self.multi_modal_projector(self.vision_model(pixels))
            mx.eval(batch)
            features.append(batch.reshape(-1, batch.shape[-1]))
        return mx.concatenate(features)
