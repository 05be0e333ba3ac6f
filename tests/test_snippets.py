"""Every Python snippet of the documentation runs, on the demo model in place of the real ones.

A page is run from top to bottom, in one namespace and one folder, which holds what the snippets
name. A block with `file=NAME` is not run but written to that file.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_llama4.demo.questions import CHECKPOINT, NOTES, PICTURES

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|json)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted(
    page
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    if "```python" in page.read_text("utf-8")
)
MODELS = ("scout-4bit", "maverick-4bit")
PHOTOS = {"photo.jpg": "two.png", "sign.jpg": "star.png", "map.jpg": "three.png"}


@pytest.fixture
def place(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the models, pictures and texts that the pages name."""
    for name in MODELS:
        (tmp_path / name).symlink_to(demo_folder)
    (tmp_path / "scout").symlink_to(CHECKPOINT)
    for name, picture in PHOTOS.items():
        shutil.copy(PICTURES / picture, tmp_path / name)
    (tmp_path / "book.txt").write_text(NOTES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, file if it is to be written, and code; after as many lines as come before it, so
    that a traceback names the page's own line."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        language, info, code = match.groups()
        file = re.search(r"file=(\S+)", info)
        lines = text.count("\n", 0, match.start(3))
        yield language, file[1] if file else "", code if file else "\n" * lines + code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page: Path, place: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for language, file, code in blocks(page):
        if file:
            (place / file).write_text(code, "utf-8")
        elif language == "python":
            exec(compile(code, page, "exec"), namespace)
            ran += 1
    assert ran > 0


def test_a_snippet_that_fails_is_found(tmp_path: Path, place: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nanswer = 42\n```\n\n```python\nassert answer == 7\n```\n")
    with pytest.raises(AssertionError):
        test_snippets_run(page, place)


def test_all_python_is_in_blocks_that_are_run() -> None:
    """No page hides Python behind an indent or another name of the language."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text("utf-8")
        assert not re.search(r"^ +```|```py\b", text, re.MULTILINE), page.name
