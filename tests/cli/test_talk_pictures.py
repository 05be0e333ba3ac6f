"""Pictures from the web in a chat, and names of pictures that lead nowhere."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_llama4.cli.talk.attachments import MOST_URLS
from mlx_llama4.cli.talk.commands import run_command
from mlx_llama4.cli.talk.state_files import KEPT_PICTURES
from mlx_llama4.cli.talk.talk import Talk
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import ImageError, Llama4Error
from mlx_llama4.prompt.fetch import Fetching
from tests.commands import run_here
from tests.picture_server import Answer, Web, web  # noqa: F401  (a fixture)

STAR = (PICTURES / "star.png").read_bytes()
SEEN = "From left to right: a red star.\n"
FACTS = "56×56 pixels, 1 tile, 7 tokens]\n"

Said = Callable[[], tuple[str, str]]


@pytest.fixture
def near(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the chat fetch from the tests' own server."""
    monkeypatch.setattr(talk.chat.processor, "fetching", Fetching(private=True))


def asked(talk: Talk) -> str:
    content = talk.chat.messages[-2]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.mark.usefixtures("near")
def test_a_url_in_a_message_is_a_picture(talk: Talk, said: Said, web: Web, tmp_path: Path) -> None:  # noqa: F811
    web.answers["/star.png"] = Answer(STAR)
    talk.say(f"What is in the image? {web.address}/star.png?size=1")
    assert said() == (SEEN, f"[star.png: {FACTS}")
    assert asked(talk) == "What is in the image?"
    assert web.asked == ["/star.png?size=1"]  # once, though it is named while it is typed, too
    run_command(talk, f"/export {tmp_path / 'talk.json'}")
    message, _ = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert (tmp_path / message["content"][0]["path"]).read_bytes() == STAR


@pytest.mark.usefixtures("near")
def test_typing_a_url_fetches_nothing(talk: Talk, web: Web) -> None:  # noqa: F811
    talk.status(f"What is in {web.address}/star.png")
    assert web.asked == []


def test_a_data_url_in_a_message(talk: Talk, said: Said) -> None:
    url = f"data:image/png;base64,{base64.b64encode(STAR).decode()}"
    talk.say(f"What is in the image? {url}")
    out, notes = said()
    assert out == SEEN and notes.endswith(FACTS) and len(notes) < 100
    assert asked(talk) == "What is in the image?"


@pytest.mark.usefixtures("near")
def test_the_command_takes_urls_of_any_name(talk: Talk, said: Said, web: Web) -> None:  # noqa: F811
    web.answers["/picture"] = Answer(STAR)
    run_command(talk, f"/image {web.address}/picture {(PICTURES / 'first.png').as_uri()}")
    assert [name.split(":")[0] for name in said()[1].splitlines()] == ["[picture", "[first.png"]
    with pytest.raises(ImageError, match="404 Not Found"):
        run_command(talk, f"/image {web.address}/none")
    with pytest.raises(ImageError, match="ftp: URLs of pictures are not read"):
        run_command(talk, "/image ftp://example.com/a.png")
    assert len(talk.attachments.pending) == 2


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("hello nope.png what is this", ["nope.png: no such file"]),
        ("hello './my nope.png'", ["./my nope.png: no such file"]),
        ("see file:///nowhere/a%20b.png", ["file:///nowhere/a%20b.png: no such file"]),
        ("see ftp://example.com/a.png", ["ftp://example.com/a.png: only http and https URLs are"]),
        ("see WEB/none.png?key=secret", ["WEB/none.png: the server answers 404 Not Found"]),
        ("see WEB/text.png", ["WEB/text.png is not a picture in a known format"]),
        ("see WEB/page.html", ["WEB/page.html does not end like a picture; /image URL fetches it"]),
        ("see data:image/png;base64,AAAA", ["the data: URL is not a picture"]),
        ("read /nowhere/report.pdf.", ["/nowhere/report.pdf: no such file"]),
        ("read './my report.txt'", ["./my report.txt: no such file"]),
        ("read ./my\\ notes.txt", ["./my notes.txt is not a picture, and nothing else is attach"]),
        ("./my\\ notes.txt", ["./my notes.txt is not a picture, and nothing else is attached"]),
        ("read ./nope, please", ["./nope: no such file"]),
        ("read file:///tmp/nope/a.txt", ["file:///tmp/nope/a.txt: no such file"]),
        ("what is (/etc/passwd)?", ["/etc/passwd is not a picture, and nothing else is attached"]),
        (
            "in /usr/bin, /v1, ./ or ~, 1/2, and/or /v1.2, http://x/",
            ["http://x/ does not end like a picture"],
        ),
        (
            "a.png b.png c.png d.png e.png",
            ["a.png: no such", "b.png: no such", "c.png: no such", "2 more lead nowhere"],
        ),
    ],
)
@pytest.mark.usefixtures("near")
def test_what_leads_nowhere_is_said_before_the_answer(
    talk: Talk,
    said: Said,
    web: Web,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
    lines: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my notes.txt").touch()
    web.answers["/text.png"] = Answer(b"no picture")
    message = message.replace("WEB", web.address)
    sent: list[tuple[str, str]] = []

    def send(text: str, *_: object) -> Iterator[str]:
        sent.append((text, said()[1]))
        return iter(())

    monkeypatch.setattr(talk.chat, "send", send)
    talk.say(message)
    ((text, notes),) = sent
    assert [
        line.startswith(f"[{expected}") and line.endswith("; sent as text]")
        for line, expected in zip(
            notes.splitlines(), (line.replace("WEB", web.address) for line in lines), strict=True
        )
    ] == [True] * len(lines), notes
    assert "secret" not in notes
    assert text == message


def test_messages_may_not_reach_this_machine(talk: Talk, said: Said, web: Web) -> None:  # noqa: F811
    """Not by /image either: only the command line is the user's own beyond doubt."""
    web.answers["/star.png"] = Answer(STAR)
    talk.say(f"Hello {web.address}/star.png")
    assert "is an address of this machine or its network" in said()[1]
    with pytest.raises(ImageError, match="only if -i names them on the command line"):
        run_command(talk, f"/image {web.address}/star.png")
    assert web.asked == []


def test_private_chats_keep_no_pictures(talk: Talk, tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(STAR).decode()}"
    folder = tmp_path / "state" / "mlx-llama4" / "pictures"
    private = Talk(talk.chat, keeps_pictures=False)
    private.attachments.take_from(url)
    assert private.attachments.pending[0].source is None and not folder.exists()
    talk.attachments.take_from(url)
    assert [file.read_bytes() for file in folder.iterdir()] == [STAR]


def test_the_newest_pictures_are_kept(talk: Talk, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "mlx-llama4" / "pictures"
    folder.mkdir(parents=True)
    for number in range(KEPT_PICTURES + 5):
        (folder / f"{number}.png").touch()
        os.utime(folder / f"{number}.png", (number, number))
    url = f"data:image/png;base64,{base64.b64encode(STAR).decode()}"
    talk.attachments.take_from(url)
    names = {file.name for file in folder.iterdir()}
    assert len(names) == KEPT_PICTURES and not {f"{number}.png" for number in range(6)} & names


@pytest.mark.usefixtures("near")
def test_a_pasted_page_fetches_nothing(talk: Talk, said: Said, web: Web) -> None:  # noqa: F811
    urls = " ".join(f"{web.address}/{number}.png" for number in range(MOST_URLS + 1))
    talk.say(f"Hello {urls}")
    assert "9 URLs of pictures, more than the 8 that are fetched for one message" in said()[1]
    assert web.asked == []


@pytest.mark.usefixtures("near")
def test_retry_and_edit_say_it_too(talk: Talk, said: Said, web: Web) -> None:  # noqa: F811
    talk.say("Hello")
    said()
    run_command(talk, "/edit Hello nope.png")
    assert said()[1] == "[nope.png: no such file; sent as text]\n"
    with pytest.raises(Llama4Error, match="pictures stay as they are"):
        run_command(talk, f"/edit What is {web.address}/star.png")


def test_no_fetch_and_no_vision(
    talk: Talk,
    said: Said,
    web: Web,  # noqa: F811
    demo_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"{web.address}/star.png"
    result = run_here("chat", "--no-fetch", "-m", demo_folder, text=f"Hello {url}\n")
    assert f"[{url} is not fetched, because of --no-fetch" in result.stderr
    assert result.stdout.count("\n") == 1
    monkeypatch.setattr(talk.chat.processor, "tiler", None)
    talk.say(f"Hello {url}")
    assert said()[1] == f"[{url}: this model takes no pictures; sent as text]\n"
    assert web.asked == []
