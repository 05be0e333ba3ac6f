"""Options that several commands share, and how they open the model folder."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.talk.system_prompt import read_system
from mlx_llama4.errors import InputError
from mlx_llama4.quantization import KVQuantization

if TYPE_CHECKING:
    from mlx_llama4.cache.prompt_file import PromptFile
    from mlx_llama4.chat import Chat, ChatOptions
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.planning.admission import Experts, Task
    from mlx_llama4.planning.placement import Placement

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        envvar="MLX_LLAMA4_MODEL",
        help="A converted model: its folder, OWNER/NAME on the Hugging Face hub, scout or "
        "maverick. Default: set by mlx-llama4 models --default.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="R",
        help="Branch, tag or commit, if the model is on the hub.",
        show_default=False,
    ),
]
Images = Annotated[
    list[str] | None,  # a Path would lose a slash of https://
    typer.Option(
        "--image",
        "-i",
        metavar="PATH",
        help="A picture to put before the text: a file, a folder of them, a URL, or - for standard "
        "input; may be repeated.",
        show_default=False,
    ),
]
NoFetch = Annotated[
    bool, typer.Option("--no-fetch", help="Fetch no picture from the web; refuse its URL.")
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="TEXT",
        help="System prompt, @FILE to read it from, or companion, concise, teacher or coder.",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", metavar="N", min=1, help="Maximum length of an answer, in tokens."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "--temp",
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
        help="Sample from the K likeliest tokens; 0 is off. Default: the model's.",
        show_default=False,
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="P",
        help="Leave out tokens less probable than P times the likeliest.",
        show_default=False,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        metavar="R",
        help="Above 1, make tokens that have appeared before less likely.",
        show_default=False,
    ),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias",
        metavar="TOKEN=BIAS",
        help="Add to a token's logit; -100 forbids the token. TOKEN is an id, or text that is one "
        "token; may be repeated.",
        show_default=False,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before this text; may be repeated.",
        show_default=False,
    ),
]
PrefillStep = Annotated[
    int | None,
    typer.Option(
        "--prefill-step",
        metavar="N",
        min=1,
        help="Tokens of the prompt to process at once; fewer need less memory. Default: 2048, with "
        "streamed experts up to 32768.",
        show_default=False,
    ),
]
KVBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        metavar="N",
        help="Pack the global layers' keys and values to 8 or 4 bits. Default: not packed.",
        show_default=False,
    ),
]
KVGroupSize = Annotated[
    int | None,
    typer.Option(
        "--kv-group-size",
        metavar="N",
        help="With --kv-bits: how many values share a scale; 32, 64 (default) or 128.",
        show_default=False,
    ),
]
KVQuantizeAfter = Annotated[
    int | None,
    typer.Option(
        "--kv-quantize-after",
        metavar="N",
        help="With --kv-bits: pack once there are more than N tokens. Default: 0.",
        show_default=False,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FILE",
        help="Continue from a prompt cache that `mlx-llama4 cache` or /save wrote.",
        show_default=False,
    ),
]


class Where(StrEnum):
    """Where to keep routed experts."""

    auto = "auto"
    resident = "resident"
    stream = "stream"


ExpertPlace = Annotated[
    Where,
    typer.Option(
        "--experts",
        help="Keep the routed experts in memory, or read them from the disk as tokens need them; "
        "auto streams them only if they do not fit.",
    ),
]
ExpertMemory = Annotated[
    str | None,
    typer.Option(
        "--expert-memory",
        metavar="SIZE",
        help="Stream experts, using this much memory, such as 20GB. Default: what is left.",
        show_default=False,
    ),
]
PageCache = Annotated[
    bool,
    typer.Option(
        "--page-cache/--no-page-cache",
        help="With streamed experts: let the system cache what was read, too.",
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write to a file which experts the routers chose, for measurements.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="S", help="The same seed gives the same answer.", show_default=False),
]

Force = Annotated[
    bool, typer.Option("--force", help="Continue even if the memory will not be enough.")
]


@dataclass(frozen=True)
class Caching:
    """The options for prefill and the KV cache; None: not given."""

    prefill_step: int | None
    kv_bits: int | None
    kv_group_size: int | None
    kv_quantize_after: int | None

    def quantization(self) -> KVQuantization | None:
        """The KV quantization. Raises InputError for values that MLX has no kernels for."""
        settings = {"group_size": self.kv_group_size, "after": self.kv_quantize_after}
        given = {key: value for key, value in settings.items() if value is not None}
        if self.kv_bits is not None:
            return KVQuantization(self.kv_bits, **given)
        if given:
            raise InputError("--kv-group-size and --kv-quantize-after need --kv-bits; add it")
        return None


def expert_options(where: Where, memory: str | None, page_cache: bool) -> "Experts":
    """Collect the options for experts. Raises InputError if they contradict each other."""
    from mlx_llama4.planning.admission import Experts
    from mlx_llama4.units import parse_bytes

    if where == Where.resident and (memory is not None or not page_cache):
        option = "--no-page-cache" if memory is None else "--expert-memory"
        raise InputError(f"{option} is for streamed experts; leave out --experts resident")
    try:
        return Experts(where.value, None if memory is None else parse_bytes(memory), page_cache)
    except InputError as error:
        raise InputError(f"--expert-memory: {error}") from None


def chat_options(
    folder: "ModelFolder",
    system: str | None,
    settings: "GenerationSettings",
    caching: Caching,
) -> "ChatOptions":
    """Collect a chat's options, with the model's own settings where none are given.

    Raises InputError for values out of range.
    """
    from mlx_llama4.chat import ChatOptions

    settings = settings.resolved(folder.defaults)
    settings.check()
    quantization = caching.quantization()
    if quantization is not None:
        quantization.check(folder.config.text.head_dim)
    return ChatOptions(settings, read_system(system), caching.prefill_step, quantization)


def open_cache(path: Path, folder: "ModelFolder", options: "ChatOptions") -> "PromptFile":
    """Open a prompt cache, and refuse one of another model before any weights are read.

    Takes over its KV quantization if the options have none.
    """
    from mlx_llama4.cache.prompt_file import PromptFile

    if options.system is not None:
        raise InputError("--system: a prompt cache begins with a system prompt of its own, or none")
    file = PromptFile(path)
    file.check(folder.identity, options.kv_quantization)
    options.kv_quantization = options.kv_quantization or file.quantization
    return file


def warn_without_checksums(path: Path) -> None:
    """Say that damage to a prompt cache may go unnoticed, if it may."""
    from mlx_llama4.cache.prompt_file import PromptFile

    if not PromptFile(path).has_checksums:
        terminal.aside(
            f"[{path.name} has no checksums, since version 0.1.0 made it: damage to it may go "
            "unnoticed]"
        )


def place_model(
    folder: "ModelFolder", task: "Task", experts: "Experts | None" = None, *, force: bool = False
) -> "Placement":
    """Decide how the model runs here, and tell the user if it is not all in memory.

    Raises InputError if it cannot run.
    """
    from mlx_llama4.planning.admission import Experts, admit

    admission = admit(folder.source, task, experts or Experts(), force=force)
    for note in admission.notes:
        terminal.note(note)
    return admission.placement


def load_chat(folder: "ModelFolder", options: "ChatOptions", placement: "Placement") -> "Chat":
    """Load the model, with all weights in memory or as many experts as `placement` says."""
    with terminal.status(f"Loading {folder.path}"):
        from mlx_llama4.chat import Chat
        from mlx_llama4.opening import load_placed
    from mlx_llama4.cli.console.progress import byte_progress

    options.prefill_step = placement.usage.span
    with byte_progress(transient=True) as update:

        def on_load(done: int, total: int) -> None:
            update(f"Loading {folder.path.name}", done, total, 0)

        model = load_placed(folder, placement, on_load)
        return Chat(model, folder.processor, options, folder)


@contextlib.contextmanager
def loaded_chat(
    folder: "ModelFolder", options: "ChatOptions", placement: "Placement", trace: Path | None
) -> Iterator["Chat"]:
    """Like `load_chat`, but write the routers' choices to `trace` while it runs."""
    if trace is None:
        yield load_chat(folder, options, placement)
        return
    from mlx_llama4.offload.recorder import RoutingRecorder

    with RoutingRecorder(trace) as recorder:
        chat = load_chat(folder, options, placement)
        recorder.attach(chat.model, folder.path.name)
        yield chat
