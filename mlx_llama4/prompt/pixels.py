"""A decoded picture → RGB, upright, on white, scaled: in strips, so that only the decoder's own
pixels are in memory whole.

Scaling takes two passes, with 8 bits between them: first each row, then each column. That is the
order of the reference (torchvision) and of Pillow before 13.0, and the first pass can be done strip
by strip.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from mlx_llama4.errors import ImageError

STRIP_PIXELS = 2**19
STRIP_BYTES = 32 * 2**20  # for the steps of one strip
ORIENTATION = 0x0112  # in EXIF
# EXIF's number → how to turn the stored picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # upright rows are stored columns
BACKWARDS = (3, 4, 7, 8)  # the first upright row is the last one stored


class Picture:
    """The pixels of a picture, as 8-bit RGB, upright, with white behind transparent parts."""

    def __init__(self, image: Image.Image, name: str, room: int):
        """name: for errors. room: bytes of memory for scaling it."""
        self._image, self._name, self._room = image, name, room
        with self._foreign():
            self._orientation = image.getexif().get(ORIENTATION, 1)
        sideways = self._orientation in SIDEWAYS
        self.size = (image.height, image.width) if sideways else image.size  # width, height

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def whole(self) -> Image.Image:
        """All pixels, in memory."""
        with self._foreign():
            return self._rows(0, self.height)

    def resized(self, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """Scale bilinearly to each (width, height). The pixels are read once for all of them.

        Raises ImageError if that takes more memory than there is room for.
        """
        need = scaling_bytes(*self.size, sizes)
        if need > self._room:
            raise ImageError(
                f"{self._name} would take {need // 10**6:,} MB of memory to scale, since it is "
                f"{self.height:,} pixels high; cut it or scale it down"
            )
        narrow = [Image.new("RGB", (width, self.height)) for width, _ in sizes]
        with self._foreign():
            for start, stop in self._strips(*self.size):
                strip = self._rows(start, stop)
                for image in narrow:
                    image.paste(_resized(strip, image.width, strip.height), (0, start))
        return [
            _resized(image, width, height)
            for image, (width, height) in zip(narrow, sizes, strict=True)
        ]

    def reduced(self, width: int, height: int) -> Image.Image:
        """Scale down to fit a size; never up."""
        scale = min(width / self.width, height / self.height, 1.0)
        size = max(round(self.width * scale), 1), max(round(self.height * scale), 1)
        return self.resized([size])[0]

    @contextlib.contextmanager
    def _foreign(self) -> Iterator[None]:
        """Pillow raises almost anything for odd files."""
        try:
            yield
        except MemoryError:
            raise ImageError(f"{self._name} takes more memory than there is") from None
        except Exception as failure:
            raise ImageError(f"{self._name} cannot be converted to RGB ({failure})") from None

    def _rows(self, start: int, stop: int) -> Image.Image:
        """Upright rows, as RGB."""
        width, height = self._image.size
        if self._orientation in BACKWARDS:
            start, stop = self.height - stop, self.height - start
        if self._orientation in SIDEWAYS:
            strip = self._image.crop((start, 0, stop, height))
        else:
            strip = self._image.crop((0, start, width, stop))
        turn = TURNS.get(self._orientation)
        return self._to_rgb(strip if turn is None else strip.transpose(turn))

    def _to_rgb(self, strip: Image.Image) -> Image.Image:
        if self._is_deep:
            strip = Image.fromarray(_to_8_bits(strip, self._top))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        return strip.convert("RGB")

    @property
    def _is_deep(self) -> bool:
        """Has it 16-bit, 32-bit or float grey values?"""
        return self._image.mode == "F" or self._image.mode.startswith("I")

    @cached_property
    def _top(self) -> float:
        """The value that is white: by the range of the type, where the values fit it."""
        width, height = self._image.size
        most = 0.0
        for start, stop in self._strips(width, height):
            values = np.asarray(self._image.crop((0, start, width, stop)))
            most = max(most, float(values.max(initial=0, where=np.isfinite(values))))
        if self._image.mode == "F":
            return 1.0 if most <= 1 else 255.0
        return 65535.0 if most <= 65535 else most

    @staticmethod
    def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
        step = max(STRIP_PIXELS // width, 1)
        return ((start, min(start + step, height)) for start in range(0, height, step))


def scaling_bytes(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> int:
    """Memory for scaling: a strip's steps, and the picture between the two passes."""
    strip = min(STRIP_BYTES, 64 * width * height)
    return strip + 4 * sum(
        height * new_width + new_width * new_height for new_width, new_height in sizes
    )


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """One pass: either the width or the height stays."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _to_8_bits(image: Image.Image, top: float) -> np.ndarray:
    """Scale grey values from 0 … top to 0 … 255."""
    values = np.asarray(image, dtype=np.float64)
    values = np.where(np.isnan(values), 0, values)
    return (values.clip(0, top) * (255 / top)).round().astype(np.uint8)
