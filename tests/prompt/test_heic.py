"""HEIC pictures: by macOS's sips there, and one clear line elsewhere."""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_llama4.errors import ImageError
from mlx_llama4.prompt.heic import is_heic
from mlx_llama4.prompt.picture_file import open_image

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def sips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name which "converts" to what lies beside it, if that is there."""
    picture = tmp_path / "converted.png"
    program = tmp_path / "sips"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1 $2 $3 $5" = "-s format png --out" ] || exit 1\n'
        f'[ -e {picture} ] && cp {picture} "$6"\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    return picture


def test_sips_converts(sips: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(sips)
    path = tmp_path / "IMG_0001.jpg"  # the name does not matter
    path.write_bytes(HEIC)
    for source in (path, HEIC):
        image = open_image(source)
        assert (image.size, image.getpixel((0, 0))) == ((3, 2), (255, 0, 0))


def test_damaged(sips: Path) -> None:
    with pytest.raises(ImageError, match="the image is a damaged HEIC picture"):
        open_image(HEIC)


def test_without_sips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImageError, match="cannot run sips"):
        open_image(HEIC)


def test_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    path = tmp_path / "x.heic"
    path.write_bytes(HEIC)
    with pytest.raises(ImageError, match=r"x\.heic is a HEIC picture.*PNG or JPEG first"):
        open_image(path)


def test_what_is_heic() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    assert is_heic(HEIC)
    assert not is_heic(stream.getvalue())
    assert not is_heic(b"\0\0\0\x18ftypmp42")
    assert not is_heic(b"")
