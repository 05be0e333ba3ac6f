"""A picture in strips is what it would be as a whole, and takes the memory that was said."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mlx_llama4.errors import ImageError
from mlx_llama4.prompt import picture_file, pixels
from mlx_llama4.prompt.picture_file import PICTURE_BYTES, decoding_bytes, open_picture
from mlx_llama4.prompt.pixels import Picture
from tests.golden.pictures import draw

BILINEAR = Image.Resampling.BILINEAR
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(image.convert("L"), np.float64)
        scaled = {"I;16": grey * 257, "I": grey * 1000, "F": grey / 255}[mode]
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(scaled.astype(kind))
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        return image
    return image.quantize(16) if mode == "P" else image.convert(mode)


def as_a_whole(image: Image.Image) -> Image.Image:
    """RGB in one piece, put together in another way."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        values = np.asarray(image, np.float64)
        top = 65535 if values.max() <= 65535 else values.max()
        top = (1 if values.max() <= 1 else 255) if image.mode == "F" else top
        image = Image.fromarray((values * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    sizes=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=2),
    mode=st.sampled_from(MODES),
    orientation=st.integers(0, 9),
    strip=st.integers(1, 4000),
)
def test_strips_make_the_whole(
    size: tuple[int, int],
    sizes: list[tuple[int, int]],
    mode: str,
    orientation: int,
    strip: int,
) -> None:
    image = in_mode(draw(*size), mode)
    image.getexif()[0x0112] = orientation
    whole = as_a_whole(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "STRIP_PIXELS", strip)
        picture = Picture(image, "it", PICTURE_BYTES)
        assert picture.size == whole.size
        assert np.array_equal(np.asarray(picture.whole()), np.asarray(whole))
        for (width, height), ours in zip(sizes, picture.resized(sizes), strict=True):
            rows = whole.resize((width, whole.height), BILINEAR)
            expected = rows.resize((width, height), BILINEAR)
            assert np.array_equal(np.asarray(ours), np.asarray(expected))


def test_floats_that_are_no_numbers_are_left_out() -> None:
    values = np.array([[np.nan, np.inf, 100], [-np.inf, 50, 200]], np.float32)
    picture = Picture(Image.fromarray(values), "it", PICTURE_BYTES)
    assert np.asarray(picture.whole())[..., 0].tolist() == [[0, 255, 100], [0, 50, 200]]


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF", "JPEG2000", "AVIF"])
def test_what_would_take_too_much_is_refused_before_it_is_decoded(
    format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(draw(300, 200), format_)
    with Image.open(io.BytesIO(data)) as image:
        need = decoding_bytes(image)
        kind = type(image)
    assert open_picture(data, most_bytes=need).size == (300, 200)
    monkeypatch.setattr(kind, "load", None)
    with pytest.raises(ImageError, match=r"the image would take \d MB of memory to unpack, and"):
        open_picture(data, most_bytes=need - 1)
    with pytest.raises(ImageError, match="and there are 0 MB for it; scale it down"):
        open_picture(data, most_bytes=-5)


def test_what_would_take_too_much_to_scale_is_refused() -> None:
    image = Image.new("1", (1, 900_000))
    with pytest.raises(ImageError, match=r"the image would take 1,2\d\d MB of memory to unpack"):
        open_picture(encoded(image, "PNG"))
    tall = Picture(image, "it", PICTURE_BYTES)
    with pytest.raises(ImageError, match="MB of memory to scale, since it is 900,000 pixels high"):
        tall.resized([(1, 5376), (336, 336)])
    assert tall.reduced(100, 50).size == (1, 50)


def test_a_jpeg_of_too_many_pixels_is_decoded_at_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as telephones of 200 megapixels take."""
    data = encoded(draw(401, 203), "JPEG", quality=95)
    whole = open_picture(data)
    monkeypatch.setattr(picture_file, "MAX_PIXELS", 401 * 203 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 401 * 203 // 2 - 1)
    half = open_picture(data)
    assert (whole.size, half.size) == ((401, 203), (201, 102))
    difference = np.asarray(half.reduced(50, 25), int) - np.asarray(whole.reduced(50, 25), int)
    assert np.abs(difference).mean() < 3
    with pytest.raises(ImageError, match="million pixels; scale it down"):
        open_picture(encoded(draw(401, 203), "PNG"))
    monkeypatch.setattr(picture_file, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="million pixels; scale it down"):
        open_picture(data)


PEAK = """
import sys
from mlx_llama4.prompt.image import ImageTiler, pixel_table
from mlx_llama4.prompt.picture_file import decoding_bytes
from PIL import Image

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

tiler = ImageTiler(336, 16, pixel_table(1 / 255, [0.5] * 3, [0.5] * 3))
tiler.tile(Image.new("RGB", (700, 700)))
with Image.open(sys.argv[1]) as image:
    said = decoding_bytes(image)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak
tiler.tile(sys.argv[1])
print(status("VmHWM") - before, said)
"""


def peak_of(path: Path) -> tuple[int, int]:
    """Bytes that tiling a picture took at most, counted by the system, and what was said."""
    command = [sys.executable, "-W", "ignore", "-c", PEAK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    taken, said = map(int, done.stdout.split())
    return taken, said


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="counted by /proc")


@needs_linux
def test_memory_of_a_picture_is_what_was_said(tmp_path: Path) -> None:
    """16-bit grey took 25 bytes a pixel where 2 are needed."""
    path = tmp_path / "grey.png"
    Image.fromarray(np.zeros((3000, 6000), np.uint16)).save(path)
    taken, said = peak_of(path)
    assert taken <= said <= 130e6


LARGE = {  # name → mode, side, options of the encoder
    "grey 16.png": ("I;16", 13_300, {}),
    "rgba.png": ("RGBA", 9_000, {}),
    "progressive.jpg": ("RGB", 7_000, {"progressive": True, "subsampling": 0}),
    "cmyk.jpg": ("CMYK", 9_000, {}),
    "rgb.webp": ("RGB", 5_000, {"method": 0}),
    "rgba.webp": ("RGBA", 5_000, {"method": 0}),
    "rgb.avif": ("RGB", 5_000, {"speed": 10}),
    "rgba.jp2": ("RGBA", 4_000, {}),
    "float.tif": ("F", 6_000, {}),
    "rgb.tif": ("RGB", 8_000, {"compression": "tiff_lzw"}),
    "palette.gif": ("P", 9_000, {}),
}


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_memory_of_large_pictures_is_what_was_said(tmp_path: Path, name: str) -> None:
    """Turned by 90 degrees, where the format can say so."""
    mode, side, options = LARGE[name]
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {} if name.endswith((".gif", ".jp2", ".tif")) else {"exif": exif}
    Image.new(mode, (side, side)).save(tmp_path / name, **options, **more)
    taken, said = peak_of(tmp_path / name)
    assert taken <= said <= PICTURE_BYTES
