"""Random windows of tokens to compare models on."""

import numpy as np

from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.windows import Window
from tests import tiny


def windows_of(*lengths: int, first: int = 0) -> list[Window]:
    return [
        Window(Prompt(tiny.text_ids(length, seed=length)[0].astype(np.int32)), first)
        for length in lengths
    ]
