"""Downloads that were killed: what is whole is kept, what is not is deleted, nothing is mixed."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_llama4.hub.broken_off import clear_broken_off
from mlx_llama4.hub.repository import find_folder
from tests.commands import ENVIRONMENT
from tests.hub.test_while_downloading import NAME, layers, shards_in
from tests.hub_server import SLOW_BYTES, Hub, environment

__all__ = ["layers"]  # a fixture


def part(folder: Path, shard: str, nbytes: int = 5000) -> Path:
    """What a kill leaves of a shard, in the place where huggingface_hub puts it."""
    blobs = folder.parent.parent / "blobs"
    blob = (folder / shard).resolve().name
    left = blobs / f"{blob}.0a1b2c3d.incomplete"
    left.write_bytes(bytes(nbytes))
    return left


def test_what_a_kill_left_is_deleted(hub: Hub, layers: Path) -> None:
    folder = find_folder(NAME, purpose="convert")
    first, second, *others = shards_in(folder)
    left = [part(folder, first), part(folder, second, 7000)]
    (folder / second).resolve().unlink()
    hub.requests.clear()
    assert find_folder(NAME, purpose="convert") == folder
    assert not any(file.exists() for file in left)
    assert (folder / second).read_bytes() == (layers / second).read_bytes()
    assert hub.fetched(second) == 1 and not any(map(hub.fetched, (first, *others)))
    assert clear_broken_off(folder) == 0


def test_what_another_process_is_fetching_stays(hub: Hub, layers: Path) -> None:
    folder = find_folder(NAME, purpose="convert")
    left = part(folder, shards_in(folder)[0])
    repository = folder.parent.parent
    name = left.name.split(".")[0]
    lock = repository.parent / ".locks" / repository.name / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert clear_broken_off(folder) == 0 and left.exists()
    assert clear_broken_off(folder) == 5000 and not left.exists()


def test_a_cache_without_parts(tmp_path: Path) -> None:
    assert clear_broken_off(tmp_path / "models--a--b" / "snapshots" / "c") == 0


@pytest.mark.slow
def test_a_killed_download(hub: Hub, layers: Path, tmp_path: Path) -> None:
    """The part is there, where it is looked for, and the next run is right."""
    hub.slow = True
    code = (
        f"from mlx_llama4.hub.repository import find_folder; find_folder({NAME!r}, None, 'convert')"
    )
    env = ENVIRONMENT | environment(hub, tmp_path)
    assert min((layers / name).stat().st_size for name in shards_in(layers)) > SLOW_BYTES
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    blobs = tmp_path / "home" / "hub" / f"models--{NAME.replace('/', '--')}" / "blobs"
    deadline = time.monotonic() + 60
    while not [*blobs.glob("*.incomplete")] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert [*blobs.glob("*.incomplete")]
    hub.slow = False
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not [*blobs.glob("*.incomplete")]
    whole = [*(blobs.parent / "snapshots").glob("*/*.safetensors")]
    assert sorted(file.name for file in whole) == shards_in(layers)
    assert all(file.read_bytes() == (layers / file.name).read_bytes() for file in whole)
