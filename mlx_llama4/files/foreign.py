"""What a folder or file holds where a checkpoint was expected: other formats, by their names."""

import re
from pathlib import Path

# Git LFS's placeholder for a file that was not downloaded with the repository
# (github.com/git-lfs/git-lfs, docs/spec.md), and that of its successor on the hub.
LFS_POINTER, XET_POINTER = b"version https://git-lfs", b"# xet version"
WEB_PAGES = (b"<!doctype html", b"<html")
START_BYTES = 64  # that tell
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
    ("*.pth", "a pickle of PyTorch", "get the release in safetensors"),
    ("*.pt", "a pickle of PyTorch", "get the release in safetensors"),
    ("*.ckpt", "a pickle of PyTorch", "get the release in safetensors"),
    ("*.h5", "weights for TensorFlow", "get the release in safetensors"),
    ("*.msgpack", "weights for Flax", "get the release in safetensors"),
    ("*.onnx", "a graph for ONNX", "get the release in safetensors"),
    ("*.npz", "arrays of NumPy", "get the release in safetensors"),
)
# Files beside weights, or hidden by other programs, that are no weights.
LEFT_BY_TRAINING = re.compile(r"\.|training_args\.bin|optimizer|scheduler|rng_state|scaler")


def stand_in(path: Path, start: bytes) -> str | None:
    """The line for a file that only stands for another, by its first bytes; None for others."""
    if start.startswith(LFS_POINTER):
        return (
            f"{path} is a Git LFS pointer, not the file itself; run git lfs pull in its folder, or "
            "download it again"
        )
    if start.startswith(XET_POINTER):
        return f"{path} is a Git Xet pointer, not the file itself; download it again"
    if start[:START_BYTES].lstrip().lower().startswith(WEB_PAGES):
        return f"{path} is a web page, perhaps the hub's about the file; download the file itself"
    return None


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
    if any(folder.glob("model*.safetensors")):
        return None
    if adapter := adapter_in(folder):
        return (
            f"{folder} holds a LoRA adapter ({adapter}) without its model; merge it into the model "
            "that it was trained on, and give that"
        )
    for pattern, what, advice in FORMATS:
        found = [file for file in folder.glob(pattern) if not LEFT_BY_TRAINING.match(file.name)]
        if found := sorted(found):
            return f"{folder} holds {found[0].name}: {what}; {advice}"
    if found := sorted(folder.glob("*.safetensors")):
        return (
            f"{folder} holds {found[0].name}, but no model*.safetensors and no index; "
            "if these are the model's weights, rename the file to model.safetensors"
        )
    if found := sorted(file.parent for file in folder.glob("*/model*.safetensors")):
        return f"{folder} has its weights in a folder of its own; give {found[0]}"
    if any(folder.glob(".cache/**/*.incomplete")):
        return f"{folder} holds a download that broke off; repeat it to fetch the rest"
    return None
