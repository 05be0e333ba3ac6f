"""Every kind of picture a user may have, and every kind of file that is none."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_llama4.errors import ImageError
from mlx_llama4.prompt.picture_file import MAX_PIXELS, MAX_SIDE, open_image
from tests.golden.pictures import draw


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return image.getpixel((x, y))


def test_path_bytes_and_pil_are_the_same(tmp_path: Path) -> None:
    image = draw(31, 17)
    path = tmp_path / "a picture ünd so.png"
    image.save(path)
    results = [np.asarray(open_image(s)) for s in (path, str(path), path.read_bytes(), image)]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (7, (1, 1)),
     (8, (0, 1))],
)  # fmt: skip
def test_exif_orientation(orientation: int, corner: tuple[int, int]) -> None:
    """The red corner of the sensor's image stands where the tag says."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_image(encoded(image, "PNG", exif=exif))
    assert upright.size == ((40, 20) if orientation < 5 else (20, 40))
    x, y = corner[0] * (upright.width - 1), corner[1] * (upright.height - 1)
    assert pixel(upright, x, y) == (255, 0, 0)


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert pixel(open_image(encoded(clear, "PNG"))) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert pixel(open_image(half)) == (127, 127, 127)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert pixel(open_image(encoded(grey, "PNG"))) == (255, 255, 255)


def test_palettes() -> None:
    image = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert pixel(open_image(encoded(image, "PNG"))) == (10, 200, 30)
    image.info["transparency"] = image.getpixel((0, 0))
    png = encoded(image, "PNG", transparency=image.getpixel((0, 0)))
    assert pixel(open_image(png)) == (255, 255, 255)


def test_one_bit_and_grey() -> None:
    assert pixel(open_image(encoded(Image.new("1", (3, 3), 1), "PNG"))) == (255, 255, 255)
    assert pixel(open_image(encoded(Image.new("L", (3, 3), 77), "PNG"))) == (77, 77, 77)


def test_sixteen_bits_keep_their_brightness() -> None:
    """Pillow's own conversion clips everything above 255 to white."""
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    image = open_image(encoded(Image.fromarray(values), "PNG"))
    assert [pixel(image, x)[0] for x in range(3)] == [0, 100, 255]
    tiff = open_image(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))
    assert [pixel(tiff, x)[0] for x in range(3)] == [0, 100, 255]


def test_floats() -> None:
    image = open_image(encoded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"))
    assert [pixel(image, x)[0] for x in range(3)] == [0, 128, 255]
    values = np.array([[np.nan, 0.5, np.inf, -np.inf]], np.float32)
    image = open_image(encoded(Image.fromarray(values), "TIFF"))
    assert [pixel(image, x)[0] for x in range(4)] == [0, 128, 255, 0]


def test_cmyk_and_ycbcr() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = pixel(open_image(encoded(cmyk, "JPEG")))
    assert red > 240 and green < 15 and blue < 15
    assert open_image(Image.new("YCbCr", (4, 4))).mode == "RGB"


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(format_: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert pixel(open_image(data)) == (255, 0, 0)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"https:/x/a\.png: a Path loses a slash of a URL"):
        open_image(Path("https://x/a.png"))
    with pytest.raises(ImageError, match="cannot read"):
        open_image("~nobody-of-this-name/x.png")
    with pytest.raises(ImageError, match="cannot read"):
        open_image("a\0b.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(ImageError, match=r"empty\.png is empty \(0 bytes\)"):
        open_image(path)
    with pytest.raises(ImageError, match="is empty"):
        open_image(b"")


def test_text_named_png(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture, but quite some text\n" * 20)
    with pytest.raises(ImageError, match=r"notes\.png is not a picture"):
        open_image(path)


def test_postscript_is_never_run() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not a picture"):
        open_image(eps)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_truncated(format_: str) -> None:
    data = encoded(draw(120, 90), format_)
    with pytest.raises(ImageError, match=r"damaged|not a picture"):
        open_image(data[: len(data) // 2])


def test_decompression_bomb() -> None:
    """A PNG of a few bytes that claims more pixels than we decode."""
    side = int(MAX_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="million pixels"):
        open_image(png)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.data())
def test_damaged_files_are_pictures_or_image_errors(data: st.DataObject) -> None:
    format_ = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
    blob = bytearray(encoded(draw(40, 30), format_))
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(0, len(blob)))]
    try:
        assert open_image(bytes(blob)).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (170_000_000, 1)])
def test_a_picture_with_a_side_too_long_is_refused(size: tuple[int, int]) -> None:
    data = encoded(Image.new("1", size), "PNG")
    with pytest.raises(ImageError, match="no side may have more than 1,000,000"):
        open_image(data)
