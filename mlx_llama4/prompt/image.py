"""A picture → tiles, as transformers' Llama4ImageProcessor cuts them.

An image is placed, undistorted, at the top left of a black canvas: the one of up to `max_tiles`
tiles that needs the least downscaling. If the canvas has several tiles, one more follows, the
global tile: the whole image squeezed into a square.
"""

import hashlib
import io
import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from mlx_llama4.errors import ConfigError, ImageError, PromptError
from mlx_llama4.files.json_file import Keys, read_json
from mlx_llama4.prompt.fetch import Fetched, Fetching, fetch, file_name, shown
from mlx_llama4.prompt.heic import is_heic, png_of_heic
from mlx_llama4.prompt.picture_source import data_of, kind_of, path_of

# Pillow's own limit. Just below it, decoding and converting takes 2 GB for RGBA, 2.7 GB for WebP
# and 4.4 GB for 16-bit grey.
MAX_PIXELS = 2 * 89_478_485
# Resizing holds about 16 bytes of coefficients for each pixel of a side.
MAX_SIDE = 1_000_000
BILINEAR = 2  # transformers' and Pillow's number for it

ImageSource = str | Path | bytes | Fetched | Image.Image  # a text is a path or a URL
DEFAULT_FETCHING = Fetching()


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

    def tile(self, source: ImageSource, fetching: Fetching = DEFAULT_FETCHING) -> TiledImage:
        """Cut a picture into tiles. Raises ImageError, naming the source, if it is unreadable."""
        image = open_image(source, fetching)
        rows, columns = best_grid(image.width, image.height, self.tile_size, self.max_tiles)
        canvas = Image.new("RGB", (columns * self.tile_size, rows * self.tile_size))
        canvas.paste(self._fit(image, canvas.size))
        pixels = np.asarray(canvas).reshape(rows, self.tile_size, columns, self.tile_size, 3)
        # [row, y, column, x, 3] → [row · column, 3, y, x]
        tiles = pixels.transpose(0, 2, 4, 1, 3).reshape(-1, 3, self.tile_size, self.tile_size)
        if len(tiles) > 1:
            whole = resize(image, self.tile_size, self.tile_size)
            tiles = np.concatenate([tiles, np.asarray(whole).transpose(2, 0, 1)[None]])
        tiles = np.ascontiguousarray(tiles)
        return TiledImage(tiles, (rows, columns), image.size, self.table, *_origin(source))

    def _fit(self, image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
        """Scale to fit the canvas, enlarging to one tile at most."""
        width = min(max(image.width, self.tile_size), canvas[0])
        height = min(max(image.height, self.tile_size), canvas[1])
        scale_width, scale_height = width / image.width, height / image.height
        if scale_width < scale_height:
            height = min(math.floor(image.height * scale_width), height)
        else:
            width = min(math.floor(image.width * scale_height), width)
        return resize(image, max(width, 1), max(height, 1))


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


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


def open_image(source: ImageSource, fetching: Fetching = DEFAULT_FETCHING) -> Image.Image:
    """Open a picture as 8-bit RGB, upright, with white behind transparent parts.

    source: a path, a URL (http, https, file or data), an encoded file's bytes, or a PIL image. Of
    an animation, the first frame is taken. fetching: whether and how URLs are fetched.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    if isinstance(source, bytes):
        return _from_bytes(source, "the image")
    if isinstance(source, Fetched):
        return _from_bytes(source.data, shown(source.url))
    if isinstance(source, str):
        kind = kind_of(source)
        if kind == "web":
            return open_image(fetch(source, fetching))
        if kind == "data":
            return _from_bytes(data_of(source, fetching.most_bytes), "the data: URL")
        if kind == "file":
            local = path_of(source)
            if local is None:
                raise ImageError(f"{shown(source)} is on another machine; give a file of this one")
            source = local
    if not str(source):
        raise ImageError("a picture's path is empty")
    return _from_file(Path(source))


def _from_bytes(data: bytes, name: str) -> Image.Image:
    return _to_rgb(_decode(io.BytesIO(data), name), name)


def _from_file(path: Path) -> Image.Image:
    try:
        with path.expanduser().open("rb") as stream:
            seekable = stream if stream.seekable() else io.BytesIO(stream.read())
            return _to_rgb(_decode(seekable, str(path)), str(path))
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except OSError as failure:
        raise ImageError(f"cannot read {path}: {failure.strerror or failure}") from None
    except (RuntimeError, ValueError) as failure:  # "~nobody/x.png", a NUL in the name
        raise ImageError(f"cannot read {path}: {failure}") from None


def _decode(stream: BinaryIO, name: str) -> Image.Image:
    if not stream.read(1):
        raise ImageError(f"{name} is empty (0 bytes)")
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd and large files; serious problems are raised below.
            warnings.simplefilter("ignore")
            image = Image.open(stream)
            if image.format == "EPS":  # decoding it would run a PostScript interpreter
                raise Image.UnidentifiedImageError
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if max(image.size) > MAX_SIDE:
                raise ImageError(
                    f"{name} is {image.width}×{image.height} pixels; no side may have more than "
                    f"{MAX_SIDE:,}: cut it or scale it down"
                )
            image.load()
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} unpacks to more than {MAX_PIXELS // 10**6} million pixels; scale it down"
        ) from None
    except Image.UnidentifiedImageError:
        stream.seek(0)
        data = stream.read(12)
        if is_heic(data):
            return _decode(io.BytesIO(png_of_heic(data + stream.read(), name)), name)
        raise ImageError(
            f"{name} is not a picture in a known format; use PNG, JPEG, WebP, GIF, TIFF or BMP"
        ) from None
    except Exception as failure:  # decoders of damaged files raise almost anything
        raise ImageError(f"{name} is damaged and cannot be decoded ({failure})") from None
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_8_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except Exception as failure:  # as above: the file is foreign
        raise ImageError(f"{name} cannot be converted to RGB ({failure})") from None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float grey values to 0 … 255, by the range of their type."""
    values = np.asarray(image, dtype=np.float64)
    values = np.where(np.isnan(values), 0, values)
    if image.mode == "F":
        finite = values[np.isfinite(values)]
        top = 1.0 if finite.max(initial=0) <= 1 else 255.0
    else:
        top = 65535.0 if values.max(initial=0) <= 65535 else float(values.max())
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
