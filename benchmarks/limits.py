"""`python -m benchmarks limits`: how many tokens a second the machine allows a model."""

from typing import Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.files import temporary_folder
from benchmarks.harness.limits import decode_bytes, measure_limits, prefill_flops
from benchmarks.harness.machine import this_machine
from benchmarks.harness.presets import Preset, check_preset, preset_folder
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import load_config
from mlx_llama4.units import human_bytes


@terminal.reports_errors
def limits(
    preset: options.PresetName = Preset.small,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens before the decoded one.")
    ] = 1024,
) -> None:
    """Measure memory and matmuls: how many tokens a second they allow a model."""
    check_preset(preset)
    with temporary_folder() as temporary:
        folder = preset_folder(preset, temporary)
        text, nbytes = load_config(folder).text, decode_bytes(folder, tokens)
    with terminal.status("Measuring"):
        found = measure_limits(text)
    flops = prefill_flops(text, tokens)
    terminal.line(f"limits of {preset}")
    terminal.table([("machine", str(this_machine())), *found.lines().items()])
    terminal.line()
    terminal.table(
        [
            ("", "a token", "at most"),
            (
                f"decode, after {tokens:,} tokens",
                human_bytes(nbytes),
                _show_tokens(found.bytes_per_second / nbytes),
            ),
            (
                "the same by MLX's product with one row",
                human_bytes(nbytes),
                _show_tokens(found.packed_vector / nbytes),
            ),
            (
                f"prefill of {tokens:,} tokens",
                f"{flops / tokens / 1e6:.1f} MFLOP",
                _show_tokens(tokens * found.matmul / flops),
            ),
        ],
        right=(1, 2),
    )


def _show_tokens(count: float) -> str:
    return f"{count:,.0f} tokens/s"
