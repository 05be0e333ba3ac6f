"""A picture → tiles, as transformers' Llama4ImageProcessor cuts them.

An image is placed, undistorted, at the top left of a black canvas: the one of up to `max_tiles`
tiles that needs the least downscaling. If the canvas has several tiles, one more follows, the
global tile: the whole image squeezed into a square.
"""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_llama4.errors import ConfigError, PromptError
from mlx_llama4.files.json_file import Keys, read_json
from mlx_llama4.prompt.fetch import Fetched, Fetching, file_name
from mlx_llama4.prompt.picture_file import (
    DEFAULT_FETCHING,
    PICTURE_BYTES,
    ImageSource,
    open_picture,
)
from mlx_llama4.prompt.picture_source import kind_of, path_of

BILINEAR = 2  # transformers' and Pillow's number for it


@dataclass(frozen=True, eq=False, repr=False)
class TiledImage:
    """A picture cut into tiles."""

    # uint8 [n, 3, S, S], row-major over the grid; if there are several, then the global tile.
    tiles: np.ndarray
    grid: tuple[int, int]  # (rows, columns)
    size: tuple[int, int]  # (width, height) of the picture in pixels
    table: np.ndarray  # the tiler's
    source: Path | None = None  # the file, if it came from one
    url: str | None = None  # where it was fetched, if it was

    def __repr__(self) -> str:
        return describe(self)

    @cached_property
    def digest(self) -> str:
        """Equal for two images that are the same to the model."""
        return hashlib.sha256(repr(self.grid).encode() + self.tiles.tobytes()).hexdigest()

    @property
    def num_tiles(self) -> int:
        return len(self.tiles)

    def pixel_values(self) -> np.ndarray:
        """Rescale and normalise the tiles: float32 [n, 3, S, S]."""
        channels = [self.table[:, c][self.tiles[:, c]] for c in range(self.tiles.shape[1])]
        return np.stack(channels, axis=1)


@dataclass(frozen=True, repr=False)
class RememberedImage:
    """A picture from an earlier run: its digest and size are known, its pixels are not."""

    digest: str
    num_tiles: int
    grid: tuple[int, int]
    size: tuple[int, int]
    source: Path | None = None

    def __repr__(self) -> str:
        return describe(self)

    def pixel_values(self) -> np.ndarray:
        raise PromptError(
            "going back that far needs the pictures again, which the prompt cache was saved "
            "without; start a new conversation with the pictures themselves"
        )


PromptImage = TiledImage | RememberedImage


def name_of(image: PromptImage) -> str:
    """The name of a picture's file, or what its URL ends with."""
    if isinstance(image, TiledImage) and image.url is not None:
        return file_name(image.url)
    return "picture" if image.source is None else image.source.name


def describe(image: PromptImage) -> str:
    """Describe a picture for people: three.png: 224×224, 5 tiles."""
    name = name_of(image)
    width, height = image.size
    return f"{name}: {width}×{height}, {image.num_tiles} tile{'s' * (image.num_tiles != 1)}"


@dataclass(frozen=True)
class ImageTiler:
    """Cuts pictures into tiles, as the checkpoint's image processor does."""

    tile_size: int  # S, in pixels
    max_tiles: int
    # float32 [256, 3]: the model's input for each byte value of each channel.
    table: np.ndarray = field(repr=False)

    @classmethod
    def load(cls, folder: Path, image_size: int) -> "ImageTiler":
        """Read the folder's preprocessor_config.json or processor_config.json.

        image_size: side of a tile in pixels in config.json, with which those must agree.
        """
        raw, name = {}, "processor_config.json"
        if (folder / "preprocessor_config.json").is_file():
            name = "preprocessor_config.json"
            raw = read_json(folder / name)
        elif (folder / name).is_file():
            raw = read_json(folder / name).get("image_processor") or {}
        if not isinstance(raw, dict) or not isinstance(raw.get("size", {}), dict):
            raise ConfigError(f"{folder / name}: the image processor's settings are damaged")
        size = raw.get("size", {})
        if {size.get("height", image_size), size.get("width", image_size)} != {image_size}:
            raise ConfigError(f"{name}: size {size} is not config.json's image_size {image_size}")
        if raw.get("resize_to_max_canvas") or raw.get("resample") not in (None, BILINEAR):
            raise ConfigError(f"{name}: only bilinear resampling without enlarging is supported")
        keys = Keys(raw, name)
        table = pixel_table(
            keys.number("rescale_factor", 1 / 255),
            keys.numbers("image_mean", [0.5, 0.5, 0.5]),
            keys.numbers("image_std", [0.5, 0.5, 0.5]),
        )
        return cls(image_size, keys.integer("max_patches", 16), table)

    def tile(
        self,
        source: ImageSource,
        fetching: Fetching = DEFAULT_FETCHING,
        most_bytes: int = PICTURE_BYTES,
    ) -> TiledImage:
        """Cut a picture into tiles, as `open_picture` reads it. Raises ImageError, naming the
        source, if it is unreadable.
        """
        picture = open_picture(source, fetching, most_bytes)
        rows, columns = best_grid(picture.width, picture.height, self.tile_size, self.max_tiles)
        canvas = Image.new("RGB", (columns * self.tile_size, rows * self.tile_size))
        sizes = [self._fitted(*picture.size, canvas.size)]
        if rows * columns > 1:
            sizes.append((self.tile_size, self.tile_size))
        fitted, *whole = picture.resized(sizes)
        canvas.paste(fitted)
        pixels = np.asarray(canvas).reshape(rows, self.tile_size, columns, self.tile_size, 3)
        # [row, y, column, x, 3] → [row · column, 3, y, x]
        tiles = pixels.transpose(0, 2, 4, 1, 3).reshape(-1, 3, self.tile_size, self.tile_size)
        if whole:
            tiles = np.concatenate([tiles, np.asarray(whole[0]).transpose(2, 0, 1)[None]])
        tiles = np.ascontiguousarray(tiles)
        return TiledImage(tiles, (rows, columns), picture.size, self.table, *_origin(source))

    def _fitted(self, width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int]:
        """The size that fits the canvas, enlarged to one tile at most."""
        most_width = min(max(width, self.tile_size), canvas[0])
        most_height = min(max(height, self.tile_size), canvas[1])
        scale_width, scale_height = most_width / width, most_height / height
        if scale_width < scale_height:
            most_height = min(math.floor(height * scale_width), most_height)
        else:
            most_width = min(math.floor(width * scale_height), most_width)
        return max(most_width, 1), max(most_height, 1)


def best_grid(width: int, height: int, tile_size: int, max_tiles: int) -> tuple[int, int]:
    """Choose the canvas for an image of width × height pixels; returns (rows, columns).

    Among all grids of up to max_tiles tiles, if some hold the image without shrinking it, take the
    one that enlarges it least; otherwise the one that shrinks it least. Of equals, the smallest.
    Scales are compared in float32, like the reference's tensors.
    """
    grids = [
        (rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    ]
    scales = {
        (rows, columns): min(
            np.float32(rows * tile_size) / np.float32(height),
            np.float32(columns * tile_size) / np.float32(width),
        )
        for rows, columns in grids
    }
    enough = [scale for scale in scales.values() if scale >= 1]
    scale = min(enough) if enough else max(scales.values())
    return min(
        (grid for grid in grids if scales[grid] == scale), key=lambda grid: grid[0] * grid[1]
    )


def pixel_table(rescale_factor: float, mean: list[float], std: list[float]) -> np.ndarray:
    """Table from byte value and channel to model input, float32 [256, 3].

    The reference computes in bfloat16 and rounds after each of the three steps, so 256 results per
    channel are all there can be.
    """
    factor = np.float32(rescale_factor)  # a scalar, not rounded to bfloat16
    values = round_to_bfloat16(np.arange(256, dtype=np.float32)[:, None] * factor)
    values = round_to_bfloat16(values - round_to_bfloat16(np.array(mean, np.float32)))
    return round_to_bfloat16(values / round_to_bfloat16(np.array(std, np.float32)))


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to the nearest bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32)


def _origin(source: ImageSource) -> tuple[Path | None, str | None]:
    """The file and the URL of a picture that was read."""
    if isinstance(source, Fetched):
        return None, source.url
    if isinstance(source, str):
        kind = kind_of(source)
        if kind in ("web", "data"):
            return None, source if kind == "web" else None
        source = Path(path_of(source) or source)
    return (source.expanduser().absolute() if isinstance(source, Path) else None), None
