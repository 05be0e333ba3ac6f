"""The pictures of terminals in the documentation, made by running what they show.

    python -m docs.record [NAME …]      from the repository's root; NAME: demo, ask, chat …

Each scene runs on a terminal of its own (tests/screen.py), on the demo model, in an empty home, and
what is then on the screen becomes docs/recordings/NAME.svg. Only the figures of speed differ from
one run to the next. The demo model writes no Markdown: the answer of that scene is given.
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.quantization import Quantization
from tests.screen import MLX_LLAMA4, Terminal
from tests.scripted_chat import command

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT / "docs" / "recordings"

# pyte's names where rich has others.
COLOURS = {"brown": "yellow", "brightbrown": "bright_yellow"}
THEME = TerminalTheme(
    (28, 30, 36), (222, 224, 228),
    [(60, 63, 72), (224, 108, 117), (140, 194, 101), (217, 174, 98),
     (97, 158, 234), (190, 132, 220), (86, 182, 194), (210, 212, 216)],
    [(128, 132, 142), (240, 130, 138), (165, 214, 130), (233, 196, 130),
     (130, 182, 245), (208, 160, 234), (115, 205, 215), (245, 246, 248)],
)  # fmt: skip

# rich's own names a font to be fetched from the web; a picture in a repository must not.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
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
"""


@dataclass(frozen=True)
class Scene:
    """arguments: as a shell takes them. act: what the user then does; None: waits for the end."""

    arguments: tuple[str, ...]
    act: Callable[[Terminal], None] | None = None
    answers: tuple[str, ...] = ()  # in place of the model's own
    columns: int = 96
    rows: int = 24


CHAT = ("chat", "--model", "demo-8bit")

MARKDOWN = """\
## Areas of the shapes

A *square* is the simplest of them, a **circle** needs `math.pi`:

```python
import math

def area(shape: str, size: float) -> float:
    \"\"\"Of a square's side, or a circle's radius.\"\"\"
    return {"square": 1.0, "circle": math.pi}[shape] * size**2
```

| shape | size | area |
|-------|-----:|-----:|
| square | 3 | 9.00 |
| circle | 3 | 28.27 |

1. measure it twice;
2. then mind the units.
"""


def talk(chat: Terminal) -> None:
    chat.until_asked()
    chat.paste("'my pictures/three shapes.png' ")
    chat.enter("Describe the image.")
    chat.enter("What is on the right?")
    chat.enter("/stats")
    chat.enter("/stast")
    chat.type("What is on the left? two.png")
    chat.settle(0.5)


def ask_for_code(chat: Terminal) -> None:
    chat.until_asked()
    chat.enter("How large are they?")


SCENES = {
    "demo": Scene(("demo",)),
    "ask": Scene(("ask", "Which image has a triangle?", "-m", "demo-8bit", "-i", "first.png",
                  "-i", "second.png")),
    "chat": Scene(CHAT, talk, rows=22),
    "markdown": Scene(CHAT, ask_for_code, (MARKDOWN,), columns=80, rows=29),
}  # fmt: skip


def record(name: str, home: Path) -> Path:
    scene = SCENES[name]
    program = command(home, *scene.answers) if scene.answers else MLX_LLAMA4
    with Terminal(
        *scene.arguments, home=home, columns=scene.columns, rows=scene.rows, command=program
    ) as terminal:
        if scene.act is not None:
            scene.act(terminal)
        elif terminal.until_done() != 0:
            raise SystemExit(f"{name}: {terminal.text()}")
        lines = terminal.lines()
    text = Text("\n").join([Text(f"$ {command_line(scene.arguments)}"), *map(styled, lines)])
    console = Console(
        record=True, width=scene.columns, file=io.StringIO(), color_system="truecolor",
        force_terminal=True, legacy_windows=False,
    )  # fmt: skip
    console.print(text, overflow="fold")
    path = RECORDINGS / f"{name}.svg"
    console.save_svg(
        str(path), title=f"mlx-llama4 {scene.arguments[0]}", theme=THEME, code_format=SVG,
        unique_id=f"terminal-{name}",
    )  # fmt: skip
    return path


def command_line(arguments: tuple[str, ...]) -> str:
    words = (f'"{word}"' if " " in word else word for word in arguments)
    return " ".join(("mlx-llama4", *words))


def styled(line: list[Char]) -> Text:
    """With the repository's folder named as a user's would be."""
    text = Text()
    for style, cells in groupby(line, style_of):
        text.append("".join(cell.data for cell in cells), style)
    place = text.plain.find(str(ROOT))
    if place >= 0:
        end = place + len(str(ROOT))
        text = Text.assemble(text[:place], "~/mlx-llama4", text[end:])
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


def main(names: list[str]) -> None:
    RECORDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-record-") as temporary:
        home = Path(temporary)
        convert(CHECKPOINT, home / "demo-8bit", Recipe("bfloat16", Quantization(64, 8)))
        for picture in PICTURES.glob("*.png"):
            shutil.copy(picture, home)
        (home / "my pictures").mkdir()
        shutil.copy(PICTURES / "three.png", home / "my pictures" / "three shapes.png")
        for name in names or SCENES:
            path = record(name, home)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
