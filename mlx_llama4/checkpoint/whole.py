"""Reads all weights of a checkpoint that is not converted, in the model's own layout."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.checkpoint.sources import dense, num_rows

if TYPE_CHECKING:
    import mlx.core as mx


def whole_weights(source: Source, dtype: "mx.Dtype") -> "Iterator[tuple[str, mx.array]]":
    """Yields each model tensor in `dtype`, converted to it lazily; its bytes are read here.

    Raises RunError for values that `dtype` cannot hold, and for a file that cannot be read.
    """
    for one in dict.fromkeys(source.matching.sources.values()):
        rows = num_rows(one)
        data = one.read(source.checkpoint, 0, rows, str(dtype).removeprefix("mlx.core."))
        for name, array in zip(one.targets, one.decode(data, 0, rows), strict=True):
            yield name, dense(array).astype(dtype)
