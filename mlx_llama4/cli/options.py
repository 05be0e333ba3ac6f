"""Options that several commands share, and what they make of the model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import terminal

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat, ChatOptions

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        envvar="MLX_LLAMA4_MODEL",
        help="A converted model: its folder, or OWNER/NAME on the Hugging Face hub.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="R",
        help="Branch, tag or commit, where the model is on the hub.",
        show_default=False,
    ),
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="System prompt.", show_default=False),
]
MaxTokens = Annotated[
    int,
    typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer, in tokens."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="0 takes the likeliest token. Default: the model's.",
        show_default=False,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Nucleus sampling. Default: the model's.",
        show_default=False,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        help="Sample from the K likeliest; 0 is off. Default: the model's.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="S", help="Same seed, same answer.", show_default=False),
]

Force = Annotated[
    bool, typer.Option("--force", help="Go on even where the memory will not be enough.")
]


@dataclass(frozen=True)
class Sampling:
    """None: as the model's generation_config.json says."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None


def chat_options(
    folder: Path, system: str | None, max_tokens: int, sampling: Sampling
) -> "ChatOptions":
    """Raises InputError for values out of range."""
    from mlx_llama4.chat import ChatOptions
    from mlx_llama4.config import load_generation_config
    from mlx_llama4.generation.sampler import make_sampler

    defaults = load_generation_config(folder)
    temperature = defaults.temperature if defaults.do_sample else 0.0
    sampler = make_sampler(
        temperature=temperature if sampling.temperature is None else sampling.temperature,
        top_p=defaults.top_p if sampling.top_p is None else sampling.top_p,
        top_k=defaults.top_k if sampling.top_k is None else sampling.top_k,
        seed=sampling.seed,
    )
    return ChatOptions(max_tokens, sampler, terminal.as_typed(system) if system else None)


def load_chat(folder: Path, options: "ChatOptions") -> "Chat":
    """The model, its weights in memory, ready to talk."""
    with terminal.status(f"Loading {folder}"):
        from mlx_llama4.chat import Chat
        from mlx_llama4.config import load_generation_config
        from mlx_llama4.load import load

        disable_compile_on_cpu()
        model, processor = load(folder)
        return Chat(model, processor, load_generation_config(folder), options)


def disable_compile_on_cpu() -> None:
    """MLX would compile kernels with the machine's C++ compiler, into TMPDIR; there need be
    neither, and on the CPU nothing is gained.
    """
    import mlx.core as mx

    if mx.default_device() == mx.cpu:
        mx.disable_compile()
