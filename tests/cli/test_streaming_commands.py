"""`--experts` and what goes with it: what the commands decide, refuse and report."""

import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.macs import MEMORIES, expectations
from mlx_llama4.chat.loading import limit_to_memory
from mlx_llama4.cli.chat import chat
from mlx_llama4.cli.options import Where, expert_options, place_model
from mlx_llama4.config import load_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import InputError
from mlx_llama4.offload.trace import read_trace
from mlx_llama4.opening import open_folder
from mlx_llama4.planning.admission import Experts, Task
from mlx_llama4.planning.expert_weights import ExpertWeights, stored_experts
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.planning.machine import Machine
from mlx_llama4.planning.planner import Usage, need_of
from tests import tiny
from tests.commands import refused, run_here

STREAM = Experts("stream")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """Experts are most of it: 8 layers of 16, and the demo's tokenizer."""
    root = tmp_path_factory.mktemp("experts")
    raw = tiny.config("scout", vocab_size=1019, num_local_experts=16, intermediate_size=512)
    raw["image_token_index"] = 1018
    source = tiny.write_checkpoint(root / "source", raw, tiny.tensors(raw))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((demo_folder / name).read_bytes())
    convert(source, root / "mlx", Recipe("float32", None))
    return root / "mlx"


@pytest.fixture(scope="module")
def weights(folder: Path) -> ExpertWeights:
    return stored_experts(open_folder(folder).source.matching, load_config(folder), 4)


def rest(folder: Path, weights: ExpertWeights, context: int) -> int:
    """Bytes of all but routed experts."""
    usage = Usage(context, 4, fused=False)
    return need_of(load_config(folder), weights.others, usage).total


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch):
    def set_memory(memory: int) -> None:
        machine = Machine(memory, memory, None)
        monkeypatch.setattr("mlx_llama4.planning.machine.this_machine", lambda: machine)

    return set_memory


def test_what_does_not_fit_is_streamed_and_said(
    folder: Path, weights: ExpertWeights, on_machine, capsys: pytest.CaptureFixture
) -> None:
    on_machine(2 * (rest(folder, weights, 500) + weights.all))
    assert place_model(open_folder(folder), Task(500)).streaming is None
    assert capsys.readouterr().err == ""
    on_machine(rest(folder, weights, 500) + weights.all // 2)
    placement = place_model(open_folder(folder), Task(500))
    assert placement.fit == "yes" and 0 < placement.kept < 0.5
    said = capsys.readouterr().err
    assert said.startswith("Experts: ") and "streaming them from the disk" in said
    assert len(said.splitlines()) == 1


def test_resident_is_refused_with_numbers_and_what_would_do(
    folder: Path, weights: ExpertWeights, on_machine
) -> None:
    on_machine(rest(folder, weights, 500) + weights.all // 2)
    with pytest.raises(InputError) as refusal:
        place_model(open_folder(folder), Task(500), Experts("resident"))
    for words in (f"{folder} takes ", "of memory for 500 tokens", "--experts stream would do"):
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_fits_neither_way_is_refused(
    folder: Path, weights: ExpertWeights, on_machine, capsys: pytest.CaptureFixture
) -> None:
    on_machine(rest(folder, weights, 500))
    for experts in (Experts(), STREAM):
        with pytest.raises(InputError, match="with its experts on the disk") as refusal:
            place_model(open_folder(folder), Task(500), experts)
        assert "--experts stream" not in str(refusal.value)
    forced = place_model(open_folder(folder), Task(500), force=True)
    assert forced.streaming.memory == weights.least_memory
    assert "Experts: " in capsys.readouterr().err


def test_a_memory_for_experts_that_there_is_not(
    folder: Path, weights: ExpertWeights, on_machine
) -> None:
    memory = rest(folder, weights, 500) + 2 * weights.all
    on_machine(memory)
    with pytest.raises(InputError, match="--expert-memory takes at most ") as refusal:
        place_model(open_folder(folder), Task(500), Experts(memory=memory))
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="one expert alone takes"):
        place_model(open_folder(folder), Task(500), Experts(memory=weights.least_memory - 1))
    assert (
        place_model(open_folder(folder), Task(500), Experts(memory=weights.all)).streaming
        is not None
    )


def test_a_conversation_has_room_beside_streamed_experts(
    folder: Path, weights: ExpertWeights, on_machine
) -> None:
    from mlx_llama4.chat import ChatOptions

    on_machine(rest(folder, weights, 2048) + weights.all // 2)
    placement = place_model(open_folder(folder), Task(None, grows=True))
    alone = place_model(open_folder(folder), Task(None))
    assert placement.streaming.memory < alone.streaming.memory
    options = ChatOptions()
    limit_to_memory(options, open_folder(folder), placement)
    assert options.max_context > 2048 and options.prefix_bytes > 0


def test_options_that_contradict_each_other() -> None:
    assert expert_options(Where.auto, "20GB", False) == Experts("auto", 20 * 10**9, False)
    assert expert_options(Where.resident, None, True) == Experts("resident")
    with pytest.raises(InputError, match="--expert-memory is for streamed experts"):
        expert_options(Where.resident, "20GB", True)
    with pytest.raises(InputError, match="--no-page-cache is for streamed experts"):
        expert_options(Where.resident, None, False)
    with pytest.raises(InputError, match="'much' is not a size"):
        expert_options(Where.auto, "much", True)


def test_ask_streams_and_reports(demo_folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    options = ("--expert-memory", "300KB", "--no-page-cache", "--trace", trace, "--json")
    result = run_here("ask", "What is 7 plus 5?", "-m", demo_folder, *options)
    assert result.returncode == 0, result
    assert result.stderr.startswith("Experts: streaming 1.77 MB from the disk with 300 KB kept")
    answer = json.loads(result.stdout)
    assert answer["text"] == "7 plus 5 is 12."
    for name in ("prefill_experts", "decode_experts"):
        found = answer[name]
        assert found["hit_rate"] == found["hits"] / (found["hits"] + found["misses"])
        assert found["bytes_read"] >= found["misses"] * 52_224 > 0
    steps = read_trace(trace).steps
    assert [len(chosen) for chosen in steps[0].experts.values()] == [26, 26, 26, 1]
    assert len(steps) == answer["generated_tokens"]


def test_leaving_a_chat_that_still_reads_experts_in(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Reading on while Python ends would end in a traceback."""
    preadv, typed = os.preadv, io.StringIO("/quit\n")

    def slow(*arguments: object) -> int:
        time.sleep(0.05)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    chat(str(demo_folder), experts=Where.stream)
    assert "leave" in capsys.readouterr().err
    assert "expert warming" not in {thread.name for thread in threading.enumerate()}


def test_one_line_where_it_cannot_be_done(demo_folder: Path) -> None:
    message = refused("ask", "Hello", "-m", demo_folder, "--expert-memory", "3KB")
    assert "--expert-memory 3 KB: one expert alone takes 55.3 KB" in message


def test_the_demo_streams_with_half_of_its_experts_in_memory(demo_folder: Path) -> None:
    from mlx_llama4.cli.demo import _half_in_memory

    half = place_model(
        open_folder(demo_folder), Task(None), _half_in_memory(open_folder(demo_folder), STREAM)
    )
    assert 0.4 < half.kept < 0.5
    for given in (Experts(), Experts("stream", 300_000)):
        assert _half_in_memory(open_folder(demo_folder), given) == given


def test_inspect_lists_experts(folder: Path, weights: ExpertWeights) -> None:
    found = inspect_folder(folder)
    assert [one.layer for one in found.experts] == list(range(8))
    assert {(one.experts, one.expert_bytes) for one in found.experts} == {(16, weights.stored[0])}
    assert sum(one.nbytes for one in found.experts) == weights.stored_all
    assert {one.files for one in found.experts} == {("model.safetensors",)}


def test_the_table_of_macs_says_when_fewer_bits_beat_streaming() -> None:
    rows = {(row.model, row.bits, row.memory): row for row in expectations()}
    assert len(rows) == 2 * 3 * len(MEMORIES)
    assert rows["Scout", "2.5", 48].placement.streaming is None
    assert rows["Scout", "4.5", 48].placement.streaming is not None
    assert all(rows["Maverick", "2.5", memory].placement.streaming for memory in MEMORIES)
    table = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    for row in rows.values():
        assert f"| {' | '.join(row.cells())} |" in table
