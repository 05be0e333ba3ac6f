"""Conversions killed at random moments, and disks that fill up or may only be read."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_llama4.convert.write as write_module
from mlx_llama4.convert.journal import JOURNAL_NAME
from mlx_llama4.convert.run import convert
from mlx_llama4.convert.write import LOCK_NAME
from mlx_llama4.errors import OutputError, RunError
from tests import tiny
from tests.convert.folders import FOUR_BITS, files
from tests.proofs import scaled

# Go once the folder has its name; a kill may come before.
OURS = (JOURNAL_NAME, LOCK_NAME)

DRIVER = """
import sys
from pathlib import Path
import mlx.core as mx
mx.set_default_device(mx.cpu)
import mlx_llama4.convert.plan as plan
import mlx_llama4.convert.write as write
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.quantization import Quantization
plan.BLOCK_BYTES = 2**18
write.COMMIT_BYTES = 2**17
print("started", flush=True)
report = convert(Path(sys.argv[1]), Path(sys.argv[2]), Recipe("bfloat16", Quantization(64, 4)))
print("resumed", report.resumed_bytes, flush=True)
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"num_local_experts": 16, "intermediate_size": 512, "hidden_size": 256}
    config = tiny.config("scout", **sizes) | {"vision_config": None}
    folder = tmp_path_factory.mktemp("larger")
    return tiny.write_checkpoint(folder, config, tiny.tensors(config), "BF16", shards=3)


def start(source: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, str(source), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.prove("kills")
def test_killed_at_random_moments(larger: Path, tmp_path: Path) -> None:
    """SIGKILL at 20 moments, spread over the time that the work takes."""
    wanted = scaled(20, long=300)
    whole = start(larger, tmp_path / "undisturbed")
    assert whole.stdout.readline() == "started\n"
    working = time.monotonic()
    whole.communicate(timeout=120)
    duration = time.monotonic() - working
    assert whole.returncode == 0 and duration < 60
    expected = files(tmp_path / "undisturbed")

    moments = random.Random(20)
    resumed: list[int] = []
    for attempt in range(3 * wanted):
        out = tmp_path / f"out{attempt}"
        process = start(larger, out)
        assert process.stdout.readline() == "started\n"
        time.sleep(moments.uniform(0, duration * 0.9))
        process.kill()
        process.communicate(timeout=60)
        if out.exists():  # the kill came too late; the machine has less to do than before
            duration *= 0.9
            found = files(out)
            assert {name: found[name] for name in found if name not in OURS} == expected
        else:
            assert process.returncode == -9
            again = start(larger, out)
            output, errors = again.communicate(timeout=120)
            assert again.returncode == 0, errors
            resumed.append(int(output.split()[-1]))
            assert files(out) == expected
        shutil.rmtree(out)
        if len(resumed) == wanted:
            break
    in_the_middle = sum(done > 0 for done in resumed)
    print(f"\n{len(resumed)} kills, {in_the_middle} of them with something done by then")
    assert len(resumed) == wanted
    assert in_the_middle >= 0.4 * wanted  # most moments were in the middle of it


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_disk_that_fills_up_in_the_middle(
    larger: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the room after the check; once there is more, the work goes on."""
    monkeypatch.setattr(write_module, "check_destination", lambda out, nbytes: None)
    monkeypatch.setattr("mlx_llama4.convert.run.check_destination", lambda out, nbytes: None)
    monkeypatch.setattr(write_module, "COMMIT_BYTES", 2**17)
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device"):
        convert(larger, mounted / "out", FOUR_BITS)
    assert not (mounted / "out").exists() and (mounted / "out.partial").is_dir()
    subprocess.run(["mount", "-o", "remount,size=64m", str(mounted)], check=True)
    report = convert(larger, mounted / "out", FOUR_BITS)
    assert report.resumed_bytes > 0
    convert(larger, tmp_path / "undisturbed", FOUR_BITS)
    assert files(mounted / "out") == files(tmp_path / "undisturbed")


@pytest.mark.slow
def test_disk_that_may_only_be_read(larger: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(OutputError, match="cannot write to"):
        convert(larger, mounted / "out", FOUR_BITS)
    assert not list(mounted.iterdir())
