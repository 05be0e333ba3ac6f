"""Which tensor goes into which file."""

from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.convert.shards import OutputTensor, assign_shards

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=5)  # bytes of a layer's tensors


@given(layers=st.lists(SIZES, min_size=1, max_size=8), limit=st.integers(1, 120))
def test_layers_stand_together(layers: list[list[int]], limit: int) -> None:
    tensors = {
        f"m.layers.{layer}.t{index}.weight": OutputTensor("U8", (size,))
        for layer, sizes in enumerate(layers)
        for index, size in enumerate(sizes)
    }
    shards = assign_shards(tensors, limit)
    assert [name for names in shards.values() for name in names] == list(tensors)
    for names in shards.values():
        assert names
        assert len(names) == 1 or sum(tensors[name].nbytes for name in names) <= limit
    for layer, sizes in enumerate(layers):
        holding = [f for f, names in shards.items() if any(f".{layer}." in n for n in names)]
        assert len(holding) == 1 or sum(sizes) > limit
    count = len(shards)
    expected = {f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)}
    assert shards.keys() == (expected if count > 1 else {"model.safetensors"})
