"""A web server on the loopback interface that answers as told: well, badly, slowly, without end."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PIECE = bytes(2**16)


@dataclass(frozen=True)
class Answer:
    """body: sent whole; then, with `stalls`, nothing until the client goes. length: what the header
    claims; None for none. endless: zeros follow for ever.
    """

    body: bytes = b""
    status: int = 200
    kind: str = "image/png"
    length: int | None = -1  # the body's own
    stalls: bool = False
    endless: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Web:
    """answers: path → Answer, or bytes that are sent as they are. asked: the paths, in order."""

    answers: dict[str, Answer | bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""
    leave: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> Callable[[str], str]:
        return lambda path: self.address + path


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        answer = self.web.answers.get(self.path.partition("?")[0], Answer(status=404))
        with contextlib.suppress(OSError):  # the client has gone
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                return
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        if answer.length is not None:
            length = len(answer.body) if answer.length == -1 else answer.length
            self.send_header("Content-Length", str(length))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()
        if answer.stalls:
            self.web.leave.wait()
        while answer.endless and not self.web.leave.is_set():
            self.wfile.write(PIECE)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def running_web(host: str = "127.0.0.1") -> Iterator[Web]:
    web = Web()
    handler = type("Handler", (_Handler,), {"web": web})
    with ThreadingHTTPServer((host, 0), handler) as server:
        server.daemon_threads = True
        web.address = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.leave.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    with running_web() as server:
        yield server
