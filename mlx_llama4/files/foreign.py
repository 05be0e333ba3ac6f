"""What a folder or file holds where a checkpoint was expected: other formats, by their names."""

from pathlib import Path

# Git LFS's placeholder for a file that was not downloaded with the repository
# (github.com/git-lfs/git-lfs, docs/spec.md).
LFS_POINTER = b"version https://git-lfs"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors",
            "adapter_model.bin", "adapters.npz")  # fmt: skip
# (pattern, what it is, what to do). The first that matches is named.
FORMATS = (
    ("*.gguf", "GGUF, llama.cpp's format", "get the release in safetensors"),
    (
        "*.bin",
        "a pickle of PyTorch, which could run any code when it is read",
        "get the release in safetensors, or save it again with safe_serialization=True",
    ),
    ("*.pt", "a pickle of PyTorch", "get the release in safetensors"),
    ("*.ckpt", "a pickle of PyTorch", "get the release in safetensors"),
    ("*.h5", "weights for TensorFlow", "get the release in safetensors"),
    ("*.msgpack", "weights for Flax", "get the release in safetensors"),
    ("*.onnx", "a graph for ONNX", "get the release in safetensors"),
    ("*.npz", "arrays of NumPy", "get the release in safetensors"),
)


def is_pointer(start: bytes) -> bool:
    """Does a file that starts so stand for one that Git LFS has not fetched?"""
    return start.startswith(LFS_POINTER)


def pointer_problem(path: Path) -> str:
    """The line for a file that is a pointer."""
    return (
        f"{path} is a Git LFS pointer, not the file itself; run git lfs pull in its folder, or "
        "download it again"
    )


def stand_in_among(folder: Path) -> str | None:
    """The line for the first small file of a model's folder that only stands for another."""
    for pattern in ("*.json", "*.jinja", "tokenizer.model"):
        for path in sorted(folder.glob(pattern)):
            try:
                with path.open("rb") as file:
                    start = file.read(START_BYTES)
            except OSError:  # who needs the file says so
                continue
            if (problem := stand_in(path, start)) is not None:
                return problem
    return None


def adapter_in(folder: Path) -> str | None:
    """The name of a LoRA adapter's file, if there is one."""
    return next((name for name in ADAPTERS if (folder / name).is_file()), None)


def adapter_note(folder: Path) -> str | None:
    """The line for a model's folder with an adapter beside the weights."""
    if (adapter := adapter_in(folder)) is None:
        return None
    return f"{folder / adapter}: this LoRA adapter is left out; merge it into the model to use it"


def instead_of_weights(folder: Path) -> str | None:
    """What a folder without safetensors of a model holds instead, and what to do; None if nothing
    that is known.
    """
    if adapter := adapter_in(folder):
        return (
            f"{folder} holds a LoRA adapter ({adapter}) without its model; merge it into the model "
            "that it was trained on, and give that"
        )
    for pattern, what, advice in FORMATS:
        if found := sorted(folder.glob(pattern)):
            return f"{folder} holds {found[0].name}: {what}; {advice}"
    if found := sorted(folder.glob("*.safetensors")):
        return (
            f"{folder} holds {found[0].name}, but no model*.safetensors and no index; "
            "if these are the model's weights, rename the file to model.safetensors"
        )
    return None
