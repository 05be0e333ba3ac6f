"""Llama 4 on MLX: convert a checkpoint, chat with it, ask it about images."""

__version__ = "0.1.0"
