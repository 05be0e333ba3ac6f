"""Converting a repository shard by shard, the source never all on the disk."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mlx_llama4.convert.write as write_module
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.checkpoint.safetensors import Checkpoint
from mlx_llama4.convert.plan import make_plan
from mlx_llama4.convert.run import Progress, Report, convert, run
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import Llama4Error, RunError
from mlx_llama4.hub.remote import RemoteCheckpoint, open_remote
from mlx_llama4.hub.remote_shards import RemoteShards
from tests import tiny
from tests.commands import ENVIRONMENT, refused
from tests.commands import run as run_command
from tests.convert.folders import FOUR_BITS, files
from tests.hub_server import STALL_SECONDS, Hub, environment

NAME = "owner/layers"
SHARDS = 4


@pytest.fixture
def layers(hub: Hub, tmp_path: Path) -> Path:
    """A repository whose shards hold the layers in order, as the releases' do."""
    config = tiny.config("scout") | {"vision_config": None}
    weights = tiny.tensors(config)
    folder = tmp_path / "layers"
    tiny.write_checkpoint(folder, config, weights, "BF16")
    (folder / "model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CHECKPOINT / name).read_bytes())
    weight_map = {}
    for index, part in enumerate(np.array_split(list(weights), SHARDS)):
        file = f"model-{index + 1:05d}-of-{SHARDS:05d}.safetensors"
        tiny.write_safetensors(folder / file, {name: weights[name] for name in part}, "BF16")
        weight_map.update(dict.fromkeys(map(str, part), file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.repositories[NAME] = folder
    return folder


def convert_remotely(
    out: Path, keep: bool = False, on_progress: Callable[[Progress], None] = lambda now: None
) -> Report:
    remote = open_remote(NAME, downloads=out.with_name("downloads"))
    source = open_source(remote.checkpoint.folder, remote.checkpoint)
    shards = RemoteShards(remote, keep)
    try:
        return run(source, make_plan(source, FOUR_BITS), out, shards, on_progress)
    finally:
        remote.close()


def stop_late(now: Progress) -> None:
    if now.done > 0.7 * now.total:
        raise KeyboardInterrupt


def shards_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def fetched(hub: Hub) -> list[int]:
    names = [f"model-{index + 1:05d}-of-{SHARDS:05d}.safetensors" for index in range(SHARDS)]
    return [hub.fetched(name) for name in names]


def test_same_model_and_never_more_disk_than_said(
    hub: Hub, layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "COMMIT_BYTES", 1)
    remote = open_remote(NAME, downloads=tmp_path / "downloads")
    source = open_source(remote.checkpoint.folder, remote.checkpoint)
    plan = make_plan(source, FOUR_BITS)
    shards = RemoteShards(remote)
    room = shards.room_bytes([job.files for job in plan.jobs])
    # The first shard has the head, which comes last, so that it is there all the time.
    assert room < sum(remote.sizes.values()) + max(remote.sizes.values())
    there: list[int] = []

    def look(now: Progress) -> None:
        paths = (tmp_path / "downloads").glob("*.safetensors")
        there.append(sum(path.stat().st_size for path in paths))

    run(source, plan, tmp_path / "out", shards, look)
    convert(layers, tmp_path / "local", FOUR_BITS)
    assert files(tmp_path / "out") == files(tmp_path / "local")
    assert 0 < max(there) <= room and fetched(hub) == [1] * SHARDS
    assert shards_in(tmp_path / "downloads") == []


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ("a a b b c c d", 3),  # one in use, one on its way, one becoming durable
        ("a b", 2),
        ("a b c d e a", 4),  # a is needed until the end
        ("a", 1),
    ],
)
def test_room(jobs: str, expected: int) -> None:
    sizes = {Path(name): 1 for name in jobs.split()}
    remote = RemoteCheckpoint("x", Checkpoint(Path(), {}), Path(), sizes)
    needed = [[Path(name)] for name in jobs.split()]
    assert RemoteShards(remote).room_bytes(needed) == expected
    assert RemoteShards(remote, keep=True).room_bytes(needed) == len(sizes)


def test_source_can_be_kept(hub: Hub, layers: Path, tmp_path: Path) -> None:
    convert_remotely(tmp_path / "out", keep=True)
    assert shards_in(tmp_path / "downloads") == shards_in(layers)


def test_what_is_converted_is_not_fetched_again(
    hub: Hub, layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "COMMIT_BYTES", 1)

    with pytest.raises(KeyboardInterrupt):
        convert_remotely(tmp_path / "out", on_progress=stop_late)
    before = fetched(hub)
    report = convert_remotely(tmp_path / "out")
    assert report.resumed_bytes > 0.6 * report.source_bytes
    # Shard 1 has the head too; 2 was done with, and is not asked for again.
    assert before[1] == fetched(hub)[1] == 1
    convert(layers, tmp_path / "local", FOUR_BITS)
    assert files(tmp_path / "out") == files(tmp_path / "local")


def test_what_an_earlier_run_left_is_made_room_of(
    hub: Hub, layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there need not fit the disk again, and what is done with does not stay."""
    monkeypatch.setattr(write_module, "COMMIT_BYTES", 1)

    with pytest.raises(KeyboardInterrupt):
        convert_remotely(tmp_path / "out", keep=True, on_progress=stop_late)
    downloads = tmp_path / "downloads"
    broken_off = downloads / ".cache" / "huggingface" / "download" / "x.incomplete"
    broken_off.parent.mkdir(parents=True, exist_ok=True)
    broken_off.write_bytes(bytes(5000))
    there = sum((downloads / name).stat().st_size for name in shards_in(downloads))
    remote = open_remote(NAME, downloads=downloads)
    assert broken_off.exists()  # another run may be at work on it
    needed = [[file] for file in remote.sizes]
    room = RemoteShards(remote, keep=True).room_bytes(needed)
    assert 0 <= room <= sum(remote.sizes.values()) - there
    shards = RemoteShards(remote)
    shards.expect([[remote.checkpoint.files[-1]]])
    assert shards_in(downloads) == [remote.checkpoint.files[-1].name]
    assert not broken_off.exists()


def test_no_shard_is_waited_for_after_the_end(hub: Hub, layers: Path, tmp_path: Path) -> None:
    hub.slow = True
    remote = open_remote(NAME, downloads=tmp_path / "downloads")
    remote.stop()
    began = time.monotonic()
    with pytest.raises(RunError, match="stopped"):
        remote.ensure(remote.checkpoint.files[0])
    assert time.monotonic() - began < STALL_SECONDS / 2


def test_on_the_command_line(hub: Hub, layers: Path, tmp_path: Path) -> None:
    extra, out = environment(hub, tmp_path), tmp_path / "Llama-4-tiny"
    plan = run_command("convert", NAME, out, "--while-downloading", "--dry-run", **extra)
    assert "for shards on their way" in plan.stdout
    plan = run_command("convert", NAME, out, "--dry-run", **extra)
    assert "slices" in plan.stdout and "on their way" not in plan.stdout
    assert fetched(hub) == [0] * SHARDS
    done = run_command("convert", NAME, out, "--while-downloading", **extra)
    assert done.returncode == 0, done.stderr
    assert fetched(hub) == [1] * SHARDS
    assert not out.with_name(f"{out.name}.downloads").exists()
    card = (out / "README.md").read_text()
    assert f"base_model: {NAME}" in card and "Built with Llama" in card
    assert (out / "NOTICE").read_text().startswith("Llama 4 is licensed under")
    answer = run_command("ask", "Hi", "-m", out, "--max-tokens", 2)
    assert answer.returncode == 0, answer.stderr


def test_refusals(hub: Hub, layers: Path, tmp_path: Path) -> None:
    extra, out = environment(hub, tmp_path), tmp_path / "out"
    stream = "--while-downloading"
    assert "not a repository on the hub" in refused("convert", layers, out, stream)
    assert "goes with --while-downloading" in refused("convert", layers, out, "--keep-source")
    sized = ("--target-size", "1MB")
    assert "looks at all weights" in refused("convert", NAME, out, stream, *sized, **extra)
    # Before anything is converted.
    assert "begin with “Llama”" in refused("convert", layers, out, "--upload", "me/mine")
    assert not out.exists() and not list(tmp_path.glob("out*"))


def test_a_shard_that_goes_missing_on_the_way(hub: Hub, layers: Path, tmp_path: Path) -> None:
    """One line, and what was done is kept."""
    extra, out = environment(hub, tmp_path), tmp_path / "out"
    last = shards_in(layers)[-1]
    run_command("inspect", NAME, **extra)
    data = (layers / last).read_bytes()
    requests = len(hub.requests)

    def lose(now: Progress) -> None:
        (layers / last).write_bytes(data[:-1000])

    with pytest.raises(Llama4Error) as caught:
        convert_remotely(out, on_progress=lose)
    assert "\n" not in str(caught.value) and len(hub.requests) > requests
    assert not out.exists()


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_stalled_shard(hub: Hub, layers: Path, tmp_path: Path) -> None:
    hub.slow = True
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mlx_llama4", "convert", NAME, str(out), "--while-downloading"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT | environment(hub, tmp_path), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any(fetched(hub)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < STALL_SECONDS - 2
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert not out.exists()
