"""`mlx-llama4 cache`, and what ask and chat make of its files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_llama4.cache.prompt_file import PromptFile
from mlx_llama4.demo.questions import NOTES, PICTURES
from tests.commands import refused, run_here

QUESTION = "What is the code of walnut?"
ANSWER = "The code of walnut is 407."


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(NOTES * 2)
    return path


@pytest.fixture(scope="module")
def cached(book: Path, demo_folder: Path) -> Path:
    """The book, with 8-bit keys and values."""
    path = book.with_name("book.safetensors")
    result = run_here("cache", book, "--model", demo_folder, "-o", path, "--kv-bits", 8)
    assert result.returncode == 0, result.stderr
    size = path.stat().st_size / 1000
    assert result.stdout == f"{path}: {PromptFile(path).tokens} tokens, {size:.3g} KB\n"
    return path


def test_ask_with_a_cache(cached: Path, demo_folder: Path) -> None:
    result = run_here("ask", QUESTION, "--model", demo_folder, "--cache", cached, "--json")
    found = json.loads(result.stdout)
    assert found["text"] == ANSWER
    assert found["cached_tokens"] == PromptFile(cached).tokens
    assert found["prompt_tokens"] < found["cached_tokens"] + 30


@pytest.mark.slow
def test_small_pictures_and_standard_input(demo_folder: Path, tmp_path: Path) -> None:
    full, small = tmp_path / "full", tmp_path / "small"
    picture = ("--image", PICTURES / "star.png")
    for path, options in ((full, ()), (small, ("--small",))):
        result = run_here(
            "cache", "-", "--model", demo_folder, *picture, "-o", path, *options, text=NOTES
        )
        assert result.returncode == 0, result.stderr
        answer = run_here("ask", "What is in the image?", "--model", demo_folder, "--cache", path)
        assert "star" in answer.stdout
    assert small.stat().st_size < 0.8 * full.stat().st_size
    # Pictures alone are a document too.
    assert run_here("cache", "--model", demo_folder, *picture, "-o", full).returncode == 0


def test_chat_with_a_cache_goes_on_saves_and_goes_back(
    cached: Path, demo_folder: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    typed = f"{QUESTION}\n/retry\n/retry What is 2 plus 3?\n/undo\n{QUESTION}\n/save {saved}\n"
    result = run_here("chat", "--model", demo_folder, "--cache", cached, text=typed)
    assert result.stdout.splitlines() == [ANSWER, ANSWER, "2 plus 3 is 5.", ANSWER]
    assert f"[{saved}: " in result.stderr
    result = run_here("chat", "--model", demo_folder, "--cache", saved, text="/retry\n")
    assert result.stdout.splitlines() == [ANSWER]


def test_commands_of_chat_that_cannot_be_done(demo_folder: Path, tmp_path: Path) -> None:
    typed = f"/retry\n/undo\n/undo x\n/save\n/save {tmp_path}/a\nHello\n/save {tmp_path}\n/undo 2\n"
    typed += "/save ~nobody-of-this-name/a\n"
    result = run_here("chat", "--model", demo_folder, text=typed)
    assert result.returncode == 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: nothing has been asked yet",
        "error: nothing has been asked yet",
        "error: /undo takes a number, not 'x'",
        "error: give the name of a file: /save FILE",
        "error: nothing has been said yet that could be saved",
        f"error: {tmp_path} is a folder; give the name of a file",
        "error: cannot go back 2 questions; 1 were asked",
        f"error: {Path.cwd()}/~nobody-of-this-name is not a folder; create it first",
    ]


@pytest.mark.slow
def test_what_is_refused_before_the_weights_are_read(
    cached: Path, book: Path, demo_folder: Path, talkative: Path, tmp_path: Path
) -> None:
    ask = ("ask", "Hello", "--model", demo_folder)
    assert "made with another model" in refused(
        "ask", "Hello", "--model", talkative, "--cache", cached
    )
    assert "8 bits in groups of 64, not 4 in 64" in refused(*ask, "--cache", cached, "--kv-bits", 4)
    assert "a system prompt of its own" in refused(*ask, "--cache", cached, "--system", "Hi")
    assert "does not exist" in refused(*ask, "--cache", "nowhere")
    assert "not a prompt cache" in refused(*ask, "--cache", next(demo_folder.glob("*.safetensors")))
    cut = tmp_path / "cut"
    cut.write_bytes(cached.read_bytes()[:-1])
    assert "is truncated" in refused(*ask, "--cache", cut)
    assert "take 4 or 8 bits" in refused(*ask, "--kv-bits", 3)
    assert "use 32, 64 or 128" in refused(*ask, "--kv-bits", 8, "--kv-group-size", 48)
    assert "heads are 64 wide" in refused(*ask, "--kv-bits", 8, "--kv-group-size", 128)
    assert "need --kv-bits" in refused(*ask, "--kv-quantize-after", 5)

    make = ("cache", "--model", demo_folder, "-o", tmp_path / "out")
    assert "cannot read nowhere" in refused(*make, "nowhere")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Grüße".encode("latin-1"))
    assert "not UTF-8 (byte 2)" in refused(*make, latin)
    for picture in sorted(PICTURES.glob("*.png")):
        assert f"is a picture, not a text; give it as --image {picture}" in refused(*make, picture)
    assert "give a text to read" in refused(*make)
    assert "latin.txt" in refused(*make, book, "--image", latin)
    long = tmp_path / "long.txt"
    long.write_text(NOTES * 300)
    assert "context holds 32,768" in refused(*make, long)
    nowhere = tmp_path / "nowhere" / "out"
    assert "create it first" in refused("cache", book, "--model", demo_folder, "-o", nowhere)
    assert not (tmp_path / "out").exists()
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert "empty.txt is empty; give a text" in refused(*make, empty)
    before = book.read_bytes()
    assert "exists and is not a prompt cache; give another name" in refused(
        "cache", book, "--model", demo_folder, "-o", book.parent / "." / "book.txt"
    )
    assert book.read_bytes() == before


def test_a_terminal_that_is_closed_keeps_what_was_read(
    book: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """And so does whoever ends the process: as Ctrl-C, once the step at hand is done."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        out = tmp_path / number.name
        command = ["cache", book, "--model", demo_folder, "-o", out, "--prefill-step", 64]
        result = interrupted(command, f"done == 128 and signal.raise_signal({number.value})")
        assert result.returncode == 130
        assert PromptFile(out.with_name(f"{number.name}.unfinished")).held == 128
        assert not out.exists()


def interrupted(command: list[object], at: str) -> subprocess.CompletedProcess:
    """`command`, with Ctrl-C where `at` is true of the tokens read so far, `done`."""
    code = (
        "import signal, sys\n"
        "import mlx_llama4.cli.console.progress as progress\n"
        "def update(self, done, total):\n"
        "    print(done, file=sys.stderr)\n"
        f"    if {at}: raise KeyboardInterrupt\n"
        "progress.ReadingProgress.update = update\n"
        "from mlx_llama4.__main__ import run\n"
        f"sys.argv[1:] = {[*map(str, command)]!r}\n"
        "run()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_ctrl_c_keeps_what_was_read(book: Path, demo_folder: Path, tmp_path: Path) -> None:
    """The same command goes on from there, and clears away what it no longer needs."""
    out, unfinished = tmp_path / "out", tmp_path / "out.unfinished"
    command = ["cache", book, "--model", demo_folder, "-o", out, "--prefill-step", 64]

    result = interrupted(command, "done >= 192")
    assert result.returncode == 130
    assert result.stderr.splitlines()[-2:] == [
        f"192 tokens are kept in {unfinished}; the same command continues from there",
        "interrupted",
    ]
    assert PromptFile(unfinished).held == 192
    assert not out.exists()
    result = interrupted(command, "False")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[0] == "256"
    assert list(tmp_path.iterdir()) == [out]
    again = run_here("cache", book, "--model", demo_folder, "-o", tmp_path / "again")
    assert again.returncode == 0
    assert out.stat().st_size == (tmp_path / "again").stat().st_size


@pytest.mark.slow
def test_what_was_read_under_other_options_is_not_gone_on_from(
    cached: Path, book: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Neither its packing nor what was read unpacked gets into the file."""
    for first, then in ((("--kv-bits", 8), ()), ((), ("--kv-bits", 8))):
        out = tmp_path / f"out{len(then)}"
        command = ["cache", book, "--model", demo_folder, "-o", out, "--prefill-step", 64]
        assert interrupted([*command, *first], "done >= 192").returncode == 130
        result = interrupted([*command, *then], "False")
        assert result.returncode == 0, result.stderr
        assert result.stderr.splitlines()[0] == "64"
        assert (PromptFile(out).quantization is not None) == bool(then)


def test_ctrl_c_while_the_file_is_written_keeps_what_was_read(
    book: Path, demo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["cache", book, "--model", demo_folder, "-o", out]
    code = (
        "import sys\n"
        "from mlx_llama4.chat.chat import Chat\n"
        "save = Chat.save\n"
        "def interrupted(self, path, *options):\n"
        f"    if path.name == {out.name!r}: raise KeyboardInterrupt\n"
        "    return save(self, path, *options)\n"
        "Chat.save = interrupted\n"
        "from mlx_llama4.__main__ import run\n"
        f"sys.argv[1:] = {[*map(str, command)]!r}\n"
        "run()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130
    assert "the same command continues from there" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.unfinished"]
    assert run_here(*command).returncode == 0
    assert list(tmp_path.iterdir()) == [out]


def test_small_files_say_all_their_tokens(demo_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "small"
    run_here("cache", "-", "--model", demo_folder, "-o", path, "--small", text=NOTES)
    result = run_here("chat", "--model", demo_folder, "--cache", path, text="")
    assert result.stderr == f"[{path}: {PromptFile(path).tokens} tokens]\n"


@pytest.mark.slow
def test_an_unfinished_file_of_another_command(
    book: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Neither its system prompt nor its packing is taken over."""
    out = tmp_path / "out"
    make = ("cache", book, "--model", demo_folder, "-o", out)
    assert run_here(*make).returncode == 0
    size = out.stat().st_size
    for other in (("--kv-bits", 8), ("--system", "You are a helpful assistant.")):
        assert run_here(*make, *other).returncode == 0
        out.rename(tmp_path / "out.unfinished")
        assert run_here(*make).returncode == 0
        assert PromptFile(out).quantization is None
        assert out.stat().st_size == size
