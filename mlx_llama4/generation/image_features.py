"""Keep the features of pictures by content, so that no picture is encoded twice."""

from collections.abc import Callable, Iterable

import mlx.core as mx
import numpy as np

from mlx_llama4.least_recently_used import LeastRecentlyUsed
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.image import PromptImage, RememberedImage
from mlx_llama4.prompt.prompt import PlacedImage, Prompt, place_images

OnEncode = Callable[[int, int], None]

FEATURE_BYTES = 512 * 2**20  # 20 pictures of 17 tiles, or 350 of one, for the releases


class ImageFeatureCache:
    """Features of one model, up to `budget` bytes; the least recently used go first."""

    def __init__(self, budget: int = FEATURE_BYTES):
        self._features: LeastRecentlyUsed[str, mx.array] = LeastRecentlyUsed(budget)
        self._announced: set[str] = set()
        self._encoded = 0
        self._on_encode: OnEncode | None = None

    @property
    def nbytes(self) -> int:
        return self._features.nbytes

    def get(self, model: Llama4, image: PromptImage) -> mx.array:
        """Return a picture's features, [num_tiles · tokens_per_tile, D], evaluated.

        Raises PromptError if they are not kept here and the picture's pixels are not available.
        """
        features = self._features.get(image.digest)
        if features is None:
            if self._on_encode and image.digest in self._announced:
                self._on_encode(self._encoded, len(self._announced))
                self._encoded += 1
            features = model.image_features(image.pixel_values())
            self.put(image.digest, features)
        return features

    def check(self, images: Iterable[PromptImage]) -> None:
        """Raise PromptError for a picture that `get` would refuse."""
        for image in images:
            if isinstance(image, RememberedImage) and self._features.get(image.digest) is None:
                image.pixel_values()

    def announce(self, images: Iterable[PromptImage], on_encode: OnEncode) -> None:
        """Call on_encode(encoded so far, to encode in all) before encoding each of these images."""
        unknown = (i.digest for i in images if self._features.get(i.digest) is None)
        self._announced, self._encoded, self._on_encode = set(unknown), 0, on_encode

    def put(self, digest: str, features: mx.array) -> None:
        self._features.put(digest, features, features.nbytes)


class PromptFeatures:
    """Features for a prompt's image slots from position `start` on, by range of tokens.

    All pictures that reach beyond `start` are encoded at once, so that an unreadable picture is
    refused before a long prompt is read, not in the middle of it.
    """

    def __init__(self, model: Llama4, prompt: Prompt, cache: ImageFeatureCache, start: int):
        self._slots = np.flatnonzero(prompt.ids == model.config.image_token_id)
        self._features = [
            (image, cache.get(model, image.image))
            for image in place_images(prompt, model.config)
            if image.stop > start
        ]

    def of(self, start: int, stop: int) -> mx.array | None:
        """[slots in start … stop - 1, D]; None if there are none."""
        parts = []
        for image, features in self._features:
            if image.start < stop and image.stop > start:
                parts.append(features[self._before(image, start) : self._before(image, stop)])
        return mx.concatenate(parts) if parts else None

    def _before(self, image: PlacedImage, position: int) -> int:
        """How many of the picture's slots come before a position."""
        begin, end, at = np.searchsorted(self._slots, [image.start, image.stop, position])
        return int(min(max(at, begin), end) - begin)
