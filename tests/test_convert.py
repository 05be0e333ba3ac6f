"""Hugging Face checkpoint → MLX folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mlx_llama4.convert.plan as plan_module
import mlx_llama4.convert.write as write_module
from mlx_llama4.config import load_config
from mlx_llama4.convert.checkpoint import INDEX_NAME, Checkpoint, open_checkpoint
from mlx_llama4.convert.fit import fits
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.stream import convert, default_dtype
from mlx_llama4.errors import CheckpointError, OutputError, RunError
from mlx_llama4.load import load_model
from mlx_llama4.memory import weight_bytes
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.golden import cases
from tests.golden.pictures import TOKENIZER_FOLDER

FOUR_BITS = Recipe("bfloat16", Quantization(32, 4))
PLAIN = Recipe("float32", None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Scout-like checkpoint in bfloat16, in three shards, with a tokenizer."""
    case = cases.MODELS["scout"]
    folder = tmp_path_factory.mktemp("source")
    tiny.write_checkpoint(folder, case.config, case.weights(), "BF16", shards=3)
    (folder / "tokenizer.json").write_bytes((TOKENIZER_FOLDER / "tokenizer.json").read_bytes())
    return folder


def arrays(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(mx.load(str(file)))
    return found


def expected_arrays(weights: dict[str, np.ndarray]) -> dict[str, mx.array]:
    """The model's tensors, put together the plain way."""
    result = {}
    for name, weight in weights.items():
        array = mx.array(weight)
        if name.endswith("gate_up_proj"):
            gate, up = mx.split(array, 2, axis=-1)
            result[name.replace("gate_up_proj", "gate_proj.weight")] = gate.swapaxes(1, 2)
            result[name.replace("gate_up_proj", "up_proj.weight")] = up.swapaxes(1, 2)
        elif name.endswith("experts.down_proj"):
            result[f"{name}.weight"] = array.swapaxes(1, 2)
        else:
            result[name] = array
    return result


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_plain_weights_arrive_unchanged(tmp_path: Path, dtype: str, shards: int) -> None:
    case = cases.MODELS["maverick"]
    weights = case.weights()
    if dtype == "F16":  # bfloat16 reaches further down than float16
        weights = {n: w.astype(np.float16).astype(np.float32) for n, w in weights.items()}
    source = tiny.write_checkpoint(tmp_path / "source", case.config, weights, dtype, shards)
    convert(source, tmp_path / "out", PLAIN)
    found, expected = arrays(tmp_path / "out"), expected_arrays(weights)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert mx.array_equal(found[name], array), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("block_bytes", [1, 5000, 2**26])
def test_packed_weights_are_those_of_whole_tensors(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bits: int, group_size: int, block_bytes: int,
) -> None:  # fmt: skip
    """However finely the work is cut. Width 96 does not divide by 64: those stay as they are."""
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", block_bytes)
    convert(source, tmp_path / "out", Recipe("bfloat16", Quantization(group_size, bits)))
    found = arrays(tmp_path / "out")
    for name, array in expected_arrays(cases.MODELS["scout"].weights()).items():
        array = array.astype(mx.bfloat16)
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in found:
            assert mx.array_equal(found[name], array), name
            continue
        packed = mx.quantize(array, group_size, bits)
        for part, values in zip(("weight", "scales", "biases"), packed, strict=True):
            assert mx.array_equal(found[f"{module}.{part}"], values), name


def test_what_is_packed(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", FOUR_BITS)
    packed = {name.removesuffix(".scales") for name in arrays(tmp_path / "out") if "scales" in name}
    layer = "language_model.model.layers.3"
    for module in ("self_attn.q_proj", "feed_forward.experts.up_proj"):
        assert f"{layer}.{module}" in packed
    assert {"language_model.model.embed_tokens", "language_model.lm_head"} <= packed
    kept = ("router", "norm", "vision_model", "multi_modal_projector")
    assert not [module for module in packed if any(part in module for part in kept)]
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert table[f"{layer}.feed_forward.router"] is False
    assert table["vision_model.model.layers.0.mlp.fc1"] is False


def test_bytes_are_as_planned(source: Path, tmp_path: Path) -> None:
    for index, recipe in enumerate((FOUR_BITS, PLAIN, Recipe("float16", Quantization(64, 8)))):
        out = tmp_path / str(index)
        report = convert(source, out, recipe)
        stored = sum(array.nbytes for array in arrays(out).values())
        width = 4 if recipe.dtype == "float32" else 2
        predicted = weight_bytes(load_config(out), recipe.of, width)
        assert report.output_bytes == stored == sum(predicted.values())


def test_config_has_both_spellings(tmp_path: Path) -> None:
    old = tiny.config("scout")
    new = json.loads(json.dumps(old))
    text = new["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    new["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    del new["vision_config"]["rope_theta"], new["vision_config"]["vision_feature_layer"]
    weights = tiny.tensors(old)
    written = []
    for name, config in (("old", old), ("new", new)):
        source = tiny.write_checkpoint(tmp_path / name, config, weights)
        convert(source, tmp_path / f"{name}-mlx", FOUR_BITS)
        result = json.loads((tmp_path / f"{name}-mlx" / "config.json").read_text())
        text = result["text_config"]
        assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 500000.0
        assert text["rope_scaling"]["factor"] == text["rope_parameters"]["factor"] == 16.0
        assert result["vision_config"]["rope_theta"] == 10000.0
        assert result["vision_config"]["vision_feature_layer"] == -1
        assert result["image_token_index"] == result["image_token_id"] == tiny.PATCH_ID
        assert result["quantization"] == result["quantization_config"]
        written.append(load_config(tmp_path / f"{name}-mlx"))
    assert written[0] == written[1]


def test_side_files_come_along(source: Path, tmp_path: Path) -> None:
    copied = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "chat_template.jinja", "chat_template.json", "LICENSE.txt", "USE_POLICY.md",
    }  # fmt: skip
    source = Path(shutil.copytree(source, tmp_path / "source"))
    for name in copied:
        (source / name).write_text(f"this is {name}")
    (source / "notes.txt").write_text("not ours")
    (source / "LICENSES").mkdir()
    (source / "LICENSE.gone").symlink_to(source / "gone")
    convert(source, tmp_path / "out", FOUR_BITS)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert all((tmp_path / "out" / name).read_text() == f"this is {name}" for name in copied)
    assert names == {"config.json", "model.safetensors", INDEX_NAME, *copied}


def test_shards_and_their_index(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "MAX_SHARD_BYTES", 200_000)
    convert(source, tmp_path / "out", FOUR_BITS)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    found = arrays(tmp_path / "out")
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
    model = load_model(tmp_path / "out")
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, tiny.VOCABULARY)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        starts = {min(t.offset for t in checkpoint.tensors.values() if t.file == f)
                  for f in checkpoint.files}  # fmt: skip
    assert {start % 16384 for start in starts} == {0}


def test_progress(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = convert(source, tmp_path / "out", PLAIN, lambda *told: seen.append(told))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (report.source_bytes, report.source_bytes)


def test_memory_is_that_of_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 experts of 400 KB each, one tensor of 13 MB; never more than a few experts at once."""
    config = tiny.config("scout", num_local_experts=32, intermediate_size=1024, num_hidden_layers=1)
    source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config), "BF16")
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", 2**18)
    read, reads = Checkpoint.read, []

    def counted(self: Checkpoint, *args: object) -> np.ndarray:
        data = read(self, *args)
        reads.append(data.nbytes)
        return data

    monkeypatch.setattr(Checkpoint, "read", counted)
    report = convert(source, tmp_path / "out", FOUR_BITS)
    expert_bytes = 64 * 2048 * 2
    assert max(reads) == expert_bytes
    assert report.source_bytes > 12 * 2**20
    assert report.peak_bytes < 3.5 * expert_bytes


@pytest.mark.parametrize(
    ("stored", "expected"), [("F32", "bfloat16"), ("BF16", "bfloat16"), ("F16", "float16")]
)
def test_default_dtype_is_what_is_stored(tmp_path: Path, stored: str, expected: str) -> None:
    """Whatever config.json says."""
    case = cases.MODELS["maverick"]
    for named in ("float16", "bfloat16", None):
        config = case.config | {"torch_dtype": named}
        tiny.write_checkpoint(tmp_path / f"{named}", config, case.weights(), stored)
        assert default_dtype(tmp_path / f"{named}") == expected


def test_an_mlx_folder_of_plain_weights_can_be_quantized(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "plain", Recipe("bfloat16", None))
    convert(tmp_path / "plain", tmp_path / "twice", FOUR_BITS)
    convert(source, tmp_path / "once", FOUR_BITS)
    once, twice = arrays(tmp_path / "once"), arrays(tmp_path / "twice")
    assert once.keys() == twice.keys()
    assert all(mx.array_equal(once[name], twice[name]) for name in once)


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


def test_quantized_sources_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "mlx", FOUR_BITS)
    with pytest.raises(CheckpointError, match="quantized MLX folder already"):
        convert(tmp_path / "mlx", tmp_path / "out", FOUR_BITS)
    config = tiny.config("scout")
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
    }
    foreign = tiny.write_checkpoint(tmp_path / "foreign", config, tiny.tensors(config))
    with pytest.raises(CheckpointError, match="compressed-tensors int-quantized"):
        convert(foreign, tmp_path / "out", FOUR_BITS)


def test_destinations_that_will_not_do(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for out in (taken, taken / "file"):
        with pytest.raises(OutputError, match="already exists"):
            convert(source, out, FOUR_BITS)
    with pytest.raises(OutputError, match="cannot write to"):
        convert(source, taken / "file" / "below", FOUR_BITS)
    with pytest.raises(OutputError, match="File name too long"):
        convert(source, tmp_path / ("x" * 300), FOUR_BITS)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="cannot write to"):
        convert(source, tmp_path / "loop", FOUR_BITS)
    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as context:
        context.chdir(empty)
        with pytest.raises(OutputError, match="already exists"):
            convert(source, Path(), FOUR_BITS)
    convert(source, empty, FOUR_BITS)
    assert (empty / "config.json").is_file()
    for name in ("here", "not yet"):
        (tmp_path / f"to {name}").symlink_to(tmp_path / name)
    (tmp_path / "here").mkdir()
    for name in ("here", "not yet", "deep/er"):
        target = tmp_path / name if "/" in name else tmp_path / f"to {name}"
        convert(source, target, FOUR_BITS)
        assert (tmp_path / name / "config.json").is_file()


def test_unwritable_destination(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot write to"):
        convert(source, tmp_path / "out", FOUR_BITS)


def test_disk_too_small(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="needs 667 KB but only 1 KB are free"):
        convert(source, tmp_path / "out", FOUR_BITS)


def test_disk_full_on_the_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def full(descriptor: int, data: memoryview, position: int) -> int:
        nonlocal written
        written += 1
        if written > 20:
            raise OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="No space left on device; nothing was kept"):
        convert(source, tmp_path / "out", FOUR_BITS)
    assert not list(tmp_path.glob("out*"))


def test_what_a_killed_run_left_is_cleared_away(source: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / write_module.LOCK_NAME).touch()
    (left / "model-00007-of-00009.safetensors").touch()
    convert(source, tmp_path / "out", FOUR_BITS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"model-00007-of-00009.safetensors", write_module.LOCK_NAME}


def test_a_folder_of_the_user_s_own_is_not_touched(source: Path, tmp_path: Path) -> None:
    """It may be called out.partial by chance, or be the source."""
    own = tmp_path / "out.partial"
    shutil.copytree(source, own)
    (own / "thesis.txt").write_text("precious")
    for checkpoint in (source, own):
        with pytest.raises(OutputError, match="is in the way, and is not ours"):
            convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert (own / "thesis.txt").read_text() == "precious"


def test_two_conversions_at_once(source: Path, tmp_path: Path) -> None:
    """The second is refused and does the first no harm; both once shared a folder."""
    refusals = []

    def meanwhile(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        with pytest.raises(OutputError, match="another conversion is writing") as caught:
            convert(source, tmp_path / "out", PLAIN)
        refusals.append(caught.value)

    convert(source, tmp_path / "out", FOUR_BITS, meanwhile)
    convert(source, tmp_path / "alone", FOUR_BITS)
    assert refusals
    both = [arrays(tmp_path / name) for name in ("out", "alone")]
    assert all(mx.array_equal(both[0][name], both[1][name]) for name in both[1])


def test_a_second_ctrl_c_does_not_stop_the_clearing_away(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, calls = shutil.rmtree, []

    def interrupted(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) < 3:
            raise KeyboardInterrupt
        remove(*args, **kwargs)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", FOUR_BITS, stop)
    assert len(calls) == 3
    assert not list(tmp_path.glob("out*"))


def test_files_that_cannot_be_copied_are_known_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "copyfile", fail)
    progress: list[int] = []
    with pytest.raises(RunError, match=r"cannot copy .*tokenizer\.json to .*: Permission denied"):
        convert(source, tmp_path / "out", FOUR_BITS, lambda done, total: progress.append(done))
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
        with pytest.raises(RunError, match=f"{name} has values that {dtype} cannot hold"):
            convert(source, tmp_path / "out", Recipe(dtype, quantization))
        assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_runs_leave_nothing_under_the_final_name(tmp_path: Path, stop: int) -> None:
    config = tiny.config("scout", num_local_experts=16, intermediate_size=2048, hidden_size=256)
    weights = tiny.tensors(config | {"vision_config": None})
    source = tiny.write_checkpoint(
        tmp_path / "source", config | {"vision_config": None}, weights, "BF16"
    )
    (source / "tokenizer.json").touch()
    command = [sys.executable, "-m", "mlx_llama4", "convert", str(source), str(tmp_path / "out")]
    for delay in np.linspace(0.3, 1.3, 8):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        time.sleep(delay)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
        assert b"Traceback" not in errors
        if process.returncode == 0:
            break
        assert process.returncode == (130 if stop == signal.SIGINT else -stop)
        assert not (tmp_path / "out").exists()
        assert stop == signal.SIGKILL or not (tmp_path / "out.partial").exists()
    subprocess.run(command, check=process.returncode != 0, capture_output=True)
    assert load_model(tmp_path / "out")(mx.array([[1, 2]])).shape == (1, 2, tiny.VOCABULARY)
