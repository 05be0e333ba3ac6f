"""Repositories of the hub, against a stand-in on this machine: found, refused, in parts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_llama4.checkpoint.safetensors import INDEX_NAME, open_checkpoint
from mlx_llama4.errors import CheckpointError, ConfigError, HubError, Llama4Error, RunError
from mlx_llama4.hub.remote import FIRST_BYTES, open_remote
from mlx_llama4.hub.repository import find_folder, is_repository
from tests import tiny
from tests.hub_server import COMMIT, NAME, TOKEN, Hub, tiny_repository


def refused(name: str, kind: type[Llama4Error], revision: str | None = None, **options) -> str:
    with pytest.raises(Llama4Error) as caught:
        find_folder(name, revision, **options)
    assert caught.type is kind, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_what_is_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "scout").mkdir(parents=True)
    assert is_repository("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    for name in ("scout", "./scout", "../a", "/a/b", "a/b/c", "a/b/", "a/b.git", "a/b--c", "a/-b"):
        assert not is_repository(name), name
    assert not is_repository("models/scout")
    assert find_folder("models/scout") == Path("models/scout")


def test_paths_need_no_hub(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mlx_llama4.hub.repository import find_folder\n"
        f"find_folder({str(tmp_path)!r})\n"
        "print('huggingface_hub' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result


def test_download(hub: Hub) -> None:
    """All that is needed and no more; the second time nothing is asked for but the commit."""
    folder = find_folder(NAME)
    assert folder.name == COMMIT
    assert {path.name for path in folder.rglob("*")} == {
        *(path.name for path in shards(hub.repositories[NAME])),
        "config.json", "tokenizer.json", "LICENSE", INDEX_NAME,
    }  # fmt: skip
    assert len(open_checkpoint(folder).tensors) == 4
    hub.requests.clear()
    assert find_folder(NAME) == folder
    assert not any("/resolve/" in request for request in hub.requests)


def test_one_shard(hub: Hub) -> None:
    folder = hub.repositories[NAME]
    for path in (*shards(folder), folder / INDEX_NAME):
        path.unlink()
    assert "lacks a file" in refused(NAME, HubError)
    tiny.write_safetensors(folder / "model.safetensors", {"a": np.ones(3, np.float32)})
    hub.requests.clear()
    assert (find_folder(NAME) / "model.safetensors").is_file()


def test_revisions(hub: Hub) -> None:
    assert find_folder(NAME, "main") == find_folder(NAME, COMMIT)
    assert "has no revision 'v9'" in refused(NAME, HubError, "v9")
    assert "--revision is for" in refused(".", HubError, "main")


def test_names_that_mean_nothing(hub: Hub) -> None:
    """A mistyped path may look like a repository: both are named."""
    for name in ("models/scuot", "owner/absent"):
        message = refused(name, HubError)
        assert "no such folder" in message and "no such repository" in message
    assert "OWNER/NAME" in refused("./scuot", HubError)


def test_gate(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(NAME)
    message = refused(NAME, HubError)
    assert f"accept its licence at {hub.endpoint}/{NAME}" in message
    assert "hf auth login" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert shards(find_folder(NAME))


def test_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is used; what is not, is refused."""
    from huggingface_hub import constants

    folder = find_folder(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_folder(NAME) == folder
    assert open_remote(NAME).checkpoint.tensors.keys() == open_checkpoint(folder).tensors.keys()
    message = refused("owner/other", RunError)
    assert "no such folder" in message and "HF_HUB_OFFLINE" in message
    shards(folder)[0].unlink()
    assert "HF_HUB_OFFLINE" in refused(NAME, RunError)


def test_hub_that_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused(NAME, RunError)


def test_refused_before_the_weights_come(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/source"] = tiny_repository(tmp_path / "source", "hf")
    message = refused("owner/source", CheckpointError)
    assert "mlx-llama4 convert owner/source" in message
    other = shutil.copytree(hub.repositories[NAME], tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "qwen3"}')
    hub.repositories["owner/other"] = other
    assert "owner/other: " in refused("owner/other", ConfigError)
    (other / "config.json").unlink()
    hub.repositories["owner/nothing"] = other
    for purpose in ("run", "convert"):
        assert "not a model repository" in refused("owner/nothing", HubError, purpose=purpose)
    assert not any(hub.fetched(path.name) for path in shards(other))
    assert shards(find_folder("owner/source", purpose="convert"))


def test_disk_that_is_too_small(hub: Hub) -> None:
    path = hub.repositories[NAME] / INDEX_NAME
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"metadata": {"total_size": 10**18}}))
    assert "HF_HOME" in refused(NAME, HubError)
    assert "--while-downloading" in refused(NAME, HubError, purpose="convert")


def test_original_layout(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    for name in ("params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"):
        (folder / name).write_text("{}")
    hub.repositories["owner/original"] = folder
    found = find_folder("owner/original", purpose="convert")
    assert {path.name for path in found.iterdir()} == {path.name for path in folder.iterdir()}
    assert "no config.json" in refused("owner/original", HubError)


def test_headers_only(hub: Hub) -> None:
    """The same tensors as in the folder, and no request for a whole shard."""
    local = open_checkpoint(hub.repositories[NAME])
    remote = open_remote(NAME)
    assert remote.checkpoint.nbytes == local.nbytes
    for name, tensor in local.tensors.items():
        found = remote.checkpoint.tensors[name]
        assert (found.dtype, found.shape, found.offset) == (
            tensor.dtype, tensor.shape, tensor.offset,
        )  # fmt: skip
        assert found.file.name == tensor.file.name
        assert not hub.fetched(tensor.file.name)
    assert set(remote.sizes.values()) == {path.stat().st_size for path in local.files}


def test_long_header(hub: Hub) -> None:
    """One that the first request does not get whole."""
    folder = hub.repositories[NAME]
    (folder / INDEX_NAME).unlink()
    weights = {f"{'x' * 100}{index}": np.ones(2, np.float32) for index in range(600)}
    tiny.write_safetensors(folder / "model.safetensors", weights)
    assert open_remote(NAME).checkpoint.tensors.keys() == weights.keys()
    ranges = [one.rpartition(" ")[2] for one in hub.requests if "bytes=" in one]
    assert ranges[0] == f"bytes=0-{FIRST_BYTES - 1}"
    assert ranges[1].startswith(f"bytes={FIRST_BYTES}-")


def test_damaged_headers(hub: Hub) -> None:
    """As in a folder, but before anything is downloaded."""
    path = shards(hub.repositories[NAME])[1]
    data = path.read_bytes()
    for damaged, message in ((data[:-1], "is truncated"), (b"\xff" * 20, "not a safetensors file")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            open_remote(NAME)
    path.write_bytes(data)
    hub.ranges = False
    with pytest.raises(RunError, match="no parts of files"):
        open_remote(NAME)


def test_shard_by_shard(hub: Hub, tmp_path: Path) -> None:
    """Never more than two of them here; then read as from a folder."""
    local, came = open_checkpoint(hub.repositories[NAME]), []
    downloads = tmp_path / "downloads"
    remote = open_remote(NAME, downloads=downloads, on_bytes=came.append)
    files = remote.checkpoint.files
    for file, following in zip(files, [*files[1:], None], strict=True):
        remote.ensure(file, following)
        for name, tensor in remote.checkpoint.tensors.items():
            if tensor.file == file:
                expected = local.read(local.tensors[name])
                assert np.array_equal(remote.checkpoint.read(tensor), expected)
        remote.release(file)
        assert len(shards(downloads)) <= 1
    assert not shards(downloads)
    assert sum(came) == sum(remote.sizes.values())
    remote.discard()
    assert not downloads.exists()


def test_whole_shards_serve_the_next_run(hub: Hub, tmp_path: Path) -> None:
    remote = open_remote(NAME, downloads=tmp_path / "downloads")
    file = remote.checkpoint.files[0]
    remote.ensure(file)
    remote.close()
    hub.requests.clear()
    again = open_remote(NAME, downloads=tmp_path / "downloads")
    again.ensure(file)
    assert not hub.fetched(file.name)


def test_cached_shards_are_used_and_kept(hub: Hub, tmp_path: Path) -> None:
    folder = find_folder(NAME)
    remote = open_remote(NAME, downloads=tmp_path / "downloads")
    file = shards(folder)[0]
    assert file in remote.checkpoint.files
    assert remote.sizes == {}
    remote.ensure(file)
    remote.release(file)
    assert file.is_file()


def test_shard_that_does_not_come(hub: Hub, tmp_path: Path) -> None:
    remote = open_remote(NAME, downloads=tmp_path / "downloads")
    file = remote.checkpoint.files[0]
    hidden = (hub.repositories[NAME] / file.name).rename(tmp_path / "hidden")
    with pytest.raises(HubError, match="lacks a file"):
        remote.ensure(file)
    hidden.rename(hub.repositories[NAME] / file.name)
    remote.ensure(file)
    assert file.is_file()


def test_download_that_is_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next bytes that come. What has come does not pass for a shard, nor pile up."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16)
    downloads = tmp_path / "downloads"
    remote = open_remote(NAME, downloads=downloads)
    remote.on_bytes = lambda count: remote._running[file].stopped.set()
    file = remote.checkpoint.files[0]
    with pytest.raises(RunError, match="stopped"):
        remote.ensure(file)
    assert not shards(downloads)
    open_remote(NAME, downloads=downloads).clear([])
    assert not list(downloads.rglob("*.incomplete"))
