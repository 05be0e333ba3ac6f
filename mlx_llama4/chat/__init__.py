"""A conversation with a model; knows no terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_llama4.chat.chat import Chat
    from mlx_llama4.chat.options import ChatOptions

__all__ = ["Chat", "ChatOptions"]


def __getattr__(name: str) -> Any:
    # Lazily, so that what needs only a message or a persona does not import MLX.
    if name == "Chat":
        from mlx_llama4.chat.chat import Chat

        return Chat
    if name == "ChatOptions":
        from mlx_llama4.chat.options import ChatOptions

        return ChatOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
