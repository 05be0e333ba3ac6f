"""Which experts are kept: what was wanted of late, and in former runs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload import heat as heat_module
from mlx_llama4.offload.heat import HALF_LIFE, Heat, heat_file, recall, remember
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import streamed
from tests.commands import run
from tests.golden.cases import text_ids
from tests.streamed import HALF, load_streamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streamed.folder(tmp_path_factory.mktemp("heat"), "maverick", Quantization(32, 4))


def test_a_use_fades_by_half() -> None:
    heat = Heat(3)
    heat.note(np.array([1]), 1)
    heat.note(np.array([2] * HALF_LIFE), HALF_LIFE)
    assert heat.values[1] == pytest.approx(0.5)
    assert heat.coldest_first([2, 1, 0]) == [0, 1, 2]


def test_one_step_is_as_many_steps() -> None:
    """Two experts a token, too."""
    chosen = np.random.RandomState(0).randint(0, 4, 60)
    at_once, one_by_one = Heat(4), Heat(4)
    at_once.note(chosen, 30)
    for pair in chosen.reshape(30, 2):
        one_by_one.note(pair, 1)
    assert at_once.values == pytest.approx(one_by_one.values)


def test_the_coldest_goes(folder: Path) -> None:
    """Of four slots, those of the experts that came last and most often are kept."""
    model = load_streamed(folder, HALF)
    layer = next(iter(model.expert_cache.layers.values()))
    assert layer.capacity == 4
    for expert in (0, 0, 1, 2, 0, 3, 4):
        layer.heat.note(np.array([expert]), 1)
        layer.hold([expert])
    assert set(layer.held) == {0, 2, 3, 4}


def test_after_a_long_step_the_hottest_are_held(folder: Path) -> None:
    model = load_streamed(folder, HALF)
    mx.eval(model(mx.array(text_ids(150))))
    for layer in model.expert_cache.layers.values():
        ranked = layer.heat.coldest_first(range(8))
        assert set(layer.held) == set(ranked[-layer.capacity :])


def test_where_a_long_step_leaves_slots_all_it_needed_are_held(folder: Path) -> None:
    (layer, *_) = load_streamed(folder, HALF).expert_cache.layers.values()
    assert layer.capacity == 4
    for _ in layer.pass_through([0, 3, 5]):
        pass
    assert set(layer.held) == {0, 3, 5}


def test_remembered_for_the_next_start(tmp_path: Path) -> None:
    heats, found, file = {3: Heat(4), 5: Heat(4)}, {3: Heat(4), 5: Heat(4)}, tmp_path / "a" / "b"
    heats[3].note(np.array([1, 2, 2]), 3)
    remember(heats, file)
    recall(found, file)
    for layer in heats:
        assert found[layer].values == pytest.approx(heats[layer].values, abs=1e-6)
    assert [one.name for one in file.parent.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"3": [1, 2]}',
        '{"3": "abcd"}',
        '{"3": [1, 2, 3, NaN]}',
        '{"3": [1, 2, 3, -4]}',
        '{"3": [[1], [2], [3], [4]]}',
        '{"3": [1, 2, 3, null]}',
        '{"3": [1, 2, 3, 1' + "0" * 400 + "]}",
        "[" * 100_000,
    ],
)
def test_what_is_remembered_wrong_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "heat").write_text(text)
    heats = {3: Heat(4)}
    recall(heats, tmp_path / "heat")
    recall(heats, tmp_path / "absent")
    assert not heats[3].values.any()


def test_no_place_to_remember(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remember({3: Heat(4)}, tmp_path / "file" / "heat")


def test_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert heat_file("abc") == tmp_path / "mlx-llama4" / "experts" / "abc.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(heat_module.sys, "platform", "darwin")
    assert heat_file("abc").is_relative_to(Path.home() / "Library" / "Caches")


def warmed(model: Llama4) -> None:
    model.expert_cache.warm()
    layers, deadline = model.expert_cache.layers.values(), time.monotonic() + 30
    while any(len(layer.held) < layer.capacity for layer in layers):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_warming_reads_what_was_hottest(folder: Path) -> None:
    ids = mx.array(text_ids(20))
    model = load_streamed(folder, HALF)
    for layer in model.expert_cache.layers.values():
        layer.heat.note(np.array([7, 7, 5]), 3)
    warmed(model)
    for layer in model.expert_cache.layers.values():
        assert {5, 7} <= set(layer.held)
    read = model.expert_statistics.bytes_read
    assert mx.array_equal(model(ids), load_model(folder, mx.float32)(ids))
    cold = load_streamed(folder, HALF)
    mx.eval(cold(ids))
    assert model.expert_statistics.bytes_read - read < cold.expert_statistics.bytes_read


def test_warming_stops_for_the_first_step(folder: Path) -> None:
    ids = mx.array(text_ids(20))
    expected = load_model(folder, mx.float32)(ids)
    for _ in range(5):
        model = load_streamed(folder, HALF)
        model.expert_cache.warm()
        assert mx.array_equal(model(ids), expected)


def test_python_may_end_while_experts_are_read(folder: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from tests.streamed import ALL, load_streamed
model, preadv = load_streamed(Path({str(folder)!r}), ALL), os.preadv
os.preadv = lambda *arguments: time.sleep(0.01) or preadv(*arguments)
model.expert_cache.warm()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_nothing_waits_for_warming(folder: Path) -> None:
    model = load_streamed(folder, HALF)
    warmed(model)
    assert model.expert_statistics.bytes_read > 0
    assert model.expert_statistics.waiting_seconds == 0


def test_commands_remember(demo_folder: Path, tmp_path: Path) -> None:
    """Each run goes on from what the one before has left."""
    question = ["ask", "hello", "--model", demo_folder, "--max-tokens", 9]
    question += ["--experts", "stream", "--expert-memory", "2MB"]
    heats = []
    for _ in range(2):
        result = run(*question, XDG_CACHE_HOME=str(tmp_path))
        assert result.returncode == 0, result.stderr
        (file,) = (tmp_path / "mlx-llama4" / "experts").iterdir()
        heats.append(sum(map(sum, json.loads(file.read_text()).values())))
    assert heats[1] > heats[0] > 0
