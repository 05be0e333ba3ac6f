"""Where experts are kept: what is decided from sizes alone, beside what streaming then takes."""

import math
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.config import load_config, parse_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import InputError
from mlx_llama4.memory import activation_bytes
from mlx_llama4.offload.budget import plan_slots
from mlx_llama4.offload.expert_store import expert_tensors, layer_experts
from mlx_llama4.opening import ModelFolder
from mlx_llama4.planning.expert_weights import STORED_ITEM_BYTES, experts_in_bits, stored_experts
from mlx_llama4.planning.machine import GIB, Machine, mac
from mlx_llama4.planning.placement import (
    DISKS,
    SPANS,
    Placement,
    place,
    plan_streaming,
    room,
    tokens_per_second,
)
from mlx_llama4.planning.planner import Usage, need_of, packed_weights
from mlx_llama4.planning.releases import RELEASES, release_config
from mlx_llama4.quantization import Quantization
from tests import tiny

SCOUT, MAVERICK, GUARD = (release_config(name) for name in RELEASES)
EXPERT = 3 * 5120 * 8192 * 4.5 / 8  # of either, in 4 bits


def placed(config, memory_gib: int, bits: int = 4, **more) -> Placement:
    experts = experts_in_bits(config, bits, 2)
    return place(config, experts, Usage(4096), mac(memory_gib * GIB), **more)


def test_experts_of_the_releases() -> None:
    for config, layers, count in ((SCOUT, 48, 16), (MAVERICK, 24, 128)):
        experts = experts_in_bits(config, 4, 2)
        assert {layer.expert_bytes for layer in experts.layers} == {EXPERT}
        assert (len(experts.layers), experts.count) == (layers, layers * count)
        assert experts.all == experts.stored_all == layers * count * EXPERT
        assert experts.others + experts.all == sum(packed_weights(config, 4, 2).values())
        assert experts.read_bytes((0,) * layers) == layers * EXPERT
        assert experts.read_bytes((count // 4,) * layers) == 0.75 * layers * EXPERT
        assert experts.read_bytes((count,) * layers) == 0
        assert experts.least_memory == EXPERT


def test_scales_that_memory_widens_are_read_as_they_are_stored() -> None:
    experts = experts_in_bits(SCOUT, 4, 4)
    assert experts.layers[0].expert_bytes == 3 * 5120 * 8192 * 5 / 8
    assert experts.stored[0] == EXPERT and STORED_ITEM_BYTES == 2


@pytest.mark.parametrize("packing", [None, Quantization(32, 4), Quantization(32, 4, "mxfp4")])
def test_folders_weigh_what_is_streamed(tmp_path: Path, packing: Quantization | None) -> None:
    raw = tiny.config("maverick")
    source = tiny.write_checkpoint(tmp_path / "source", raw, tiny.tensors(raw), "BF16")
    convert(source, tmp_path / "mlx", Recipe("bfloat16", packing))
    config = load_config(tmp_path / "mlx")
    for dtype, width in (("F32", 4), ("BF16", 2)):
        found = stored_experts(ModelFolder(tmp_path / "mlx").source.matching, config, width)
        streamed = expert_tensors(open_checkpoint(tmp_path / "mlx"), config, dtype)
        theirs = [layer_experts(tensors) for tensors in streamed.values()]
        assert [(one.count, one.expert_bytes) for one in found.layers] == [
            (one.count, one.expert_bytes) for one in theirs
        ]
        for memory in (found.least_memory, found.all // 3, found.most_memory):
            assert plan_slots(found.layers, memory) == plan_slots(theirs, memory)
        assert found.stored == tuple(
            sum(tensor.stored.nbytes for tensor in tensors) // 8 for tensors in streamed.values()
        )


@given(
    st.sampled_from(["scout", "maverick"]),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([2, 4]),
)
def test_the_most_memory_holds_all_and_hardly_less_does(name: str, bits: int, width: int) -> None:
    experts = experts_in_bits(parse_config(tiny.config(name, hidden_size=128)), bits, width)
    full = tuple(layer.count for layer in experts.layers)
    assert plan_slots(experts.layers, experts.most_memory).slots == full
    assert plan_slots(experts.layers, experts.all + experts.least_memory - 1).slots != full


def test_auto_keeps_in_memory_what_fits_as_the_machine_is_set() -> None:
    resident = placed(SCOUT, 128)
    assert (resident.streaming, resident.fit, resident.kept) == (None, "yes", 1)
    assert resident.usage.span == 2048 and resident.bytes_per_token == 0
    raised = placed(SCOUT, 64)  # would fit if the limit were raised
    assert (raised.fit, raised.resident_fit) == ("yes", "raised")
    assert 0.6 < raised.kept < 0.8
    line = raised.line(mac(64 * GIB))
    assert line.startswith("Experts: 54.4 GB do not fit in the ") and "\n" not in line
    assert line.endswith("sudo sysctl iogpu.wired_limit_mb=61440")
    streamed = placed(SCOUT, 32)
    assert (streamed.fit, streamed.resident_fit) == ("yes", "no")
    assert streamed.need.total <= room(mac(32 * GIB))
    assert streamed.line(mac(32 * GIB)) == (
        "Experts: 54.4 GB do not fit in the 22.9 GB left; streaming them from the disk with "
        "13.6 GB kept in memory (24%)"
    )
    assert placed(MAVERICK, 8).fit == "no"
    assert placed(SCOUT, 64, where="resident").fit == "raised"


def test_where_only_a_raised_limit_helps_either_way_memory_is_faster() -> None:
    experts = experts_in_bits(SCOUT, 4, 2)
    total = need_of(SCOUT, experts.others + experts.all, Usage(8192)).total
    nearly = Machine(2 * total, 2 * total, experts.others)  # whose GPU holds but the rest
    found = place(SCOUT, experts, Usage(8192), nearly)
    assert (found.streaming, found.fit) == (None, "raised")


def test_streaming_is_done_if_it_is_asked_for() -> None:
    streamed = placed(SCOUT, 128, where="stream")
    assert streamed.kept == 1 and streamed.streaming.memory == streamed.experts.most_memory
    assert streamed.line(mac(128 * GIB)) == (
        "Experts: streaming 54.4 GB from the disk with 54.4 GB kept in memory (100%)"
    )
    budget = placed(SCOUT, 128, memory=20 * 10**9, page_cache=False)
    assert (budget.streaming.memory, budget.streaming.page_cache) == (20 * 10**9, False)
    assert budget.fit == "yes"
    assert placed(SCOUT, 32, memory=30 * 10**9).fit == "no"
    with pytest.raises(InputError, match=r"--expert-memory 70 MB: one expert alone takes 70\.8 MB"):
        placed(SCOUT, 32, memory=70 * 10**6)


def test_without_routed_experts_there_is_nothing_to_stream() -> None:
    config = parse_config(tiny.config("scout", moe_layers=[]))
    experts = experts_in_bits(config, 4, 2)
    assert place(config, experts, Usage(512), mac(8 * GIB), where="stream").streaming is None
    assert plan_streaming(config, experts, Usage(512), mac(8 * GIB)) is None


@pytest.mark.parametrize(
    ("prompt", "span"), [(100, 2048), (2048, 2048), (2049, 4096), (5000, 8192), (10**6, 32_768)]
)
def test_steps_are_as_long_as_the_prompt(prompt: int, span: int) -> None:
    found = placed(MAVERICK, 64, prompt=prompt)
    assert found.usage.span == span
    assert found.usage.context == max(4096, min(prompt, span))


def test_steps_leave_most_of_the_memory_to_experts() -> None:
    assert placed(SCOUT, 16, prompt=10**6).usage.span < SPANS[0]
    assert placed(SCOUT, 32).usage.span == 2048  # given
    for gib in (16, 24, 32, 64):
        long, short = placed(SCOUT, gib, prompt=10**6), placed(SCOUT, gib)
        left = short.streaming.memory
        assert long.streaming.memory >= 0.7 * left


def test_a_conversation_gets_its_part_of_what_is_left() -> None:
    alone, later = placed(SCOUT, 32), placed(SCOUT, 32, later=10**9)
    assert alone.streaming.memory - later.streaming.memory == 10**9
    much = placed(SCOUT, 32, later=10**12)
    assert 0.7 < much.streaming.memory / alone.streaming.memory < 0.8


@given(
    st.integers(8 * GIB, 300 * GIB),
    st.sampled_from([SCOUT, MAVERICK]),
    st.sampled_from(["auto", "stream"]),
    st.booleans(),
)
def test_what_is_decided_fits(memory: int, config, where: str, gpu: bool) -> None:
    machine = mac(memory) if gpu else Machine(memory, memory, None)
    width = 2 if gpu else 4
    experts = experts_in_bits(config, 4, width)
    usage = Usage(4096, width, fused=gpu)
    found = place(config, experts, usage, machine, where=where, prompt=4096)
    limit = {"yes": machine.wired or machine.usable, "raised": machine.usable, "no": math.inf}
    assert found.need.total <= limit[found.fit]
    if found.fit == "no":
        assert found.streaming.memory == experts.least_memory
    elif found.streaming is not None and found.fit == "yes":
        assert found.need.total <= room(machine) or found.streaming.memory <= experts.most_memory


def test_what_a_disk_gives() -> None:
    assert tokens_per_second(3e9) == pytest.approx(
        dict(zip(DISKS, (1, 5.5 / 3, 7.4 / 3), strict=True))
    )
    assert tokens_per_second(0) == {}


@pytest.mark.slow
def test_long_steps_stay_within_their_formula(tmp_path: Path) -> None:
    """Activations of streamed experts, of more rows than an MLP takes at once."""
    from mlx_llama4.offload.budget import ExpertStreaming
    from mlx_llama4.opening import load_model

    raw = tiny.config(
        "scout",
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        attention_chunk_size=32,
        num_hidden_layers=4,
        no_rope_layers=[1] * 4,
    )
    source = tiny.write_checkpoint(tmp_path / "source", raw, tiny.tensors(raw))
    convert(source, tmp_path / "mlx", Recipe("float32", None))
    model = load_model(tmp_path / "mlx", mx.float32, ExpertStreaming(4_000_000))
    mx.eval(model(mx.array(tiny.text_ids(64, 0))))  # slots are made when they are first needed
    span, text = 8192, model.config.text
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(model(mx.array(tiny.text_ids(span, 0)), last_only=True))
    used = mx.get_peak_memory() - before
    most = activation_bytes(text, span, 4, streamed=True)
    print(f"used {used:,}, predicted at most {most:,}")
    assert most / 3 < used <= most < activation_bytes(text, span, 4)
