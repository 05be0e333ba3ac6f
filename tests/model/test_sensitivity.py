"""Can the goldens tell? Each value of the config that is easy to get wrong must fail them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_llama4.config import Config
from mlx_llama4.model.llama4 import Llama4
from tests.golden import cases
from tests.golden.logits import goldens
from tests.tolerance import tolerance

# (golden model, what is wrong, change to its text config)
WRONG = [
    ("scout", "chunk 48 for 32", {"attention_chunk_size": 48}),
    ("scout", "no chunks", {"attention_chunk_size": None}),
    ("scout", "floor_scale 17 for 16", {"floor_scale": 17}),
    ("scout", "no temperature", {"attn_temperature_tuning": False}),
    ("scout", "attn_scale 0.11 for 0.1", {"attn_scale": 0.11}),
    ("scout", "no RoPE scaling", {"rope_scaling": None}),
    ("strong_rope", "no RoPE scaling", {"rope_scaling": None}),
    ("scout", "theta 10,000", {"rope_theta": 1e4}),
    ("scout", "no QK norm", {"use_qk_norm": False}),
    ("scout", "norms with epsilon 1e-6", {"rms_norm_eps": 1e-6}),
    ("maverick", "chunk 48 for 32", {"attention_chunk_size": 48}),
    ("maverick", "no chunks", {"attention_chunk_size": None}),
    ("maverick", "floor_scale 17 for 16", {"floor_scale": 17}),
    ("maverick", "no temperature", {"attn_temperature_tuning": False}),
    ("maverick", "attn_scale 0.11 for 0.1", {"attn_scale": 0.11}),
    ("maverick", "theta 10,000", {"rope_theta": 1e4}),
    ("maverick", "QK norm", {"use_qk_norm": True}),
    ("maverick", "norms with epsilon 1e-6", {"rms_norm_eps": 1e-6}),
    ("two_experts", "one expert for two", {"num_experts_per_tok": 1}),
    ("untuned", "temperature", {"attn_temperature_tuning": True}),
]


def error(model: Llama4, name: str) -> float:
    """Largest difference of logits to the golden's longest text."""
    length = cases.MODELS[name].texts[-1]
    logits = np.array(model(mx.array(cases.text_ids(length))))[0]
    return float(np.abs(logits - goldens(name)[f"text {length}"]).max())


def altered(model: Llama4, config: Config) -> Llama4:
    """The same weights under another config."""
    other = Llama4(config)
    for layer in other.language_model.model.layers:
        layer.self_attn.join_projections()  # as loading has done
    other.load_weights(tree_flatten(model.parameters()))
    return other


@pytest.mark.parametrize(("name", "what", "change"), WRONG)
def test_wrong_values_fail(
    golden_model: Callable[[str], Llama4], name: str, what: str, change: dict[str, Any]
) -> None:
    model = golden_model(name)
    text = dataclasses.replace(model.config.text, **change)
    wrong = altered(model, dataclasses.replace(model.config, text=text))
    found = error(wrong, name)
    print(f"{what}: {found:.1e}, right {error(model, name):.1e}")
    assert found > 2 * tolerance("text")


def test_wrong_epsilon_of_the_qk_norm_alone_fails(golden_model: Callable[[str], Llama4]) -> None:
    """Both peers have 1e-6 written into their code; small queries show it."""
    model = golden_model("small_qk")
    wrong = altered(model, model.config)
    for layer in wrong.language_model.model.layers:
        if layer.self_attn.chunked:
            layer.self_attn.norm_epsilon = 1e-6
    assert error(wrong, "small_qk") > 1
