"""Uploads: refused in time, private, and with a word on what to do when they break off.

Who one is, is asked of the stand-in for the hub; creating and sending are replaced, since a
stand-in for those would be a test of huggingface_hub.
"""

from pathlib import Path

import pytest

from mlx_llama4.errors import HubError, Llama4Error, RunError
from mlx_llama4.hub.upload import check_upload, upload
from tests.hub_server import NAME, TOKEN, Hub


@pytest.fixture
def source(hub: Hub) -> Path:
    return hub.repositories[NAME]


def refused(repository: str, source: Path, kind: type[Llama4Error] = HubError) -> str:
    with pytest.raises(kind) as caught:
        check_upload(repository, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_token(hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hf auth login" in refused("me/Llama-4-Scout-4bit", source)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know your token" in refused("me/Llama-4-Scout-4bit", source)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_upload("me/Llama-4-Scout-4bit", source)
    check_upload("team/Llama-4-Scout-4bit", source)
    assert "not in meta-llama" in refused("meta-llama/Llama-4-Scout-4bit", source)
    hub.role = "read"
    assert "can only read" in refused("me/Llama-4-Scout-4bit", source)


def test_offline(hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused("me/Llama-4-Scout-4bit", source, RunError)


def test_names(hub: Hub, source: Path, tmp_path: Path) -> None:
    """What the licence asks for; the hub is not even asked."""
    assert "begin with “Llama”" in refused("me/scout-4bit", source)
    assert "OWNER/NAME" in refused("scout-4bit", source)
    assert "no LICENSE" in refused("me/Llama-4-Scout-4bit", tmp_path)
    assert not hub.requests


def test_upload(hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    calls = []

    def create_repo(self: HfApi, repository: str, *, private: bool, exist_ok: bool) -> str:
        calls.append((repository, private, exist_ok))
        return f"{hub.endpoint}/{repository}"

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        calls.append((repo_id, folder_path))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    name = "me/Llama-4-Scout-4bit"
    assert upload(source, name) == f"{hub.endpoint}/{name}"
    assert calls == [(name, True, True), (name, source)]


def test_upload_that_breaks_off(hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def fail(self: HfApi, *arguments: object, **options: object) -> None:
        raise ConnectionError("connection lost\nand more")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(RunError) as caught:
        upload(source, "me/Llama-4-Scout-4bit")
    message = str(caught.value)
    assert "connection lost" in message and "\n" not in message
    assert f"hf upload me/Llama-4-Scout-4bit {source}" in message
