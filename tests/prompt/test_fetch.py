"""Pictures from the web: fetched within limits, and only from addresses that are allowed."""

import io
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_llama4.errors import ImageError
from mlx_llama4.prompt import fetch as fetching
from mlx_llama4.prompt.fetch import Fetching, fetch, file_name, is_public, shown
from mlx_llama4.prompt.image import describe
from mlx_llama4.prompt.picture_file import open_image
from tests.golden.pictures import draw
from tests.picture_server import Answer, Web, running_web, web  # noqa: F401  (a fixture)

TYPED = Fetching(private=True, seconds=20)


def png(width: int = 20, height: int = 12) -> bytes:
    stream = io.BytesIO()
    draw(width, height).save(stream, "PNG")
    return stream.getvalue()


def refusal(url: str, limits: Fetching = TYPED) -> str:
    with pytest.raises(ImageError) as refused:
        open_image(url, limits)
    said = str(refused.value)
    assert "\n" not in said and len(said) < 400
    return said


@pytest.mark.parametrize("kind", ["image/png", "text/plain", "application/octet-stream", "x"])
def test_a_picture_is_fetched_whatever_its_type_is_called(web: Web, kind: str) -> None:  # noqa: F811
    web.answers["/a star.png"] = Answer(png(), kind=kind)
    web.answers["/a%20star.png"] = web.answers["/a star.png"]
    image = open_image(f"{web.address}/a star.png?width=3#top", TYPED)
    assert np.array_equal(np.asarray(image), np.asarray(draw(20, 12).convert("RGB")))
    assert web.asked == ["/a%20star.png?width=3"]


def test_without_a_length(web: Web) -> None:  # noqa: F811
    web.answers["/plain"] = Answer(png(), length=None)
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (png()[:50], png()[50:]))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    web.answers["/chunked"] = head + body + b"0\r\n\r\n"
    web.answers["/cut"] = head + body[:80]
    assert fetch(f"{web.address}/plain", TYPED).data == png()
    assert fetch(f"{web.address}/chunked", TYPED).data == png()
    assert "/cut" in refusal(f"{web.address}/cut")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(status=404), ": the server answers 404 Not Found"),
        (Answer(status=500, body=b"\x1b]0;owned\x07"), ": the server answers 500 Internal"),
        (Answer(status=799), ": the server answers 799"),
        (Answer(png()[:60], length=len(png())), "stopped"),
        (Answer(b"<html>", kind="text/html; charset=utf-8"), " is a web page, not a picture; give"),
        (Answer(b"<html>" * 9), " is not a picture in a known format"),
        (Answer(b""), " is empty (0 bytes)"),
        (Answer(b"x", length=10**12), " has more than 64 MB"),
        (Answer(png(), headers={"Content-Encoding": "gzip"}), " comes in the coding gzip"),
        (Answer(status=302), ": the server redirects to nowhere"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ": the server's answer cannot be read"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n", ": the server's answer cannot be"),
        (b"", "cannot be"),
    ],
)
def test_bad_answers_are_one_line(web: Web, answer: Answer | bytes, said: str) -> None:  # noqa: F811
    web.answers["/a.png"] = answer
    line = refusal(f"{web.address}/a.png?key=secret")
    assert line.startswith(f"{web.address}/a.png") and said in line
    assert "secret" not in line and "\x1b" not in line


@pytest.mark.parametrize(
    "answer",
    [
        Answer(length=None, endless=True),
        Answer(png(), length=None, endless=True),
        Answer(length=10**5, stalls=True, body=bytes(99_999)),
    ],
)
def test_endless_answers_stop_at_the_size_limit(web: Web, answer: Answer) -> None:  # noqa: F811
    web.answers["/a.png"] = answer
    small = Fetching(private=True, seconds=20, most_bytes=90_000)
    assert "more than 0 MB" in refusal(f"{web.address}/a.png", small)


@pytest.mark.parametrize(
    "answer", [Answer(b"x", length=99, stalls=True), Answer(b"x", length=None, stalls=True)]
)
def test_slow_answers_stop_at_the_time_limit(web: Web, answer: Answer) -> None:  # noqa: F811
    web.answers["/a.png"] = answer
    short = Fetching(private=True, seconds=0.1)
    assert "/a.png took longer than 0.1 s" in refusal(f"{web.address}/a.png", short)


def test_a_server_that_never_answers_stops_at_the_time_limit() -> None:
    """Neither to the request, nor to the handshake of TLS."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for scheme in ("http", "https"):
            said = refusal(f"{scheme}://127.0.0.1:{port}/a.png", Fetching(True, True, 0.1))
            assert "longer than 0.1 s" in said


def test_a_name_that_never_resolves_stops_at_the_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = threading.Event()

    def never(*_: object, **__: object) -> list[object]:
        leave.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    assert "longer than 0.1 s" in refusal("http://example.com/a.png", Fetching(seconds=0.1))
    leave.set()


def test_no_server_and_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "cannot be fetched (" in refusal(f"http://127.0.0.1:{port}/a.png")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = refusal("http://nowhere.example/a.png")
    assert said.endswith("a.png cannot be fetched (Name or service not known)")


def test_redirects(web: Web) -> None:  # noqa: F811
    web.answers |= {
        "/picture": Answer(png()),
        "/relative": Answer(status=302, headers={"Location": "picture"}),
        "/absolute": Answer(status=307, headers={"Location": f"{web.address}/relative"}),
        "/loop": Answer(status=301, headers={"Location": "/loop"}),
        "/file": Answer(status=302, headers={"Location": "file:///etc/passwd"}),
        "/data": Answer(status=302, headers={"Location": "data:image/png;base64,AAAA"}),
        "/bad": Answer(status=302, headers={"Location": "http://[::"}),
    }
    assert fetch(f"{web.address}/absolute", TYPED).data == png()
    assert refusal(f"{web.address}/loop").endswith("/loop is redirected more than 5 times")
    assert web.asked.count("/loop") == 6
    assert "no http(s) URL" in refusal(f"{web.address}/file")
    assert "no http(s) URL" in refusal(f"{web.address}/data")
    assert "no valid URL" in refusal(f"{web.address}/bad")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_addresses_of_this_machine_are_for_typed_urls_alone(web: Web, host: str) -> None:  # noqa: F811
    web.answers["/a.png"] = Answer(png())
    url = web.address.replace("127.0.0.1", host) + "/a.png"
    assert "an address of this machine or its network" in refusal(url, Fetching())
    assert web.asked == []


def test_a_redirect_to_another_private_place_is_refused(web: Web) -> None:  # noqa: F811
    """Though the first was typed: another port, another name of the same machine, metadata."""
    with running_web() as other:
        other.answers["/a.png"] = Answer(png())
        port = other.address.rpartition(":")[2]
        for target in (
            f"{other.address}/a.png",
            f"http://localhost:{port}/a.png",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]:1/a.png",
        ):
            web.answers["/away"] = Answer(status=302, headers={"Location": target})
            said = refusal(f"{web.address}/away")
            assert "an address of this machine or its network" in said, target
        assert other.asked == []
        assert fetch(f"{other.address}/a.png", TYPED).data == png()


def test_the_address_that_was_checked_is_connected_to(
    web: Web,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that is public when it is looked up, and private a moment later."""
    resolve: Callable[..., list] = socket.getaddrinfo
    port = int(web.address.rpartition(":")[2])
    tried: list[tuple] = []
    answers = iter(["93.184.215.14", "127.0.0.1", "127.0.0.1"])

    def rebinding(host: str, *arguments: object, **more: object) -> list:
        return resolve(next(answers) if host == "rebinding.example" else host, *arguments, **more)

    def connect(self: socket.socket, address: tuple) -> None:
        tried.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert "no network here" in refusal(f"http://rebinding.example:{port}/a.png", Fetching())
    assert tried == [("93.184.215.14", port)]
    assert "this machine" in refusal(f"http://rebinding.example:{port}/a.png", Fetching())
    assert len(tried) == 1 and web.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700:4700::1111", True), ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("240.0.0.1", False),
        ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("::7f00:1", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:secret@example.com/a.png", "password are not fetched"),
        ("http:///a.png", "no valid URL"),
        ("http://exa mple.com:x/a.png", "no valid URL"),
        (f"http://{'a' * 70}.example/a.png", "no valid host"),
        ("http://a..b/a.png", "no valid host"),
    ],
)
def test_bad_urls(url: str, said: str) -> None:
    line = refusal(url)
    assert said in line and "secret" not in line


def test_nothing_is_fetched_if_that_is_forbidden(web: Web) -> None:  # noqa: F811
    said = refusal(f"{web.address}/a.png", Fetching(allowed=False, private=True))
    assert "is not fetched, because of --no-fetch" in said and web.asked == []


def test_names() -> None:
    assert shown("https://u:p@example.com/a/b.png?key=1#x") == "https://example.com/a/b.png"
    assert len(shown("https://example.com/" + "x" * 999)) == 100
    assert file_name("https://example.com/a/my%20cat.png?x=1") == "my cat.png"
    assert file_name("https://example.com/") == "example.com"
    assert file_name("https://example.com/%1b[2J.png") == "\\x1b[2J.png"
    assert fetching.PORTS == {"http": 80, "https": 443}


def test_a_tiled_picture_knows_its_url(web: Web, tmp_path: Path) -> None:  # noqa: F811
    from mlx_llama4.prompt.image import ImageTiler, pixel_table

    tiler = ImageTiler(28, 4, pixel_table(1 / 255, [0.5] * 3, [0.5] * 3))
    web.answers["/star.png"] = Answer(png())
    url = f"{web.address}/star.png"
    image = tiler.tile(url, TYPED)
    assert (image.url, image.source, describe(image)) == (url, None, "star.png: 20×12, 1 tile")
    (tmp_path / "a b.png").write_bytes(png())
    local = tiler.tile(f"file://{tmp_path}/a%20b.png")
    assert (local.url, local.source) == (None, tmp_path / "a b.png")
