"""What a number of bytes buys, and floats on their way into a slot."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.errors import InputError
from mlx_llama4.offload.budget import LayerExperts, least_memory, plan_slots
from mlx_llama4.offload.float_types import as_type

MLX = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}
LAYERS = st.lists(
    st.builds(
        lambda count, size: LayerExperts(count, size, packing=size),
        st.integers(1, 20),
        st.sampled_from([100, 130, 700]),
    ),
    min_size=1,
    max_size=12,
)


@given(layers=LAYERS, extra=st.integers(0, 200_000))
def test_a_budget_is_kept_and_used(layers: list[LayerExperts], extra: int) -> None:
    least = least_memory(layers)
    plan = plan_slots(layers, least + extra)
    kept = sum(n * layer.expert_bytes for n, layer in zip(plan.slots, layers, strict=True))
    used = kept + plan.lanes * least + plan.buffers
    assert used <= least + extra
    assert all(n <= layer.count for n, layer in zip(plan.slots, layers, strict=True))
    wanting = [
        layer.expert_bytes for n, layer in zip(plan.slots, layers, strict=True) if n < layer.count
    ]
    assert not wanting or least + extra - used < min(wanting)


@given(layers=LAYERS, memory=st.integers(0, 930))
def test_less_than_one_expert_is_refused(layers: list[LayerExperts], memory: int) -> None:
    if memory < least_memory(layers):
        with pytest.raises(InputError, match="one expert alone takes"):
            plan_slots(layers, memory)


def test_scout_in_four_bits() -> None:
    """48 layers of 16 experts of 70.8 MB: two lanes, then two slots a layer or three."""
    layers = [LayerExperts(16, 70_778_880, packing="4 bits")] * 48
    plan = plan_slots(layers, 10 * 10**9)
    assert plan.lanes == 2
    assert plan.slots == (3,) * 39 + (2,) * 9
    assert plan.buffers == 256 * 2**20


def test_one_layer_s_worth_for_each() -> None:
    assert plan_slots([LayerExperts(8, 1000, "a")] * 4, 4000).slots == (1, 1, 0, 0)
    assert plan_slots([LayerExperts(8, 1000, "a")] * 4, 1000).slots == (0, 0, 0, 0)


@pytest.mark.parametrize("target", MLX)
@pytest.mark.parametrize("source", MLX)
def test_floats_become_what_mlx_makes_of_them(source: str, target: str) -> None:
    """All of 16 bits; of 32 a million at random, which covers every exponent."""
    if source == "F32":
        bits = np.random.RandomState(0).randint(0, 2**32, 10**6, np.uint64).astype(np.uint32)
    else:
        bits = np.arange(2**16, dtype=np.uint16)
    expected = mx.array(bits).view(MLX[source]).astype(MLX[target])
    found = as_type(bits, source, target)
    is_nan = np.array(mx.isnan(expected))
    assert np.array_equal(np.array(mx.isnan(mx.array(found).view(MLX[target]))), is_nan)
    whole = mx.uint32 if target == "F32" else mx.uint16
    assert np.array_equal(found[~is_nan], np.array(expected.view(whole))[~is_nan])
