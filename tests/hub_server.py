"""A stand-in for the Hugging Face hub on the loopback interface: as much of it as downloads use.

Repositories are folders. It knows gates, tokens, revisions and ranges, and counts what was asked.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from tests import tiny

NAME = "owner/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"
SLOW_BYTES = 2**17
STALL_SECONDS = 8


@dataclass
class Hub:
    """repositories: id → folder. gated: ids that only TOKEN opens. requests: "GET /path", each,
    and the range if only that was asked for. ranges: are they given? role: what TOKEN may do. slow:
    large files stall after SLOW_BYTES. damaged: names of files whose last bytes come as zeros.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    ranges: bool = True
    role: str = "write"
    slow: bool = False
    damaged: set[str] = field(default_factory=set)
    endpoint: str = ""

    def fetched(self, name: str) -> int:
        """How often the whole of a file was asked for."""
        return sum(one.startswith("GET ") and one.endswith(f"/{name}") for one in self.requests)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub asks, with a cache of its own and no token."""
    from huggingface_hub import constants

    with running_hub() as hub:
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        hub.repositories[NAME] = tiny_repository(tmp_path / "repository")
        yield hub


def tiny_repository(folder: Path, layout: str = "mlx") -> Path:
    """A few tensors under a real config, in three shards, and files that nobody needs."""
    experts = "feed_forward.experts." + ("gate_proj.weight" if layout == "mlx" else "gate_up_proj")
    names = (f"language_model.model.layers.0.{experts}", "a", "b", "c")
    weights = {name: np.full((4, 3), index, np.float32) for index, name in enumerate(names)}
    tiny.write_checkpoint(folder, tiny.config("scout"), weights, shards=3)
    for name in ("tokenizer.json", "LICENSE"):
        (folder / name).write_text("{}")
    for name in (
        "pytorch_model.bin",
        "consolidated.00.pth",
        "model.gguf",
        "onnx/model.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("much")
    return folder


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        part = f" {self.headers['Range']}" if "Range" in self.headers else ""
        self.hub.requests.append(f"{self.command} {path}{part}")
        if path == "/api/whoami-v2":
            return self._whoami()
        patterns = (
            r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)()",
            r"/api/models/([^/]+/[^/]+)()()()",
            r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)",
        )
        found = next((match for one in patterns if (match := re.fullmatch(one, path))), None)
        if found is None:
            return self._error(404, "")
        repository, kind, revision, name = found.groups()
        folder = self.hub.repositories.get(repository)
        if folder is None:
            return self._error(401, "RepoNotFound")
        if repository in self.hub.gated and not self._is_known():
            return self._error(401, "GatedRepo")
        if revision not in ("", "main", COMMIT):
            return self._error(404, "RevisionNotFound")
        if kind == "resolve":
            return self._file(folder / name)
        if kind == "tree":
            return self._json([_entry(folder, one) for one in _files(folder)])
        siblings = [{"rfilename": str(one.relative_to(folder))} for one in _files(folder)]
        return self._json({"id": repository, "sha": COMMIT, "siblings": siblings})

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _whoami(self) -> None:
        if not self._is_known():
            return self._error(401, "")
        token = {"accessToken": {"role": self.hub.role}}
        return self._json({"name": "me", "orgs": [{"name": "team"}], "auth": token})

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        status, size = 200, len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.hub.ranges:
            start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
            data, status = data[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        elif path.name in self.hub.damaged:
            data = data[: size // 2] + bytes(size - size // 2)
        return self._send(status, data, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code or "refused"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "GET":
            return
        if self.hub.slow and len(data) > SLOW_BYTES:
            self.wfile.write(data[:SLOW_BYTES])
            data = data[SLOW_BYTES:]
            with contextlib.suppress(OSError):  # nobody waits so long
                time.sleep(STALL_SECONDS)
                self.wfile.write(data)
            return
        self.wfile.write(data)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, path: Path) -> dict[str, object]:
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    name = str(path.relative_to(folder))
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """For a process that is to meet this hub, and keep what it fetches in `tmp_path`."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }
