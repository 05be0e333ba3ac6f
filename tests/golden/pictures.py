"""Pictures and conversations of the goldens. Read by make_goldens.py and by the tests."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TOKENIZER_FOLDER = Path(__file__).parents[2] / "mlx_llama4" / "demo" / "checkpoint"
TILE_SIDES = (336, 56)
MAX_TILES = 16
TEXT = "<|begin_of_text|><|header_start|>user<|header_end|>\n\n<|image|>What is it?<|eot|>"
NORMALISATIONS = (([0.5] * 3, [0.5] * 3), ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))

SIZES = (
    *((1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1), (3, 3), (13, 700), (700, 13)),
    *((40, 30), (55, 57), (56, 56), (57, 56), (56, 57), (100, 300), (112, 56), (112, 112)),
    *((113, 112), (168, 56), (169, 56), (224, 224), (300, 100), (335, 336), (336, 336)),
    *((337, 336), (336, 337), (400, 60), (400, 800), (640, 480), (480, 640), (672, 336)),
    *((673, 336), (800, 400), (1000, 200), (300, 1500), (1024, 1024), (1008, 1009)),
    *((1344, 1344), (1345, 1344), (1400, 1400), (1955, 1414), (2000, 1600), (5000, 300)),
    *((300, 168), (20, 400)),
)


def draw(width: int, height: int) -> Image.Image:
    """Gradients, stripes and noise, by integer arithmetic: the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.RandomState(width * 7919 + height).randint(0, 24, (height, width))
    red = (x * 255 // max(width - 1, 1) + noise) % 256
    green = (y * 255 // max(height - 1, 1) // 2 + (x // 9 % 2) * 90 + noise) % 256
    blue = ((x + y) * 3 // 2 + (y // 17 % 2) * 60) % 256
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def split(image_processor: Any, image: Image.Image) -> tuple[np.ndarray, list[int]]:
    """Tiles and grid (rows, columns) by the reference's image processor."""
    output = image_processor(images=[image], return_tensors="pt")
    return output["pixel_values"].float().numpy(), output["aspect_ratios"].reshape(-1).tolist()


def digest(ids: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(ids, np.int32).tobytes()).hexdigest()


def sample(tiles: np.ndarray, side: int) -> np.ndarray:
    """Every 5th pixel in both directions at 56 a side, every 25th at 336: all would be 60 MB."""
    step = 5 if side == 56 else 25
    return tiles[:, :, ::step, ::step]


def to_bytes(tiles: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Pixel values → the byte values they come from; they take a quarter of the room."""
    levels = np.searchsorted(table[:, 0], tiles).astype(np.uint8)
    assert np.array_equal(table[levels, 0], tiles)
    return levels


def _user(*parts: str | None) -> dict[str, Any]:
    """A message of texts and, for None, images."""
    content = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in parts
    ]
    return {"role": "user", "content": content}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": [{"type": "text", "text": text}]}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "text": ([_user("What is the capital of France?")], []),
    "system": ([_system("  Be brief.\n"), _user("Hello")], []),
    "turns": (
        [_user("Hi"), _assistant("Hello! How can I help you?"), _user("What is 2 plus 3?")],
        [],
    ),
    "white space": ([_user("\n\n  two lines \n and\tmore  ")], []),
    "unicode": ([_user("naïve café 日本語 🦙 \u202f ½"), _assistant("ok 👍🏽"), _user("…")], []),
    "empty": ([_user("")], []),
    "system in the middle": ([_user("Hi"), _system("  Be brief.\n"), _user("Hello")], []),
    "result of a tool": (
        [_user("Hi"), {"role": "ipython", "content": 'a "quoted" <|eot\n'}, _user("So?")],
        [],
    ),
    "image": ([_user(None, "What is in the image?")], [(112, 112)]),
    "image after text": ([_user("Look: ", None, " and say.")], [(300, 100)]),
    "two images": ([_user(None, "first", None, "second")], [(56, 56), (200, 140)]),
    "image in a later turn": (
        [_system("See."), _user("Hi"), _assistant("Hello!"), _user(None, "And this?")],
        [(57, 200)],
    ),
}
