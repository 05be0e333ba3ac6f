"""What `ask --image` names: files, patterns, folders, URLs, standard input."""

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from mlx_llama4.cli import ask_input
from mlx_llama4.cli.main import app
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import ImageError
from mlx_llama4.opening import open_folder
from mlx_llama4.planning.machine import Machine
from tests.commands import run
from tests.picture_server import Answer, Web, web  # noqa: F401  (a fixture)

Ask = Callable[..., Result]

STAR = (PICTURES / "star.png").read_bytes()
SEEN = "What is in the image?"


@pytest.fixture
def ask(demo_folder: Path) -> Ask:
    def invoke(*arguments: object, data: bytes = b"", command: str = "ask") -> Result:
        words = [command, *map(str, arguments), "--model", str(demo_folder)]
        return CliRunner().invoke(app, words, input=data)

    return invoke


@pytest.fixture
def refused(ask: Ask) -> Callable[..., str]:
    def said(*arguments: object, **more: object) -> str:
        result = ask(*arguments, **more)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert len(line) < 300
        return line.removeprefix("error: ")

    return said


def test_pictures_by_pattern(tmp_path: Path) -> None:
    names = ["b.png", "a.png", "c [1].png", "deep/d.png"]
    (tmp_path / "deep").mkdir()
    for name in names:
        (tmp_path / name).touch()

    def found(*typed: str) -> list[str]:
        paths = ask_input.find_pictures([str(tmp_path / path) for path in typed])
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found("*.png") == ["a.png", "b.png", "c [1].png"]
    assert found("c [1].png", "b.png") == ["c [1].png", "b.png"]  # a name that there is
    assert found("gone.png", "[ab].png") == ["gone.png", "a.png", "b.png"]
    assert set(found("**/*.png")) == set(names)
    with pytest.raises(ImageError, match=r"/\*\.gif matches no file"):
        found("a.png", "*.gif")


def test_pictures_by_pattern_are_seen(ask: Ask) -> None:
    result = ask("Which image has a triangle?", "--image", PICTURES / "[fs]*.png")
    assert result.stdout == "The triangle is in the second image.\n"


def test_the_same_picture_by_every_name(
    ask: Ask,
    web: Web,  # noqa: F811
    demo_folder: Path,
    tmp_path: Path,
) -> None:
    """A file, a file: URL, a data: URL, an http: URL that was typed, standard input, a folder."""
    (tmp_path / "a folder").mkdir()
    path = tmp_path / "a folder" / "the star.PNG"
    path.write_bytes(STAR)
    web.answers["/s"] = Answer(STAR)
    processor = open_folder(demo_folder).processor
    expected = processor.tile(path).digest
    encoded = base64.b64encode(STAR).decode()
    for name in (
        f"file://{tmp_path}/a%20folder/the%20star.PNG",
        f"FILE://localhost{path}",
        f"data:image/png;base64,{encoded}",
        f"data:;base64,{encoded.rstrip('=')}",
        f"{web.address}/s?size=1",
        f"HTTP{web.address[4:]}/s",
        str(path.parent),
    ):
        (image,) = ask_input.tiled(processor, ask_input.find_pictures([name]), no_fetch=False)
        assert image.digest == expected, name
    for name in ("-", f"{web.address}/s"):
        result = ask(SEEN, "-i", name, data=STAR)
        assert (result.stdout, result.stderr) == ("From left to right: a red star.\n", ""), name


def test_standard_input_in_a_process_of_its_own(demo_folder: Path) -> None:
    said = run("ask", SEEN, "-i", "-", "-m", demo_folder, text="no picture")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("error: the image is not a picture in a known format")


def test_standard_input_is_one_thing(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("-i", "-", data=STAR).startswith("-i - takes standard input for a picture")
    assert refused("-", "-i", "-", data=STAR).startswith("-i - takes standard input for a picture")
    assert "standard input is empty" in refused(SEEN, "-i", "-")
    assert "name it once" in refused(SEEN, "-i", "-", "-i", "-", data=STAR)
    said = refused("-", "-o", tmp_path / "x", "-i", "-", data=STAR, command="cache")
    assert said.startswith("standard input cannot be both")


@pytest.mark.parametrize("data", [STAR, b"\xff\xd8\xff\xe0 JFIF", b"RIFF\0\0\0\x80WEBPVP8 "])
def test_a_picture_where_a_text_belongs(refused: Callable[..., str], data: bytes) -> None:
    class Piped(io.TextIOWrapper):
        pass

    stream = Piped(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stream)
        with pytest.raises(ask_input.PromptError, match="add -i - to ask about it"):
            ask_input.read_question(None, raw=False)


def test_no_picture_takes_more_than_the_machine_has(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_llama4.planning.machine.this_machine", lambda: Machine(0, 10**8, None))
    path = tmp_path / "white.png"
    Image.new("L", (8000, 8000), 255).save(path)
    assert "MB of memory to unpack, and there are 100 MB for it" in refused(SEEN, "-i", path)


def test_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPEG", ".hidden.png", "notes.txt", "c.webp", "noending"):
        (tmp_path / name).touch()
    (tmp_path / "deep.png").mkdir()
    (tmp_path / "deep.png" / "d.png").touch()
    found = ask_input.find_pictures([str(tmp_path), str(tmp_path / "deep.png")])
    assert [Path(path).name for path in found] == ["a.JPEG", "b.png", "c.webp", "d.png"]
    assert ask_input.find_pictures([f"file://{tmp_path}/"]) == found[:3]


def test_folders_that_are_refused(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").touch()
    assert "is a folder that holds no pictures" in refused(SEEN, "-i", tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.png").touch()
    monkeypatch.setattr(ask_input, "MOST_IN_A_FOLDER", 3)
    said = refused(SEEN, "-i", tmp_path)
    assert "holds 4 pictures, and one question can be about 3 at most" in said


def test_names_that_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    long = "A" * 5000
    for name, expected in {
        "": "-i has an empty name",
        "ftp://example.com/cat.png": "ftp: URLs of pictures are not read; download it",
        "S3://bucket/cat.png": "s3: URLs of pictures are not read; download it",
        "file://server/cat.png": "file://server/cat.png is on another machine",
        f"file://{tmp_path}/none.png": f"{tmp_path}/none.png does not exist",
        f"data:image/png;base64,{long}": "the data: URL is not a picture",
        "data:image/png;base64,A!A=": "the data: URL's base64 is damaged",
        "data:image/png;base64": "the data: URL has no comma",
        "data:,hello%20there": "the data: URL is not a picture",
        "data:,": "the data: URL is empty",
        "http://": "http:// is no valid URL",
    }.items():
        assert refused(SEEN, "-i", name).startswith(expected), name


@pytest.mark.parametrize("command", ["ask", "cache", "compare"])
def test_no_fetch(
    web: Web,  # noqa: F811
    refused: Callable[..., str],
    demo_folder: Path,
    tmp_path: Path,
    command: str,
) -> None:
    url = f"{web.address}/cat.png"
    arguments = {
        "ask": (SEEN,),
        "cache": ("-o", tmp_path / "x.cache"),
        "compare": (demo_folder, demo_folder),
    }
    if command == "compare":
        result = CliRunner().invoke(
            app, ["compare", str(demo_folder), str(demo_folder), "-i", url, "--no-fetch"]
        )
        said = result.stderr.removeprefix("error: ")
    else:
        said = refused(*arguments[command], "-i", url, "--no-fetch", command=command)
    assert said.startswith(f"{url} is not fetched, because of --no-fetch")
    assert web.asked == []
