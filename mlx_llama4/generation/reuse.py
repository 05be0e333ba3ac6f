"""What earlier prompts have left in a cache, made use of for the next prompt."""

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
    """Have the cache hold as much as is known of the prompt's beginning, with room for `tokens`
    tokens; then, however it ends, note how much of the prompt and of what was `generated` it has
    come to hold. on_picture is told (pictures encoded, pictures to encode) before each.
    """
    images = place_images(prompt, config)
    held = prefixes.reach(cache, prompt.ids, images)
    # Before the cache is cut, which might not be fed again without the pictures either.
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
