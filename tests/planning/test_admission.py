"""A library user meets the same refusals, and the same streaming, as the command line's."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4 import Chat, ChatOptions, InputError, load
from mlx_llama4.chat.loading import limit_to_memory
from mlx_llama4.convert import Recipe, convert
from mlx_llama4.offload.heat import heat_file
from mlx_llama4.opening import ModelFolder, load_model, open_folder
from mlx_llama4.planning.admission import Experts, Task, admit, conversation_room
from mlx_llama4.planning.expert_weights import ExpertWeights, stored_experts
from mlx_llama4.planning.machine import GIB, Machine, mac
from mlx_llama4.planning.planner import Usage, need_of
from mlx_llama4.prompt.picture_file import PICTURE_BYTES
from tests import tiny
from tests.tolerance import assert_same_logits

LARGE = Machine(64 * GIB, 64 * GIB, None)
IDS = mx.array([[1, 5, 9, 700]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> ModelFolder:
    """Experts are most of it: 8 layers of 16, and the demo's tokenizer."""
    root = tmp_path_factory.mktemp("experts")
    raw = tiny.config(
        "scout",
        vocab_size=1019,
        num_local_experts=16,
        intermediate_size=512,
        max_position_embeddings=131_072,
    )
    raw["image_token_index"] = 1018
    source = tiny.write_checkpoint(root / "source", raw, tiny.tensors(raw))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((demo_folder / name).read_bytes())
    convert(source, root / "mlx", Recipe("float32", None))
    return open_folder(root / "mlx")


@pytest.fixture(scope="module")
def weights(folder: ModelFolder) -> ExpertWeights:
    return stored_experts(folder.source.matching, folder.config, 4)


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine | int], None]:
    """This machine, or one of so many bytes."""

    def set_machine(machine: Machine | int) -> None:
        if isinstance(machine, int):
            machine = Machine(machine, machine, None)
        monkeypatch.setattr("mlx_llama4.planning.machine.this_machine", lambda: machine)

    return set_machine


def step_bytes(folder: ModelFolder, weights: int) -> int:
    """What one step of a prefill takes with so many bytes of weights."""
    return need_of(folder.config, weights, Usage(2048, 4, fused=False)).total


def test_what_fits_is_loaded_whole(folder: ModelFolder, on_machine, caplog) -> None:
    on_machine(LARGE)
    model, processor = load(folder)
    assert model.expert_cache is None and processor is folder.processor
    assert caplog.records == []


def test_what_does_not_fit_is_streamed_and_logged(
    folder: ModelFolder, weights: ExpertWeights, on_machine, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_model(folder)(IDS)
    on_machine(step_bytes(folder, weights.others) + weights.all // 2)
    for model in (load(str(folder.path))[0], Chat.open(folder).model):
        assert model.expert_cache is not None
        assert_same_logits(model(IDS), np.array(whole), "text")
    assert [record.name for record in caplog.records] == ["mlx_llama4"] * 2
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert record.message.startswith("Experts: ")
        assert "streaming them from the disk" in record.message


def test_refused_in_one_line_with_what_would_do(
    folder: ModelFolder, weights: ExpertWeights, on_machine
) -> None:
    on_machine(step_bytes(folder, weights.others) + weights.all // 2)
    for take in (load, Chat.open):
        with pytest.raises(InputError, match="--experts stream would do") as refusal:
            take(folder, experts="resident")
        assert str(refusal.value).startswith(f"{folder.path} takes ")
        assert "\n" not in str(refusal.value)
    on_machine(step_bytes(folder, weights.others))
    for take in (load, Chat.open):
        with pytest.raises(InputError, match="with its experts on the disk"):
            take(folder)
        with pytest.raises(InputError, match="one expert alone takes"):
            take(folder, expert_memory=weights.least_memory - 1, force=True)


def test_force_tries_what_does_not_fit(
    folder: ModelFolder, weights: ExpertWeights, on_machine
) -> None:
    on_machine(step_bytes(folder, weights.others) // 2)
    assert load(folder, experts="resident", force=True)[0].expert_cache is None
    assert load(folder, force=True)[0].expert_cache is not None
    chat = Chat.open(folder, force=True)
    assert chat.context == folder.config.text.max_position_embeddings


def test_streaming_that_is_asked_for(folder: ModelFolder, weights: ExpertWeights) -> None:
    memory = weights.all // 4
    for options in ({"experts": "stream"}, {"expert_memory": memory, "page_cache": False}):
        model, _ = load(folder, **options)
        assert model.expert_cache is not None
    assert 0 < sum(layer.capacity for layer in model.expert_cache.layers.values()) < 8 * 16
    with pytest.raises(InputError, match="has no routed experts"):
        admit(_without_experts(folder), Task(), Experts("stream"))


def _without_experts(folder: ModelFolder):
    from dataclasses import replace

    matching = folder.source.matching
    specs = {name: spec for name, spec in matching.specs.items() if spec.part != "routed experts"}
    return replace(folder.source, matching=replace(matching, specs=specs))


def test_a_dtype_counts(folder: ModelFolder, on_machine) -> None:
    """Half the bytes fit where the whole do not."""
    full = admit(folder.source, Task(), Experts("resident"), force=True).placement.need.total
    on_machine(full - 1)
    with pytest.raises(InputError, match="of memory for 2,048 tokens"):
        load(folder, experts="resident")
    assert load(folder, mx.float16, experts="resident")[0].expert_cache is None


def test_a_conversation_grows_as_far_as_memory_goes(
    folder: ModelFolder, weights: ExpertWeights, on_machine
) -> None:
    on_machine(LARGE)
    chat = Chat.open(folder)
    assert chat.context == folder.config.text.max_position_embeddings
    on_machine(step_bytes(folder, weights.others + weights.all) + 10**6)
    options = ChatOptions()
    chat = Chat.open(folder, options)
    assert 0 < chat.context < folder.config.text.max_position_embeddings
    assert 0 < chat.options.prefix_bytes <= 10**6 // 4
    # A caller's options stay theirs, and a smaller limit of their own holds.
    assert (options.max_context, options.prefill_step) == (None, None)
    assert Chat.open(folder, ChatOptions(max_context=100)).context == 100


def test_limits_are_the_command_line_s(
    folder: ModelFolder, weights: ExpertWeights, on_machine
) -> None:
    on_machine(step_bytes(folder, weights.others + weights.all) + 10**6)
    options, task = ChatOptions(), Task(grows=True)
    limit_to_memory(options, folder, admit(folder.source, task).placement)
    chat = Chat.open(folder)
    assert chat.options.max_context == options.max_context
    assert chat.options.prefix_bytes == options.prefix_bytes
    held = conversation_room(folder.config, admit(folder.source, task).placement, held=10_000)
    assert held.prefix_bytes <= options.prefix_bytes


def test_room_for_decoding_a_picture_is_set_aside(
    folder: ModelFolder, weights: ExpertWeights, on_machine
) -> None:
    """Within what the conversation leaves, and never more than any picture may take."""
    task = Task(grows=True)
    least = step_bytes(folder, weights.others + weights.all)
    for spare, expected in (
        (10**6, 10**6 // 3),
        (600 * 10**6, 192 * 2**20),
        (10**9, 10**9 // 4),
        (10**10, PICTURE_BYTES),
    ):
        on_machine(least + spare)
        placement = admit(folder.source, task).placement
        room = conversation_room(folder.config, placement, picture_bytes=PICTURE_BYTES)
        assert room.picture_bytes == pytest.approx(expected, rel=0.02)
        assert room.picture_bytes + room.prefix_bytes <= spare
        limit_to_memory(ChatOptions(), folder, placement)
        assert folder.processor.picture_bytes == room.picture_bytes
    folder.processor.picture_bytes = PICTURE_BYTES


def test_what_the_gpu_may_hold_by_default_is_said(folder: ModelFolder, on_machine) -> None:
    on_machine(mac(16 * GIB, 2 * 10**6))
    notes = admit(folder.source, Task(), Experts("resident")).notes
    assert len(notes) == 1 and "sudo sysctl iogpu.wired_limit_mb=" in notes[0]


def test_experts_wanted_are_remembered(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that ends, for the next one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import sys\n"
        "from mlx_llama4 import Chat, ChatOptions, GenerationSettings\n"
        "options = ChatOptions(GenerationSettings(max_tokens=3))\n"
        "chat = Chat.open(sys.argv[1], options, experts='stream')\n"
        "print(sum(heat.values.sum() for heat in chat.model.expert_cache.heats.values()) > 0)\n"
        "list(chat.send('Hello'))"
    )
    for warm in ("False", "True"):
        command = [sys.executable, "-c", code, str(folder.path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == warm
        assert heat_file(folder.identity.model).is_file()


def test_a_load_on_the_cpu_needs_no_compiler(folder: ModelFolder) -> None:
    """MLX would look for a C++ compiler: what is compiled is traced once, what is not each time."""
    code = (
        "import sys\n"
        "import mlx.core as mx\n"
        "from mlx_llama4.opening import load_model\n"
        "mx.set_default_device(mx.cpu)\n"
        "load_model(sys.argv[1])\n"
        "calls = []\n"
        "def double(x):\n"
        "    calls.append(x)\n"
        "    return 2 * x\n"
        "compiled = mx.compile(double)\n"
        "mx.eval(compiled(mx.ones(2)), compiled(mx.ones(2)))\n"
        "print(len(calls))"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "2"
