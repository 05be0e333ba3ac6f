"""The clipboard, through stand-ins for the programs that reach it."""

import base64
import io
import os
import pty
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_llama4.cli.talk import clipboard
from mlx_llama4.cli.talk.clipboard import clipboard_image, copy_text
from mlx_llama4.errors import InputError, RunError


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs, the only one but for the shell's own, and no desktop."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    for name in ("cat", "sh"):
        program = next(Path(f, name) for f in ("/bin", "/usr/bin") if Path(f, name).exists())
        (tmp_path / name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("platform", "variable", "name", "script"),
    [
        ("linux", "WAYLAND_DISPLAY", "wl-paste", 'cat "${0%/*}/png"'),
        ("linux", "DISPLAY", "xclip", 'cat "${0%/*}/png"'),
        ("darwin", "HOME", "pngpaste", 'cat "${0%/*}/png"'),
        ("darwin", "HOME", "osascript", f"echo '«data PNGf{png().hex().upper()}»'"),
    ],
)
def test_a_picture(
    desktop: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, name: str,
    script: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, ":0")
    (desktop / "png").write_bytes(png())
    program(desktop, name, script)
    assert clipboard_image() == png()
    program(desktop, name, "echo no such type >&2; exit 1")
    with pytest.raises(InputError, match="no picture on the clipboard"):
        clipboard_image()


def test_no_way_to_a_picture() -> None:
    with pytest.raises(InputError, match="wl-paste"):
        clipboard_image()


@pytest.mark.parametrize(
    ("platform", "variable", "name"),
    [
        ("darwin", "HOME", "pbcopy"), ("linux", "WAYLAND_DISPLAY", "wl-copy"),
        ("linux", "DISPLAY", "xclip"), ("linux", "DISPLAY", "xsel"),
    ],
)  # fmt: skip
def test_copying(
    desktop: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, name: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, ":0")
    program(desktop, name, 'cat > "${0%/*}/copied"')
    assert copy_text("ünd\n漢字") == name
    assert (desktop / "copied").read_text("utf-8") == "ünd\n漢字"


def test_the_terminal_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    monkeypatch.setattr(clipboard, "Path", lambda path: Path(name))
    assert copy_text("漢字") == "the terminal"
    assert os.read(master, 100) == b"\x1b]52;c;" + base64.b64encode("漢字".encode()) + b"\x07"
    os.close(slave)
    os.close(master)


def test_no_way_to_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="too long"):
        copy_text("x" * 60_000)
    monkeypatch.setattr(clipboard, "Path", lambda path: tmp_path / "none" / "tty")
    with pytest.raises(RunError, match="no access to the clipboard"):
        copy_text("x")
