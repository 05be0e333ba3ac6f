"""SHA-256 sums: right, wrong and missing, while downloading, while converting, and by inspect."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import RunError
from mlx_llama4.hub.repository import find_folder
from mlx_llama4.hub.sums import check_sum, hub_sum, metadata_of
from tests.commands import refused, run_here
from tests.convert.folders import FOUR_BITS
from tests.hub.test_while_downloading import (
    NAME,
    SHARDS,
    convert_remotely,
    layers,
    shards_in,
)
from tests.hub_server import Hub

__all__ = ["layers"]  # a fixture


def hole(path: Path, share: float = 0.5, nbytes: int = 20_000) -> None:
    """Zeros in the place of data, the length and the header as they were."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * share)
    nbytes = min(nbytes, len(data) - start)
    data[start : start + nbytes] = bytes(nbytes)
    path.write_bytes(data)


def claim(path: Path, sum_: str) -> None:
    """Writes beside a file what a download into its folder writes."""
    metadata = metadata_of(path)
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"{'0' * 40}\n{sum_}\n1700000000.0\n")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The demo, as a download into a folder leaves it."""
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "source"))
    weights = folder / "model.safetensors"
    claim(weights, hashlib.sha256(weights.read_bytes()).hexdigest())
    return folder


def test_right(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", FOUR_BITS)
    assert (report.files, report.verified_files, report.zero_rows) == (1, 1, {})
    assert (
        "read: 1 of 1 files have the hub's SHA-256"
        in run_here("inspect", source, "--verify").stdout
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_wrong(source: Path, tmp_path: Path, share: float) -> None:
    weights = source / "model.safetensors"
    hole(weights, share)
    with pytest.raises(RunError, match="is not what the hub has: its SHA-256 is") as caught:
        convert(source, tmp_path / "out", FOUR_BITS)
    assert str(weights) in str(caught.value) and not list(tmp_path.glob("out*"))
    result = run_here("inspect", source, "--verify")
    assert result.returncode == 1 and f"{weights} is not what the hub has" in result.stdout
    assert run_here("inspect", source).returncode == 0


def test_one_flipped_bit(source: Path) -> None:
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunError, match="is not what the hub has"):
        check_sum(weights)


@pytest.mark.parametrize("sum_", ["", "0" * 40, "no sum", "A" * 64, "0" * 63, None])
def test_missing(source: Path, tmp_path: Path, sum_: str | None) -> None:
    """Where no sum is known, rows of zeros are reported, and nothing else is."""
    weights = source / "model.safetensors"
    if sum_ is None:
        shutil.rmtree(source / ".cache")
    else:
        claim(weights, sum_)
    assert hub_sum(weights) is None and not check_sum(weights)
    whole = run_here("inspect", source, "--verify")
    assert whole.returncode == 0 and "no sums of the hub are known" in whole.stdout
    assert "zero" not in whole.stdout
    hole(weights)
    report = convert(source, tmp_path / "out", FOUR_BITS)
    assert report.verified_files == 0 and sum(report.zero_rows.values()) > 10
    result = run_here("inspect", source, "--verify")
    name, count = next(iter(report.zero_rows.items()))
    assert f"{name}: {count:,} rows are all zero" in result.stdout
    assert "compare their SHA-256" in result.stdout


def test_said_on_the_command_line(source: Path, tmp_path: Path) -> None:
    right = run_here("convert", source, tmp_path / "a")
    assert "1 of the 1 files read have the SHA-256 that the hub has of them" in right.stderr
    shutil.rmtree(source / ".cache")
    hole(source / "model.safetensors")
    missing = run_here("convert", source, tmp_path / "b")
    assert "rows are all zero" in missing.stderr and "SHA-256 that the hub" not in missing.stderr
    report = json.loads(run_here("inspect", source, "--verify", "--json").stdout)
    assert report["verification"]["zero_rows"] and report["verification"]["right"]


def test_nan_is_found(source: Path) -> None:
    shutil.rmtree(source / ".cache")
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\xff\x7f"
    weights.write_bytes(data)
    result = run_here("inspect", source, "--verify")
    assert result.returncode == 1 and "NaN or infinite" in result.stdout


def test_downloaded_right(hub: Hub, layers: Path, tmp_path: Path) -> None:
    folder = find_folder(NAME, purpose="convert")
    assert all(check_sum(folder / name) for name in shards_in(folder))
    assert convert(NAME, tmp_path / "out", FOUR_BITS).verified_files == SHARDS
    hub.requests.clear()
    result = run_here("inspect", folder, "--verify")
    assert f"{SHARDS} of {SHARDS} files have the hub's SHA-256" in result.stdout


def test_downloaded_wrong(hub: Hub, layers: Path) -> None:
    """The length is right and the content is not: it is deleted, and comes anew the next time."""
    name = shards_in(layers)[1]
    hub.damaged.add(name)
    with pytest.raises(RunError, match=f"{name} came damaged"):
        find_folder(NAME, purpose="convert")
    hub.damaged.clear()
    folder = find_folder(NAME, purpose="convert")
    assert (folder / name).read_bytes() == (layers / name).read_bytes()
    assert hub.fetched(name) == 2 and hub.fetched(shards_in(layers)[0]) == 1


def test_damaged_in_the_cache_later(hub: Hub, layers: Path, tmp_path: Path) -> None:
    folder = find_folder(NAME, purpose="convert")
    blob = (folder / shards_in(folder)[2]).resolve()
    hole(blob, 0.7, 1000)
    with pytest.raises(RunError, match=f"delete {blob} and download it again"):
        convert(NAME, tmp_path / "out", FOUR_BITS)
    blob.unlink()
    assert convert(NAME, tmp_path / "out", FOUR_BITS).verified_files > 0


def test_wrong_while_downloading(hub: Hub, layers: Path, tmp_path: Path) -> None:
    name = shards_in(layers)[1]
    hub.damaged.add(name)
    with pytest.raises(RunError, match=f"{name} came damaged"):
        convert_remotely(tmp_path / "out")
    assert name not in shards_in(tmp_path / "downloads") and not (tmp_path / "out").exists()
    hub.damaged.clear()
    report = convert_remotely(tmp_path / "out")
    assert report.verified_files == report.files > 0


def test_reading_stops(source: Path) -> None:
    with pytest.raises(RunError, match="was stopped"):
        check_sum(source / "model.safetensors", lambda: True)


def test_a_link_elsewhere_has_no_sum(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "weights" / ("0" * 64)
    elsewhere.parent.mkdir()
    shutil.rmtree(source / ".cache")
    (source / "model.safetensors").rename(elsewhere)
    (source / "model.safetensors").symlink_to(elsewhere)
    assert hub_sum(source / "model.safetensors") is None


def test_no_weights_are_read_for_a_repository_that_is_not_here(hub: Hub, layers: Path) -> None:
    assert "shards missing" in refused("inspect", NAME, "--verify")
