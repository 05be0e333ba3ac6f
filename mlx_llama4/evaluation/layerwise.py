"""Run a forward pass through a model that is never in memory as a whole.

Weights are read layer by layer, and within a layer expert by expert; each is widened to float32,
used on every token and dropped. The largest thing in memory is one expert or one MLP, not a layer.
Any folder that `convert` reads will do, converted or not. Packed weights are unpacked, so that all
formats go through the same arithmetic and differ only in what they store.

Shapes: L tokens, D hidden size, k experts per token.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.checkpoint.sources import BLOCK_BYTES, PackedRows, WeightSource, num_rows, row_bytes
from mlx_llama4.errors import PromptError
from mlx_llama4.model.block import Block
from mlx_llama4.model.feed_forward import FeedForward
from mlx_llama4.model.fusion import fuse
from mlx_llama4.model.llama4 import ATTENTION_STEP, Llama4, make_layer_cache
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.tensors import EMBEDDING, HEAD, VISION_PREFIXES

# Tokens that pass through a layer at once; this bounds the activations, however long a window is.
# A picture of 17 tiles is one span.
SPAN = 2560
FINAL_NORM = "language_model.model.norm.weight"
EXPERTS = "feed_forward.experts."

# Weight sources to read together, each with a range of rows.
Slice = list[tuple[WeightSource, int, int]]


@dataclass(eq=False)
class _Span:
    """Some tokens of a prompt."""

    x: mx.array  # hidden states [1, L, D]


@dataclass(frozen=True)
class _Routed:
    """The work of one layer's routed experts for a span."""

    span: _Span
    inputs: mx.array  # [L · k, D]
    experts: np.ndarray  # [L · k], the expert of each


class LayerwiseModel:
    """A model whose weights are read while it runs. The source must be complete.

    on_bytes is called with the size of each slice of weights once it has been used. The sizes add
    up to `nbytes` when the head has been read.
    """

    def __init__(self, source: Source, on_bytes: Callable[[int], None] = lambda nbytes: None):
        self.config = source.config
        self._checkpoint = source.checkpoint
        self._sources = source.matching.sources
        self._on_bytes = on_bytes

    @property
    def nbytes(self) -> int:
        return sum(map(_slice_bytes, self._whole(self._sources)))

    def hidden_states(self, prompts: Sequence[Prompt]) -> list[mx.array]:
        """Compute each prompt's hidden states after the last norm, as the head needs them:
        float32 [L, D].

        Raises PromptError for images that do not match their prompt, RunError for a weight that is
        not finite or a file that can no longer be read.
        """
        embeddings = self._embed(prompts)
        windows = [
            [_Span(x[:, start : start + SPAN]) for start in range(0, x.shape[1], SPAN)]
            for x in embeddings
        ]
        del embeddings
        for index in range(self.config.text.num_hidden_layers):
            self._run_layer(index, windows)
            mx.clear_cache()
        norm = nn.RMSNorm(self.config.text.hidden_size, self.config.text.rms_norm_eps)
        self._load(norm, [FINAL_NORM], FINAL_NORM.removesuffix("weight"))
        return [self._normed(norm, windows.pop(0)) for _ in prompts]

    def head_blocks(self, rows: int) -> Iterator[mx.array]:
        """Yield the head's weights in blocks, float32 [rows, D], in vocabulary order."""
        for block in self._read(self._blocks(HEAD, rows)):
            yield block[HEAD]

    @staticmethod
    def _normed(norm: nn.RMSNorm, spans: list[_Span]) -> mx.array:
        hidden = norm(mx.concatenate([span.x[0] for span in spans]))
        mx.eval(hidden)
        return hidden

    def _embed(self, prompts: Sequence[Prompt]) -> list[mx.array]:
        """Embeddings [1, L, D] of each prompt, with its images' features in their slots."""
        features = self._image_features(prompts)
        ids = np.concatenate([prompt.ids for prompt in prompts])
        rows = max(1, BLOCK_BYTES // row_bytes(self._sources[EMBEDDING]))
        embeddings = mx.zeros((len(ids), self.config.text.hidden_size))
        start = 0
        for block in self._read(self._blocks(EMBEDDING, rows)):
            stop = start + len(block[EMBEDDING])
            places = np.flatnonzero((start <= ids) & (ids < stop))
            if len(places):
                embeddings[mx.array(places)] = block[EMBEDDING][mx.array(ids[places] - start)]
                mx.eval(embeddings)
            start = stop
        borders = np.cumsum([len(prompt.ids) for prompt in prompts])[:-1].tolist()
        return [
            x[None] if found is None else fuse(x[None], prompt.ids[None], found, self._patch_id)
            for x, prompt, found in zip(
                mx.split(embeddings, borders), prompts, features, strict=True
            )
        ]

    @property
    def _patch_id(self) -> int:
        if self.config.image_token_id is None:
            raise PromptError("this checkpoint has no vision tower; leave out the images")
        return self.config.image_token_id

    def _image_features(self, prompts: Sequence[Prompt]) -> list[mx.array | None]:
        """Compute each prompt's image features [N, D]; None without images. The vision tower is
        read whole, since it is only as large as a few experts.
        """
        names = [name for name in self._sources if name.startswith(VISION_PREFIXES)]
        if not any(prompt.images for prompt in prompts):
            self._on_bytes(sum(map(_slice_bytes, self._whole(names))))
            return [None] * len(prompts)
        model = Llama4(self.config)  # MLX is lazy: what is not loaded takes no memory
        del model["language_model"]
        self._load(model, names)
        features: list[mx.array | None] = []
        for prompt in prompts:
            found = [model.image_features(image.pixel_values()) for image in prompt.images]
            features.append(mx.concatenate(found) if found else None)
        mx.eval([one for one in features if one is not None])
        return features

    def _run_layer(self, index: int, windows: list[list[_Span]]) -> None:
        """Run all tokens through layer `index`."""
        text = self.config.text
        kind = text.layers[index]
        prefix = f"language_model.model.layers.{index}."
        block = Block(text, kind)
        if kind.feed_forward == "moe":
            del block.feed_forward["experts"]  # read one by one below
        names = [name for name in self._sources if name.startswith(prefix)]
        self._load(block, [name for name in names if EXPERTS not in name], prefix)
        routed: list[_Routed] = []
        for spans in windows:
            cache = make_layer_cache(text, kind)
            for span in spans:
                if kind.feed_forward == "dense":
                    span.x = block(span.x, cache, ATTENTION_STEP)
                    mx.eval(span.x)
                    continue
                x = block.attend(span.x, cache, ATTENTION_STEP)
                normed = block.post_attention_layernorm(x)
                span.x = x + block.feed_forward.shared_expert(normed)
                inputs, experts = block.feed_forward.route(normed)
                mx.eval(span.x, inputs)
                routed.append(_Routed(span, inputs, np.array(experts)))
        del block
        if kind.feed_forward == "moe":
            self._add_experts([name for name in names if EXPERTS in name], routed)

    def _add_experts(self, names: Sequence[str], routed: Sequence[_Routed]) -> None:
        """Add the routed experts' output to a layer's; experts that no token chose are not read."""
        chosen = np.unique(np.concatenate([one.experts for one in routed])).tolist()
        sources = self._distinct(names)
        slices = [[(source, expert, expert + 1) for source in sources] for expert in chosen]
        for expert, weights in zip(chosen, self._read(slices), strict=True):
            self._add_expert(expert, weights, routed)
        unread = self.config.text.num_local_experts - len(chosen)
        self._on_bytes(_slice_bytes([(source, 0, unread) for source in sources]))

    def _add_expert(
        self, expert: int, weights: dict[str, mx.array], routed: Sequence[_Routed]
    ) -> None:
        text = self.config.text
        mlp = FeedForward(text.hidden_size, text.intermediate_size)
        # Squeeze, because indexing would copy.
        mlp.load_weights(
            [(name.split(EXPERTS)[1], array.squeeze(0)) for name, array in weights.items()]
        )
        for one in routed:
            inputs = np.flatnonzero(one.experts == expert)
            if len(inputs):
                span, tokens = one.span, mx.array(inputs // text.num_experts_per_tok)
                span.x = span.x.at[0, tokens].add(mlp(one.inputs[mx.array(inputs)]))
                mx.eval(span.x)

    def _load(self, module: nn.Module, names: Iterable[str], prefix: str = "") -> None:
        """Load all of a module's weights; `prefix` is the module's own path."""
        weights: dict[str, mx.array] = {}
        for arrays in self._read(self._whole(names)):
            weights.update(arrays)
        module.load_weights([(name.removeprefix(prefix), w) for name, w in weights.items()])

    def _distinct(self, names: Iterable[str]) -> list[WeightSource]:
        """Each source once, since gate and up may share one."""
        return list(dict.fromkeys(self._sources[name] for name in names))

    def _whole(self, names: Iterable[str]) -> list[Slice]:
        return [[(source, 0, num_rows(source))] for source in self._distinct(names)]

    def _blocks(self, name: str, rows: int) -> list[Slice]:
        source = self._sources[name]
        last = num_rows(source)
        return [[(source, start, min(start + rows, last))] for start in range(0, last, rows)]

    def _read(self, slices: Sequence[Slice]) -> Iterator[dict[str, mx.array]]:
        """Yield each slice as {model tensor: float32 rows}, while reading the next one."""
        with ThreadPoolExecutor(1, "read") as reader:
            reading = deque(reader.submit(self._fetch, slice_) for slice_ in slices[:1])
            for index, slice_ in enumerate(slices):
                data = reading.popleft().result()
                reading.extend(reader.submit(self._fetch, one) for one in slices[index + 1 :][:1])
                arrays: dict[str, mx.array] = {}
                for (source, start, stop), part in zip(slice_, data, strict=True):
                    decoded = source.decode(part, start, stop)
                    arrays.update(zip(source.targets, map(_dense, decoded), strict=True))
                mx.eval(arrays)
                del data, part, decoded
                yield arrays
                arrays.clear()  # or they would stay in memory until the next ones are made
                self._on_bytes(_slice_bytes(slice_))

    def _fetch(self, slice_: Slice) -> list[list[np.ndarray]]:
        return [
            source.read(self._checkpoint, start, stop, "float32") for source, start, stop in slice_
        ]


def _slice_bytes(slice_: Slice) -> int:
    return sum((stop - start) * row_bytes(source) for source, start, stop in slice_)


def _dense(rows: mx.array | PackedRows) -> mx.array:
    dense = rows.dense() if isinstance(rows, PackedRows) else rows.astype(mx.float32)
    return mx.contiguous(dense)
