"""`python -m benchmarks macs`: what to expect of the releases on Macs, computed, not measured."""

from dataclasses import dataclass

import typer

from mlx_llama4.planning.expert_weights import experts_in_bits
from mlx_llama4.planning.machine import GIB, mac
from mlx_llama4.planning.placement import DISKS, Placement, place, tokens_per_second
from mlx_llama4.planning.planner import Usage
from mlx_llama4.planning.releases import RELEASES, release_config
from mlx_llama4.units import human_bytes

MEMORIES = (16, 32, 48, 64, 128)  # GiB
BITS = {2: "2.5", 3: "3.5", 4: "4.5"}  # bits → bits a weight, with scales of groups of 64
CONTEXT = 8192


@dataclass(frozen=True)
class Row:
    """One model in one packing on one Mac."""

    model: str
    bits: str
    memory: int
    placement: Placement

    def cells(self) -> list[str]:
        placement = self.placement
        if placement.fit == "no":
            return [self.model, self.bits, f"{self.memory} GB", "does not fit", *["–"] * 6]
        if placement.streaming is None:
            return [self.model, self.bits, f"{self.memory} GB", "all in memory", *["–"] * 6]
        budget, read = placement.streaming.memory, placement.bytes_per_token
        rates = [f"{rate:.1f}" for rate in tokens_per_second(read).values()]
        how = "streamed" if placement.fit == "yes" else "streamed, limit raised"
        share = f"{placement.kept:.0%}"
        return [
            self.model,
            self.bits,
            f"{self.memory} GB",
            how,
            human_bytes(budget),
            share,
            human_bytes(read),
            *rates,
        ]


def expectations() -> list[Row]:
    """For each release, packing and Mac what `auto` does at a context of 8,192 tokens."""
    rows = []
    for name in RELEASES:
        config = release_config(name)
        for bits, with_scales in BITS.items():
            experts = experts_in_bits(config, bits, 2)
            for memory in MEMORIES:
                found = place(config, experts, Usage(CONTEXT), mac(memory * GIB), prompt=CONTEXT)
                rows.append(Row(name.title(), with_scales, memory, found))
    return rows


def macs() -> None:
    """Print the table of docs/streaming.md. Nothing is measured."""
    disks = [f"tokens/s at {disk:g} GB/s" for disk in DISKS]
    head = ["model", "bits a weight", "Mac", "experts", "budget", "in memory", "read a token"]
    lines = [[*head, *disks], ["---"] * (len(head) + len(disks))]
    for cells in [*lines, *(row.cells() for row in expectations())]:
        typer.echo(f"| {' | '.join(cells)} |")
