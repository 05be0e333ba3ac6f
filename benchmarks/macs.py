"""`python -m benchmarks macs`: how the releases would run on Macs, computed, not measured."""

from dataclasses import dataclass

import typer

from mlx_llama4.planning.expert_weights import experts_in_bits
from mlx_llama4.planning.machine import GIB, mac
from mlx_llama4.planning.placement import DISKS, Placement, place, tokens_per_second
from mlx_llama4.planning.planner import Usage, packed_weights
from mlx_llama4.planning.releases import RELEASES, release_config
from mlx_llama4.units import human_bytes

MEMORIES = (16, 32, 48, 64, 128)  # GiB
BITS = {2: "2.5", 3: "3.5", 4: "4.5"}  # bits → bits a weight, with scales of groups of 64
CONTEXT = 8192
# GB/s of memory that Apple states: M4, M4 Pro, M1 and M2 Max, M4 Max, M3 Ultra.
MEMORY_SPEEDS = (120, 273, 400, 546, 819)
SPEED_BITS = (2, 3, 4, 6, 8)
NOT_READ = ("embedding", "vision tower", "projector")  # by a decoded token, but for one row


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
    """What `auto` does with each release and packing on each Mac, for a context of CONTEXT."""
    rows = []
    for name in RELEASES:
        config = release_config(name)
        if not config.text.num_local_experts:
            continue  # nothing to stream
        for bits, with_scales in BITS.items():
            experts = experts_in_bits(config, bits, 2)
            for memory in MEMORIES:
                found = place(config, experts, Usage(CONTEXT), mac(memory * GIB), prompt=CONTEXT)
                rows.append(Row(name.title(), with_scales, memory, found))
    return rows


def decoded_bytes(model: str, bits: int) -> int:
    """Bytes of weights that a decoded token reads, packed in `bits` bits: one routed expert in each
    MoE layer, and what all tokens share. Keys and values come on top.
    """
    config = release_config(model)
    parts = packed_weights(config, bits, 2)
    chosen = parts["routed experts"] * config.text.num_experts_per_tok
    shared = sum(
        count for part, count in parts.items() if part not in (*NOT_READ, "routed experts")
    )
    return shared + chosen // config.text.num_local_experts


def ceilings() -> list[list[str]]:
    """For each packing the bytes that a token reads, Scout's (Maverick's are 24 MB more), and
    the tokens a second that each speed of memory allows.
    """
    rows = []
    for bits in SPEED_BITS:
        nbytes = decoded_bytes("scout", bits)
        rates = [f"{speed * 1e9 / nbytes:.0f}" for speed in MEMORY_SPEEDS]
        rows.append([f"{bits} bits", f"{nbytes / 1e9:.1f} GB", *rates])
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def streaming_table() -> str:
    disks = [f"tokens/s at {disk:g} GB/s" for disk in DISKS]
    head = ["model", "bits a weight", "Mac", "experts", "budget", "in memory", "read a token"]
    return table([*head, *disks], [row.cells() for row in expectations()])


def memory_table() -> str:
    speeds = [f"at {speed} GB/s" for speed in MEMORY_SPEEDS]
    return table(["weights in", "a token reads", *speeds], ceilings())


def macs() -> None:
    """Print the tables of docs/streaming.md and docs/performance.md. Nothing is measured."""
    typer.echo(f"{streaming_table()}\n\n{memory_table()}")
