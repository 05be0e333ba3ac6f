"""A prompt cache on disk: one safetensors file.

    layers.N.keys, layers.N.values      [1, kv_heads, tokens, head_dim]; packed ones have
                                        layers.N.keys.codes, .scales and .biases instead
    ids                                 int32, of all tokens
    features.DIGEST                     [features, hidden_size], of the picture with that digest
    conversation                        uint8: JSON in UTF-8

Global layers have all tokens, chunked layers those since the last border. The small form leaves out
all keys and values from that border on; ids and features are enough to compute them again.

The header and each array have a CRC-32, which is checked when they are read. Files of version 0.1.0
have none.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.chunked import ChunkedKVCache
from mlx_llama4.cache.kv import KVCache, Rows
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.cache.quantized import PARTS, QuantizedKVCache
from mlx_llama4.checkpoint.safetensors import LENGTH_BYTES, StoredTensor, read_header
from mlx_llama4.errors import CheckpointError, OutputError
from mlx_llama4.files.mlx_arrays import array_bytes
from mlx_llama4.files.safetensors_file import (
    CHECKSUMS,
    check_place,
    checksums_of,
    load_safetensors,
    write_safetensors,
)
from mlx_llama4.prompt.image import RememberedImage
from mlx_llama4.prompt.prompt import PlacedImage
from mlx_llama4.quantization import KVQuantization

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.identity import Identity
    from mlx_llama4.prompt.image import PromptImage

# Names of a layer's arrays: none, plain, packed.
LAYER_NAMES: tuple[set[str], ...] = (
    set(),
    {"keys", "values"},
    {f"{name}.{part}" for name in ("keys", "values") for part in PARTS},
)
FORMAT = "mlx-llama4 prompt cache"
VERSION = 1
HEADER_START = 200  # bytes
MOST_TILES = 1000  # of a picture; far above what any release asks for
KEYS = {"format", "version", "held", "images", "name", "model", "tokenizer", "packing"}

# Features of a picture; None if they are not known.
FeaturesOf = Callable[["PromptImage"], mx.array | None]


@dataclass(frozen=True)
class Loaded:
    """The contents of a prompt file."""

    cache: PromptCache
    ids: np.ndarray  # of all tokens; in the small form the cache holds fewer
    features: Mapping[str, mx.array]  # picture's digest → [features, hidden_size]
    conversation: Any


def check_prompt_place(path: Path, nbytes: int = 0) -> None:
    """Raises OutputError if a prompt cache of that size cannot be written there, or would replace a
    file that is not a prompt cache.
    """
    check_place(path, nbytes)
    try:
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(HEADER_START)
            # The header names the format first, so even a truncated file shows it.
            if start and FORMAT.encode() not in start:
                raise OutputError(
                    f"{path} exists and is not a prompt cache; give another name, or remove it "
                    "first"
                )
    except OSError as failure:
        raise OutputError(f"cannot write {path}: {failure.strerror or failure}") from None


def save_prompt_file(
    path: Path,
    cache: PromptCache,
    identity: "Identity",
    *,
    conversation: Any = None,
    pictures: Iterable["PromptImage"] = (),
    features_of: FeaturesOf = lambda image: None,
    small: bool = False,
) -> int:
    """Writes `cache`, and `conversation` as JSON, to a file. Returns its size in bytes.

    pictures: all of the conversation's; the cache may hold fewer.
    Raises OutputError or RunError, and then leaves what was there before untouched.
    """
    check_prompt_place(path)
    ids, images = cache.ids, cache.images
    border = _border(cache)
    if small:
        cache = cache.copy()
        cache.rewind(border)
    arrays: dict[str, mx.array] = {"ids": mx.array(ids)}
    text = json.dumps(conversation, ensure_ascii=False, default=_describe)
    arrays["conversation"] = mx.array(np.frombuffer(text.encode("utf-8"), np.uint8))
    # The small form needs no features of pictures that lie before the border.
    passed = {placed.image.digest for placed in images if small and placed.stop <= border}
    passed -= {placed.image.digest for placed in images if placed.stop > border}
    for image in [*(placed.image for placed in images), *pictures]:
        if image.digest not in passed and (features := features_of(image)) is not None:
            arrays[f"features.{image.digest}"] = features
    for number, layer in enumerate(cache.layers):
        for name, row in _rows(layer, border).items():
            arrays[f"layers.{number}.{name}"] = row
    packing = _packing(cache.layers)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "held": str(len(cache.ids)),
        "images": json.dumps([[i.start, i.stop, _describe(i.image)] for i in images]),
        "name": identity.name,
        "model": identity.model,
        "tokenizer": identity.tokenizer,
        "packing": json.dumps([packing.bits, packing.group_size] if packing else None),
    }
    return write_safetensors(path, arrays, metadata)


class PromptFile:
    """An opened file: its header is read and checked, its arrays are not read yet.

    Raises CheckpointError if the file is not a prompt cache, or is damaged.
    """

    def __init__(self, path: str | Path):
        path = self.path = Path(path)
        self._tensors = {tensor.name: tensor for tensor in self._header()}
        try:
            header = self._header_bytes()
            metadata = json.loads(header[LENGTH_BYTES:]).get("__metadata__") or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is not a prompt cache; make one with: mlx-llama4 cache PROMPT_FILE "
                    f"--model MODEL -o {path.name}"
                )
            if metadata["version"] != str(VERSION):
                raise CheckpointError(
                    f"{path} is a prompt cache of version {metadata['version']}; this program "
                    f"reads only version {VERSION}, so make it again"
                )
            if metadata.keys() - {CHECKSUMS} != KEYS:
                raise self._damaged()
            stored = sorted(self._tensors.values(), key=lambda tensor: tensor.offset)
            names = [tensor.name for tensor in stored]
            self._checksums = checksums_of(header, metadata, names)
            self.held = int(metadata["held"])
            self.name, self._model = metadata["name"], metadata["model"]
            self._tokenizer = metadata["tokenizer"]
            packing = json.loads(metadata["packing"])
            self.quantization = KVQuantization(*packing) if packing else None
            self._images = [
                PlacedImage(_described(image), start, stop)
                for start, stop, image in json.loads(metadata["images"])
            ]
            self.tokens = self._tensors["ids"].shape[0]
        except (KeyError, ValueError, TypeError, OSError, IndexError, AttributeError):
            raise self._damaged() from None

    @property
    def has_checksums(self) -> bool:
        """Would damage to its arrays be noticed? Version 0.1.0 wrote no checksums."""
        return bool(self._checksums)

    def check(self, identity: "Identity", quantization: KVQuantization | None) -> None:
        """Raises CheckpointError if the file was made with another model or tokenizer, or packs
        keys and values in another way.
        """
        if self._model != identity.model:
            raise CheckpointError(
                f"{self.path} was made with another model ({self.name}) than this one "
                f"({identity.name}); make it again with the model that is to use it"
            )
        if self._tokenizer != identity.tokenizer:
            raise CheckpointError(
                f"{self.path} was made with another tokenizer or chat template than "
                f"{identity.name} has now; make it again"
            )
        ours = self.quantization
        if (
            ours
            and quantization
            and ours != KVQuantization(quantization.bits, quantization.group_size)
        ):
            raise CheckpointError(
                f"{self.path} has keys and values of {ours.bits} bits in groups of "
                f"{ours.group_size}, not {quantization.bits} in {quantization.group_size}; leave "
                "--kv-bits and --kv-group-size out, or make it again"
            )

    def load(self, layers: Sequence[KVCache], dtype: mx.Dtype) -> Loaded:
        """Reads the file into fresh caches, one a layer, one layer at a time. Arrays that are not
        packed become `dtype`. Raises CheckpointError if the file's parts do not fit together.
        """
        try:
            return self._load(layers, dtype)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            raise self._damaged() from None

    def _load(self, layers: Sequence[KVCache], dtype: mx.Dtype) -> Loaded:
        arrays = load_safetensors(self.path)
        cache = PromptCache(layers)
        for number, layer in enumerate(layers):
            prefix = f"layers.{number}."
            names = [name for name in arrays if name.startswith(prefix)]
            self._fill(
                layer,
                {
                    name.removeprefix(prefix): _cast(self._intact(name, arrays.pop(name)), dtype)
                    for name in names
                },
            )
            mx.eval(layer.arrays)  # or all layers, and copies of them, would be in memory at once
        arrays = {name: self._intact(name, array) for name, array in arrays.items()}
        ids = np.array(arrays["ids"])
        cache.record(ids, self._images)
        features = {
            name.removeprefix("features."): _cast(array, dtype)
            for name, array in arrays.items()
            if name.startswith("features.")
        }
        text = bytes(np.array(arrays["conversation"])).decode("utf-8")
        return Loaded(cache, ids, features, _with_images(json.loads(text)))

    def _intact(self, name: str, array: mx.array) -> mx.array:
        if self._checksums and zlib.crc32(array_bytes(array)) != self._checksums[name]:
            raise self._damaged()
        return array

    def _fill(self, layer: KVCache, rows: Rows) -> None:
        lengths = {row.shape[2] for row in rows.values()}
        start = 0
        if isinstance(layer, ChunkedKVCache) and layer.chunk_size:
            start = self.held // layer.chunk_size * layer.chunk_size
            layer.skip_to(start)
        expected = {self.held - start} if self.held > start else set()
        if lengths != expected or set(rows) not in LAYER_NAMES:
            raise self._damaged()
        if rows:
            layer.append(rows)

    def _header(self) -> list[StoredTensor]:
        try:
            if not self.path.exists():
                raise CheckpointError(
                    f"{self.path} does not exist; give the path of a prompt cache"
                )
            if self.path.is_dir():
                raise CheckpointError(f"{self.path} is a folder; give the path of a prompt cache")
        except OSError as failure:
            raise CheckpointError(f"cannot read {self.path}: {failure.strerror}") from None
        try:
            return read_header(self.path)
        except CheckpointError as error:
            # Its advice is for downloaded files.
            raise CheckpointError(
                str(error).replace("download it again", "make it again")
            ) from None

    def _header_bytes(self) -> bytes:
        with self.path.open("rb") as file:
            length = file.read(LENGTH_BYTES)
            return length + file.read(int.from_bytes(length, "little"))

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged; make it again")


def _border(cache: PromptCache) -> int:
    """The last border at or before the end; 0 without borders."""
    sizes = [layer.chunk_size for layer in cache.layers if isinstance(layer, ChunkedKVCache)]
    length = len(cache.ids)
    return min((length // size * size if size else 0 for size in sizes), default=length)


def _rows(layer: KVCache, border: int) -> Rows:
    start = border if isinstance(layer, ChunkedKVCache) else 0
    return layer.rows(start, layer.offset) if layer.offset > start else {}


def _packing(layers: Sequence[KVCache]) -> KVQuantization | None:
    packed = (
        layer.quantization
        for layer in layers
        if isinstance(layer, QuantizedKVCache) and layer.is_packed
    )
    return next(packed, None)


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def _describe(image: "PromptImage") -> list[Any]:
    source = None if image.source is None else str(image.source)
    return [image.digest, image.num_tiles, image.grid, image.size, source]


def _described(entry: list[Any]) -> RememberedImage:
    """Raises ValueError or TypeError unless the entry describes a picture as `_describe` does."""
    digest, num_tiles, grid, size, *source = entry  # older files lack the source
    rows, columns = grid
    numbers = [num_tiles, rows, columns, *size]
    if len(numbers) != 5 or not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(entry)
    tiles = rows * columns
    if num_tiles > MOST_TILES or num_tiles != tiles + (tiles > 1) or not isinstance(digest, str):
        raise ValueError(entry)
    path = Path(source[0]) if source and source[0] else None
    return RememberedImage(digest, num_tiles, (rows, columns), tuple(size), path)


def _with_images(value: Any) -> Any:
    """The conversation, with pictures in place of their descriptions."""
    if isinstance(value, list):
        return [_with_images(item) for item in value]
    if isinstance(value, dict) and value.get("type") == "image":
        return {"type": "image", "image": _described(value["image"])}
    if isinstance(value, dict):
        return {key: _with_images(item) for key, item in value.items()}
    return value
