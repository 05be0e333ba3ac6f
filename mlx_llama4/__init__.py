"""Llama 4 on MLX: convert a checkpoint, chat with it, ask it about images.

    from mlx_llama4 import Chat

    chat = Chat.open("scout-4bit")
    for piece in chat.send("What is in this picture?", [chat.open_image("photo.jpg")]):
        print(piece, end="", flush=True)

`mlx_llama4.convert` is a package: `from mlx_llama4.convert import Recipe, convert`.
"""

# Nothing is imported here: the command passes through before it can take a Ctrl-C. Type checkers
# know the name without typing's.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mlx_llama4.chat.chat import Chat
    from mlx_llama4.chat.options import ChatOptions
    from mlx_llama4.errors import (
        CheckpointError,
        ConfigError,
        HubError,
        ImageError,
        InputError,
        Llama4Error,
        OutputError,
        PromptError,
        RunError,
    )
    from mlx_llama4.generation.batch import Request, generate_batch
    from mlx_llama4.generation.generate import generate, stream_generate
    from mlx_llama4.generation.sampler import make_sampler
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import load
    from mlx_llama4.quantization import KVQuantization

__version__ = "0.1.0"

__all__ = [
    "Chat",
    "ChatOptions",
    "CheckpointError",
    "ConfigError",
    "GenerationSettings",
    "HubError",
    "ImageError",
    "InputError",
    "KVQuantization",
    "Llama4Error",
    "OutputError",
    "PromptError",
    "Request",
    "RunError",
    "__version__",
    "generate",
    "generate_batch",
    "load",
    "make_sampler",
    "stream_generate",
]

# Name → the module it comes from. No name is a module's of this package: importing that module
# would put it in the name's place.
_MODULES = {
    "Chat": "chat.chat",
    "ChatOptions": "chat.options",
    "GenerationSettings": "generation.settings",
    "KVQuantization": "quantization",
    "Request": "generation.batch",
    "generate": "generation.generate",
    "generate_batch": "generation.batch",
    "load": "opening",
    "make_sampler": "generation.sampler",
    "stream_generate": "generation.generate",
} | {name: "errors" for name in __all__ if name.endswith("Error")}


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    # Imported when first asked for, so that `mlx-llama4 --help` need not wait for MLX.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
