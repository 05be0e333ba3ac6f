"""Read pictures from the clipboard and copy text to it, with the system's own programs."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlx_llama4.errors import InputError, RunError

SECONDS = 5
# How much terminals accept in one OSC 52; xterm's limit is the smallest of the common ones.
OSC_52_BYTES = 74_994
PNG = b"\x89PNG\r\n"
PNG_ON_MACOS = "the clipboard as «class PNGf»"


def clipboard_image() -> bytes:
    """Read the clipboard's picture as PNG. Raises InputError if there is none or no access."""
    if sys.platform == "darwin":
        data = _macos_image()
    elif os.environ.get("WAYLAND_DISPLAY") and shutil.which("wl-paste"):
        data = _output(["wl-paste", "--no-newline", "--type", "image/png"])
    elif os.environ.get("DISPLAY") and shutil.which("xclip"):
        data = _output(["xclip", "-selection", "clipboard", "-t", "image/png", "-o"])
    else:
        raise InputError(
            "no access to the clipboard: it takes wl-paste (Wayland) or xclip (X11) and a desktop"
        )
    if not data.startswith(PNG):
        raise InputError("there is no picture on the clipboard; copy one first")
    return data


def _macos_image() -> bytes:
    if shutil.which("pngpaste"):
        return _output(["pngpaste", "-"])
    # «data PNGf89504E47…»: AppleScript's way to print bytes.
    printed = _output(["osascript", "-e", f"get {PNG_ON_MACOS}"]).decode(errors="replace")
    start, _, digits = printed.strip().rstrip("»").partition("PNGf")
    try:
        return bytes.fromhex(digits) if start.endswith("data ") else b""
    except ValueError:
        return b""


def _output(command: list[str]) -> bytes:
    """Run a program and return its output; empty if it fails, as all do without a picture."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]} did not answer in {SECONDS} s") from None
    except OSError as failure:
        raise InputError(f"cannot read the clipboard with {command[0]} ({failure})") from None
    return done.stdout if done.returncode == 0 else b""


def copy_text(text: str) -> str:
    """Put the text on the clipboard. Returns the name of what did it.

    If there is no program for it (for example over ssh), ask the terminal (OSC 52), which does not
    confirm. Raises RunError if there is no terminal, or if the text is too long.
    """
    data = text.encode(errors="replace")
    for command in _copy_commands():
        if shutil.which(command[0]) and _feed(command, data):
            return command[0]
    encoded = base64.b64encode(data)
    if len(encoded) > OSC_52_BYTES:
        raise RunError(
            f"the text of {len(data):,} bytes is too long for the terminal's clipboard; "
            "it takes pbcopy, wl-copy, xclip or xsel"
        )
    sequence = b"\x1b]52;c;" + encoded + b"\x07"
    if os.environ.get("TMUX"):
        sequence = b"\x1bPtmux;" + sequence.replace(b"\x1b", b"\x1b\x1b") + b"\x1b\\"
    try:
        with Path("/dev/tty").open("wb", buffering=0) as terminal:
            terminal.write(sequence)
    except OSError:
        raise RunError(
            "no access to the clipboard: it takes pbcopy, wl-copy, xclip, xsel or a terminal"
        ) from None
    return "the terminal"


def _copy_commands() -> list[list[str]]:
    if sys.platform == "darwin":
        return [["pbcopy"]]
    commands = []
    if os.environ.get("WAYLAND_DISPLAY"):
        commands.append(["wl-copy"])
    if os.environ.get("DISPLAY"):
        commands += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return commands


def _feed(command: list[str], data: bytes) -> bool:
    """Whether the program took the data. It may keep running to serve it, so hold no pipe open."""
    try:
        done = subprocess.run(
            command, input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
