"""Random models of the releases' proportions with everything divided by one number."""

from pathlib import Path

from benchmarks.harness.presets import unpacked_dtype
from benchmarks.harness.source import Size, check_room, write_checkpoint
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError

SCALES = (1, 2, 4, 8, 16, 32, 64)
# A prefill computes only keys and values in the last layer. So of five layers, three chunked ones
# and a global one do all their work, which is the releases' mix.
LAYERS = 5
SCALE, EXPERTS = 16, 16
VOCABULARY = 2048
BITS = (4, 8)
GROUP_SIZE = 64


def scaled_down(
    scale: int = SCALE, layers: int = LAYERS, experts: int = EXPERTS, global_layers: bool = True
) -> Size:
    """All widths and the chunk divided alike, so that attention keeps its share of the work.

    Heads stay 128 wide while there are eight key-value heads to divide; each serves 5 queries.
    Raises InputError for another scale.
    """
    if scale not in SCALES:
        raise InputError(f"--scale {scale}: choose of {', '.join(map(str, SCALES))}")
    key_value_heads = max(8 // scale, 1)
    return Size(
        hidden_size=5120 // scale,
        layers=layers,
        experts=experts,
        expert_width=8192 // scale,
        vocabulary=VOCABULARY,
        head_dim=1024 // scale // key_value_heads,
        heads=5 * key_value_heads,
        key_value_heads=key_value_heads,
        chunk=8192 // scale,
        global_layers=global_layers,
    )


def check_bits(bits: int | None, size: Size) -> None:
    """Raises InputError if a model of this size cannot be packed so."""
    if bits is None:
        return
    if bits not in BITS:
        raise InputError(f"--bits {bits}: choose of {', '.join(map(str, BITS))}")
    if size.hidden_size % GROUP_SIZE:
        raise InputError(
            f"--bits {bits}: a row of {size.hidden_size} weights does not divide into groups of "
            f"{GROUP_SIZE}; --scale 16 or less does"
        )


def feed_forward_over_attention(size: Size) -> float:
    """FLOPs of a token's two MLPs over those of its attention to one chunk of keys."""
    feed_forward = 2 * 6 * size.hidden_size * size.expert_width
    return feed_forward / (4 * size.heads * size.head_dim * size.chunk)


def write_model(size: Size, bits: int | None, folder: Path) -> tuple[Path, str]:
    """A model folder that all engines load, and the dtype of what is not packed in it."""
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.run import convert
    from mlx_llama4.quantization import Quantization

    dtype = unpacked_dtype()
    packing = None if bits is None else Quantization(GROUP_SIZE, bits)
    with terminal.status("Writing the model"):
        source = write_checkpoint(size, folder / "source")
        written = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        check_room(folder, 2 * written, source_is_free=True)
        convert(source, folder / "model", Recipe(dtype, packing))
    return folder / "model", dtype
