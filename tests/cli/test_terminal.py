"""Ctrl-C, closed and full streams, odd terminals: no traceback, nothing lost in silence."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from mlx_llama4.cli.console import progress
from mlx_llama4.cli.markdown.answer import Answer
from mlx_llama4.demo.questions import PICTURES
from tests.commands import ENVIRONMENT, run


class Terminal:
    """`mlx-llama4 chat` on a pseudo-terminal that cannot move its cursor; tests/screen.py has one
    that can.
    """

    def __init__(self, folder: Path, *options: object):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "mlx_llama4", "chat", "-m", str(folder)]
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            # Its own terminal: Ctrl-C comes as from a keyboard, and drops what is half typed.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=ENVIRONMENT | {"TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def until(self, text: str) -> None:
        """Read until the screen shows `text`, and forget all before its end."""
        while text not in self.shown:
            readable, _, _ = select.select([self.master], [], [], 60)
            assert readable, f"waiting for {text!r}, the screen shows {self.shown!r}"
            self.shown += os.read(self.master, 1000).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ctrl_c(self) -> None:
        # What has shown its prompt may take a moment more to listen for signals.
        time.sleep(0.3)
        self.type("\x03")

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_ctrl_c_in_chat(talkative: Path) -> None:
    with Terminal(talkative, "--max-tokens", 100000) as chat:
        chat.until("Ctrl-D leaves.")
        chat.until("> ")
        chat.type("Hello\n")
        chat.until("Hello\r\n")
        chat.until("e")  # of the answer
        chat.ctrl_c()
        chat.until("[stopped]")
        chat.until("> ")
        chat.type("half typed")
        chat.until("half typed")
        chat.ctrl_c()
        chat.until("[Ctrl-C again, or Ctrl-D, leaves]")
        chat.until("> ")
        chat.type(f"/image {PICTURES / 'star.png'}\n")
        chat.until("tokens]")
        chat.until("> ")
        chat.ctrl_c()
        chat.until("> ")
        chat.ctrl_c()
        assert chat.process.wait(30) == 130


def test_a_picture_stays_attached_until_it_is_answered(demo_folder: Path) -> None:
    """Ctrl-C while the prompt is read once dropped it silently."""
    long = "a " * 3000
    code = (
        "import mlx_llama4.chat.chat as module\n"
        "def stop(done, total): raise KeyboardInterrupt\n"
        "send = module.Chat.send\n"
        "def interrupted(self, text, images, on_prefill, on_picture):\n"
        "    return send(self, text, images, stop if len(text) > 1000 else on_prefill)\n"
        "module.Chat.send = interrupted\n"
        "from mlx_llama4.cli.main import app\n"
        f"app(['chat', '-m', {str(demo_folder)!r}])"
    )
    lines = f"/image {PICTURES / 'star.png'}\n{long}\nDescribe the image.\nDescribe the image.\n"
    result = subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True
    )
    assert "[stopped]" in result.stderr
    assert result.stdout.splitlines()[0] == "From left to right: a red star."


def interrupt_after_some_text(*arguments: object) -> tuple[int, str, str]:
    """Send Ctrl-C once some of the answer is out; exit code, output and errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_llama4", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    first = os.read(process.stdout.fileno(), 10)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    return process.returncode, (first + rest).decode(errors="replace"), errors.decode()


def test_ctrl_c_while_answering(talkative: Path) -> None:
    endless = ("--max-tokens", 100000)
    code, output, errors = interrupt_after_some_text("ask", "Hello", "-m", talkative, *endless)
    assert (code, errors) == (130, "interrupted\n")
    assert output.strip()
    assert output.endswith("\n")


def test_ctrl_c_keeps_the_json_whole(talkative: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"  # has a line for each layer of each step
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_llama4", "ask", "Hello", "-m", str(talkative), "--json",
         "--max-tokens", "100000", "--trace", str(trace)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        while process.poll() is None and not (
            trace.exists() and trace.read_bytes().count(b"\n") > 1000
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()  # or a test that failed would leave it running for minutes
    assert process.returncode == 130
    assert json.loads(output)["finish_reason"] == "interrupted"
    assert len(json.loads(output)["text"]) > 100


class Screen(io.StringIO):
    """Stands in for a terminal."""

    def isatty(self) -> bool:
        return True


def test_answers_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences lose their escape; line ends and tabs stay. Files get all."""
    for stream, expected in (
        (Screen(), "a]0;title[2J\tb\nc\n"),
        (io.StringIO(), "a\x1b]0;title\x07\x1b[2J\tb\r\nc\n"),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        with Answer() as answer:
            answer.write("a\x1b]0;title\x07\x1b[2J\tb\r\nc")
        assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("literal", "shown"), [("[", "[__import__('os')]"), ("", "[import('os')]")]
)
def test_calls_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, literal: str, shown: str
) -> None:
    """Markdown, which takes underscores for emphasis, is for answers that are no calls."""
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    with Answer(markdown=True, literal=literal) as answer:
        for piece in ("", " [__im", "port__('os')]"):
            answer.write(piece)
    assert screen.getvalue().strip() == shown


def test_progress_of_a_long_prompt_is_wiped_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with Answer() as answer:
        answer.on_prefill(2048, 9000)
        assert "2,048 of 9,000 tokens" in screen.getvalue()
        answer.write("Hi")
    assert screen.getvalue().endswith("\r\x1b[K")
    assert sys.stdout.getvalue() == "Hi\n"


def test_progress_tells_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here n tokens take n / 1000 + (n / 20000)² seconds."""
    screen, clock = Screen(), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    reading = progress.ReadingProgress()
    for done in range(1000, 51000, 1000):
        clock[0] = done / 1000 + (done / 20000) ** 2
        reading.update(done, 100_000)
    last = screen.getvalue().split("\r\x1b[K")[-1]
    assert "50,000 of 100,000 tokens, 887 tokens/s, 69 s left" in last
    assert last.count("█") == last.count("░") == 10
    reading.clear()
    reading.clear()
    assert screen.getvalue().endswith("left\r\x1b[K")


def test_progress_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line now and then, each for itself."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    reading = progress.ReadingProgress()
    for done in range(1, 31):
        clock[0] += 1.0
        reading.update(done * 2000, 60_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Reading the prompt: 20,000 of 60,000 tokens, 2,000 tokens/s, 20 s left",
        "Reading the prompt: 40,000 of 60,000 tokens, 2,000 tokens/s, 10 s left",
        "Reading the prompt: 60,000 of 60,000 tokens, 2,000 tokens/s, 0 s left",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_cannot_say_everything(demo_folder: Path, encoding: str) -> None:
    result = run("demo", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    asked = run("ask", "Hello", "-m", demo_folder, "--json", PYTHONIOENCODING=encoding)
    assert json.loads(asked.stdout)["text"] == "Hello! How can I help you?"


def test_streams_that_are_full_or_closed(demo_folder: Path) -> None:
    def shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess:
        command = " ".join([sys.executable, "-m", "mlx_llama4", *map(str, arguments)])
        return subprocess.run(
            ["bash", "-c", f"{command} {redirection}"],
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )

    ask = ("ask", "Hello", "-m", demo_folder)
    for arguments in (ask, (*ask, "--json"), ("inspect", demo_folder), ("--help",)):
        result = shell(">/dev/full", *arguments)
        assert result.returncode == 1
        assert result.stderr == "error: cannot write the output: No space left on device\n"
        assert shell(">&-", *arguments).stderr == ""
    assert shell("<&-", *ask).stdout == "Hello! How can I help you?\n"
    assert shell("2>&-", *ask).stdout == "Hello! How can I help you?\n"
    refused = shell("2>&-", "ask", "x", "-m", "/nowhere")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_a_temporary_folder_that_cannot_be_written(demo_folder: Path, tmp_path: Path) -> None:
    """MLX's CPU backend would compile there; nothing of ours needs it but the demo's own files."""
    nowhere = str(tmp_path / "gone")
    result = run("ask", "Hello", "-m", demo_folder, TMPDIR=nowhere)
    assert (result.returncode, result.stdout) == (0, "Hello! How can I help you?\n")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_no_traceback(demo_folder: Path) -> None:
    for delay in [index / 100 for index in range(2, 60, 4)]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_llama4", "ask", "Hello", "-m", str(demo_folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        # Before Python has reached our first line, its own traceback is all there can be.
        assert not re.search(rb"/(mlx_llama4|convert)/", errors), errors.decode()
        assert process.returncode in (0, 1, 130, -signal.SIGINT)


def test_reader_that_goes_away(talkative: Path) -> None:
    """`mlx-llama4 ask … | head -c 10`"""
    command = f"{sys.executable} -m mlx_llama4 ask Hello -m {talkative} --max-tokens 300"
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -c 10"], capture_output=True, text=True, check=False
    )
    assert result.stderr == ""


def test_unexpected_failures_are_one_line_too(demo_folder: Path) -> None:
    code = (
        "import mlx_llama4.chat.chat\n"
        "def broken(*args, **kwargs): raise RuntimeError('the sky fell')\n"
        "mlx_llama4.chat.chat.Chat.send = broken\n"
        "from mlx_llama4.cli.main import app\n"
        f"app(['ask', 'x', '-m', {str(demo_folder)!r}])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "error: unexpected RuntimeError: the sky fell"
    assert "Traceback" not in result.stderr
    debug = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"MLX_LLAMA4_DEBUG": "1"},
        check=False,
    )
    assert "Traceback" in debug.stderr
