"""Reuse what earlier prompts left in a cache for the next prompt."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.config import Config
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import ignore_progress
from mlx_llama4.prompt.prompt import Prompt, place_images


@contextlib.contextmanager
def feeding(
    prompt: Prompt,
    config: Config,
    cache: PromptCache,
    prefixes: PrefixStore,
    features: ImageFeatureCache,
    tokens: int,
    generated: Sequence[int] = (),
    on_picture: Callable[[int, int], None] = ignore_progress,
) -> Iterator[None]:
    """Reuse the longest known prefix of `prompt` and reserve room for `tokens` tokens.

    On exit, even by an error, record how much of the prompt and of `generated` the cache now holds.
    on_picture is called with (pictures encoded, pictures to encode) before each picture.
    """
    images = place_images(prompt, config)
    held = prefixes.reach(cache, prompt.ids, images)
    # Before the cache is cut: without the pictures it could not be filled again.
    needed = [image.image for image in images if image.stop > held]
    features.check(needed)
    features.announce(needed, on_picture)
    cache.reserve(tokens)
    prefixes.fit(cache, prompt.ids, images)
    try:
        yield
    finally:
        ids = np.concatenate([prompt.ids, np.array(generated, np.int32)])
        cache.record(ids, images)
