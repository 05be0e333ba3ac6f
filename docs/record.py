"""The README's picture: a chat with the demo model, and beside it the pictures that it is about.

    python -m docs.record      from the repository's root

The chat runs on a terminal of its own (tests/screen.py), in an empty home. What is then on the
screen becomes docs/recordings/chat.svg; the answers are the model's. Only the figures of speed
differ from one run to the next.
"""

import io
import re
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

from pyte.screens import Char
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo import render
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.quantization import Quantization
from tests.screen import Terminal

RECORDING = Path(__file__).parent / "recordings" / "chat.svg"
COLUMNS, ROWS = 84, 20
ASKED_ABOUT = ("three.png", "two.png")

# pyte's names where rich has others.
COLOURS = {"brown": "yellow", "brightbrown": "bright_yellow"}
THEME = TerminalTheme(
    (28, 30, 36), (222, 224, 228),
    [(60, 63, 72), (224, 108, 117), (140, 194, 101), (217, 174, 98),
     (97, 158, 234), (190, 132, 220), (86, 182, 194), (210, 212, 216)],
    [(128, 132, 142), (240, 130, 138), (165, 214, 130), (233, 196, 130),
     (130, 182, 245), (208, 160, 234), (115, 205, 215), (245, 246, 248)],
)  # fmt: skip

FONT = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
# rich's own names a font to be fetched from the web; a picture in a repository must not.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: FONT;
  font-size: {char_height}px; line-height: {line_height}px;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
""".replace("FONT", FONT)
PANEL, CARD, GAP = 260, 230, 24  # pixels: the pictures' column, a picture in it, what is between


def talk(chat: Terminal) -> None:
    chat.until_asked()
    chat.paste("'my pictures/three.png' ")
    chat.enter("Describe the image.")
    chat.enter("Describe the second image. two.png")
    chat.enter("Which image has a star?")
    chat.settle(0.5)


def record(home: Path) -> str:
    """The terminal after the talk, as an SVG."""
    arguments = ("chat", "--model", "demo-8bit")
    with Terminal(*arguments, home=home, columns=COLUMNS, rows=ROWS) as terminal:
        talk(terminal)
        lines = terminal.lines()
    text = Text("\n").join([Text(f"$ mlx-llama4 {' '.join(arguments)}"), *map(styled, lines)])
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor",
        force_terminal=True, legacy_windows=False,
    )  # fmt: skip
    console.print(text, overflow="fold")
    return console.export_svg(
        title="mlx-llama4 chat", theme=THEME, code_format=SVG, unique_id="terminal"
    )


def styled(line: list[Char]) -> Text:
    text = Text()
    for style, cells in groupby(line, style_of):
        text.append("".join(cell.data for cell in cells), style)
    return text


def style_of(cell: Char) -> Style:
    return Style(
        color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, italic=cell.italics,
        underline=cell.underscore, strike=cell.strikethrough, reverse=cell.reverse,
    )  # fmt: skip


def colour(name: str) -> Color | None:
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return Color.parse(f"#{name}")
    name = COLOURS.get(name, name)
    return Color.parse(name.replace("bright", "bright_") if "bright_" not in name else name)


def with_pictures(terminal: str) -> str:
    """The terminal, and to its right the pictures, drawn from what their files were drawn from."""
    width, height = (
        float(side) for side in re.search(r'viewBox="0 0 (\S+) (\S+)"', terminal).groups()
    )
    cards, top = [], GAP
    for name in ASKED_ABOUT:
        picture = render.PICTURES[name]
        scale = CARD / picture.width
        cards.append(
            f'<g transform="translate({width + GAP}, {top}) scale({scale:.4f})">'
            f"{drawn(picture)}</g>"
            f'<text x="{width + GAP}" y="{top + picture.height * scale + 22}" fill="#808080" '
            f"font-size=\"16\" font-family='{FONT}'>{name}</text>"
        )  # fmt: skip
        top += round(picture.height * scale) + 22 + GAP
    inner = terminal.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
    outer = f'<svg viewBox="0 0 {width + PANEL} {height}" xmlns="http://www.w3.org/2000/svg">'
    return "\n".join([outer, inner, *cards, "</svg>\n"])


def drawn(picture: render.Picture) -> str:
    """As SVG, in the picture's own pixels."""
    width, height = picture.width, picture.height
    parts = [
        f'<rect width="{width}" height="{height}" fill="rgb{picture.background}" '
        'stroke="#808080" stroke-width="0.5"/>'
    ]
    for shape in picture.shapes:
        x, y, radius = shape.x * width, shape.y * height, shape.radius * min(width, height)
        fill = f'fill="rgb{render.COLOURS[shape.colour]}"'
        if shape.kind == "circle":
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" {fill}/>')
        else:
            corners = (f"{cx:.2f},{cy:.2f}" for cx, cy in render.outline(shape, x, y, radius))
            parts.append(f'<polygon points="{" ".join(corners)}" {fill}/>')
    return "".join(parts)


def main() -> None:
    RECORDING.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-record-") as temporary:
        home = Path(temporary)
        convert(CHECKPOINT, home / "demo-8bit", Recipe("bfloat16", Quantization(64, 8)))
        (home / "my pictures").mkdir()
        shutil.copy(PICTURES / "three.png", home / "my pictures")
        shutil.copy(PICTURES / "two.png", home)
        RECORDING.write_text(with_pictures(record(home)), "utf-8")
    print(f"{RECORDING.name}: {RECORDING.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
