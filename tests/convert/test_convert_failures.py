"""Conversions that cannot be, that fail on the way, that are stopped: nothing half-written."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_llama4.checkpoint.arrays import fits
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import Progress, convert
from mlx_llama4.convert.write import LOCK_NAME, FolderWriter
from mlx_llama4.errors import CheckpointError, OutputError, RunError
from mlx_llama4.quantization import FIXED_MODES, Quantization
from tests import tiny
from tests.convert.folders import FOUR_BITS, PLAIN, arrays, files
from tests.golden import cases


def broken(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    weights = cases.MODELS["scout"].weights()
    change(weights)
    return tiny.write_checkpoint(tmp_path / "broken", cases.MODELS["scout"].config, weights)


NORM = "language_model.model.norm.weight"
ROUTERS = [f"language_model.model.layers.{i}.feed_forward.router.weight" for i in range(8)]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (f"tensor missing: {NORM};", lambda w: w.pop(NORM)),
        ("tensor unknown: language_model.x;", lambda w: w.update({"language_model.x": w[NORM]})),
        (f"of a wrong shape: {NORM} [63];", lambda w: w.update({NORM: w[NORM][1:]})),
        (f"missing: {ROUTERS[0]} and 7 more", lambda w: [w.pop(name) for name in ROUTERS]),
    ],
)
def test_wrong_tensors(
    tmp_path: Path, message: str, change: Callable[[dict[str, np.ndarray]], None]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        convert(broken(tmp_path, change), tmp_path / "out", FOUR_BITS)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_known_buffers_are_left_out(tmp_path: Path) -> None:
    buffer = "language_model.model.rotary_emb.inv_freq"
    source = broken(tmp_path, lambda w: w.update({buffer: np.ones(8, np.float32)}))
    convert(source, tmp_path / "out", FOUR_BITS)
    assert buffer not in arrays(tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "int-quantized"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes 8-bit"),
    ],
)
def test_unknown_formats_are_refused_by_name(
    tmp_path: Path, method: dict[str, str], named: str
) -> None:
    config = tiny.config("scout") | {"quantization_config": method}
    foreign = tiny.write_checkpoint(tmp_path / "foreign", config, tiny.tensors(config))
    with pytest.raises(CheckpointError, match=f"quantized by .*{named}, which is not supported"):
        convert(foreign, tmp_path / "out", FOUR_BITS)
    assert not list(tmp_path.glob("out*"))


def test_destinations_that_will_not_do(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for out in (taken, taken / "file"):
        with pytest.raises(OutputError, match="already exists"):
            convert(checkpoint, out, FOUR_BITS)
    with pytest.raises(OutputError, match="cannot write to"):
        convert(checkpoint, taken / "file" / "below", FOUR_BITS)
    with pytest.raises(OutputError, match="File name too long"):
        convert(checkpoint, tmp_path / ("x" * 300), FOUR_BITS)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="cannot write to"):
        convert(checkpoint, tmp_path / "loop", FOUR_BITS)
    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as context:
        context.chdir(empty)
        with pytest.raises(OutputError, match="already exists"):
            convert(checkpoint, Path(), FOUR_BITS)
    convert(checkpoint, empty, FOUR_BITS)
    assert (empty / "config.json").is_file()
    for name in ("here", "not yet"):
        (tmp_path / f"to {name}").symlink_to(tmp_path / name)
    (tmp_path / "here").mkdir()
    for name in ("here", "not yet", "deep/er"):
        target = tmp_path / name if "/" in name else tmp_path / f"to {name}"
        convert(checkpoint, target, FOUR_BITS)
        assert (tmp_path / name / "config.json").is_file()


def test_unwritable_destination(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot write to"):
        convert(checkpoint, tmp_path / "out", FOUR_BITS)


def test_disk_too_small(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="needs 667 KB but only 1 KB are free"):
        convert(checkpoint, tmp_path / "out", FOUR_BITS)


def test_disk_full_on_the_way(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done is kept, and the next run goes on from there."""
    convert(checkpoint, tmp_path / "undisturbed", FOUR_BITS)
    write, calls = FolderWriter.write, []

    def full(self: FolderWriter, *args: object) -> None:
        calls.append(args)
        if len(calls) > 20:
            raise RunError("cannot write it: No space left on device")
        write(self, *args)

    with monkeypatch.context() as context:
        context.setattr(FolderWriter, "write", full)
        with pytest.raises(RunError, match="No space left on device"):
            convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert not (tmp_path / "out").exists()
    report = convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert 0 < report.resumed_bytes < report.source_bytes
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_what_a_killed_run_left_is_cleared_away(checkpoint: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / LOCK_NAME).touch()
    (left / "model-00007-of-00009.safetensors").touch()
    convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"model-00007-of-00009.safetensors", LOCK_NAME}


def test_a_folder_of_the_user_s_own_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    """It may be called out.partial by chance, or be the checkpoint."""
    own = tmp_path / "out.partial"
    shutil.copytree(checkpoint, own)
    (own / "thesis.txt").write_text("precious")
    for folder in (checkpoint, own):
        with pytest.raises(OutputError, match="is in the way, and is not ours"):
            convert(folder, tmp_path / "out", FOUR_BITS)
    assert (own / "thesis.txt").read_text() == "precious"


def test_two_conversions_at_once(checkpoint: Path, tmp_path: Path) -> None:
    """The second is refused and does the first no harm; both once shared a folder."""
    refusals = []

    def meanwhile(progress: Progress) -> None:
        assert not (tmp_path / "out").exists()
        with pytest.raises(OutputError, match="another conversion is writing") as caught:
            convert(checkpoint, tmp_path / "out", PLAIN)
        refusals.append(caught.value)

    convert(checkpoint, tmp_path / "out", FOUR_BITS, meanwhile)
    convert(checkpoint, tmp_path / "alone", FOUR_BITS)
    assert refusals
    both = [arrays(tmp_path / name) for name in ("out", "alone")]
    assert all(mx.array_equal(both[0][name], both[1][name]) for name in both[1])


def test_volumes_without_locks(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match="Operation not supported"):
        convert(checkpoint, tmp_path / "out", FOUR_BITS)


def test_a_second_ctrl_c_does_not_stop_the_clearing_away(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, calls = shutil.rmtree, []

    def interrupted(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) < 3:
            raise KeyboardInterrupt
        remove(*args, **kwargs)

    def stop(self: FolderWriter, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderWriter, "copy", stop)
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert len(calls) == 3
    assert not list(tmp_path.glob("out*"))


def test_files_that_cannot_be_copied_are_known_at_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "copyfile", fail)
    progress: list[Progress] = []
    with pytest.raises(RunError, match=r"cannot copy .*tokenizer\.json to .*: Permission denied"):
        convert(checkpoint, tmp_path / "out", FOUR_BITS, progress.append)
    assert not progress and not list(tmp_path.glob("out*"))


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
    source=st.sampled_from(["F32", "BF16", "F16"]),
    target=st.sampled_from(["float32", "bfloat16", "float16"]),
)
@example([0x477FEFFF, 0xC77FEFFF], "F32", "float16")
@example([0x477FF000], "F32", "float16")
@example([0x7F7F7FFF], "F32", "bfloat16")
@example([0x7F7F8000], "F32", "bfloat16")
@example([0x477F], "BF16", "float16")
@example([0x4780], "BF16", "float16")
@settings(deadline=None)
def test_fit_is_finiteness_after_conversion(bits: list[int], source: str, target: str) -> None:
    width = np.uint32 if source == "F32" else np.uint16
    data = (np.array(bits, np.uint64) & np.iinfo(width).max).astype(width)
    named = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}[source]
    values = mx.array(data).view(named).astype(getattr(mx, target))
    assert fits(data.view(np.uint8), source, target) == mx.isfinite(values).all().item()


@pytest.mark.parametrize("quantization", [None, Quantization(32, 4)])
def test_values_that_do_not_fit_the_type(tmp_path: Path, quantization: Quantization | None) -> None:
    """bfloat16 reaches to 3e38, float16 to 65,504; and a NaN is damage in any type."""
    name = "language_model.lm_head.weight"
    for value, dtype in ((1e5, "float16"), (float("nan"), "bfloat16")):
        weights = cases.MODELS["scout"].weights()
        weights[name][3, 3] = value
        source = tiny.write_checkpoint(tmp_path / f"{dtype}", cases.MODELS["scout"].config, weights)
        out = tmp_path / f"{dtype} out"
        with pytest.raises(RunError, match=f"safetensors: {name} has values that {dtype} cannot"):
            convert(source, out, Recipe(dtype, quantization))
        assert not out.exists()


@pytest.mark.parametrize("packing", [None, FIXED_MODES["mxfp4"]])
def test_products_that_do_not_fit_the_type(
    checkpoint: Path, tmp_path: Path, packing: Quantization | None
) -> None:
    """300 fits float16 and so does 255, but not their product; mxfp4's scales hide that."""
    convert(checkpoint, tmp_path / "packed", Recipe("bfloat16", Quantization(32, 8)))
    file = tmp_path / "packed" / "model.safetensors"
    weights = mx.load(str(file))
    module = "language_model.model.layers.1.self_attn.o_proj"
    weights[f"{module}.scales"] = mx.full(weights[f"{module}.scales"].shape, 300, mx.bfloat16)
    mx.save_safetensors(str(file), weights)
    with pytest.raises(RunError, match=rf"{module}\.weight has values that float16 cannot hold"):
        convert(tmp_path / "packed", tmp_path / "out", Recipe("float16", packing))
    assert not (tmp_path / "out").exists()
