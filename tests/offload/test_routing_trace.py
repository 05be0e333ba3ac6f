"""Routing traces: what is recorded, and what a reader makes of damaged ones."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.config import parse_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import InputError, OutputError, RunError
from mlx_llama4.model.llama4 import ATTENTION_STEP, Llama4
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.offload.recorder import RoutingRecorder
from mlx_llama4.offload.trace import RoutingTrace, TraceHeader, read_trace
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import streamed, tiny

PROMPT = 40  # tokens: over a chunk border
HEADER: dict[str, Any] = TraceHeader("tiny", 4, 1, (0, 2)).as_json()


def choices_of(model: Llama4, ids: np.ndarray) -> dict[int, list[int]]:
    """MoE layer → the experts of all tokens, layer by layer as one pass without cache."""
    text = model.language_model.model
    x, found = text.embed(mx.array(ids)), {}
    for number, (layer, cache) in enumerate(zip(text.layers, model.make_cache(), strict=True)):
        x = layer.attend(x, cache, ATTENTION_STEP)
        normed = layer.post_attention_layernorm(x)
        if model.config.text.layers[number].feed_forward == "moe":
            found[number] = layer.feed_forward.route(normed)[1].tolist()
        x = x + layer.feed_forward(normed)
    return found


def run(model: Llama4, ids: np.ndarray) -> list[mx.array]:
    """A prompt, then a token at a time."""
    cache = model.make_cache()
    pieces = [ids[:, :PROMPT], *np.split(ids[:, PROMPT:], ids.shape[1] - PROMPT, axis=1)]
    return [model(mx.array(piece), cache, last_only=True) for piece in pieces]


def record(model: Llama4, ids: np.ndarray, path: Path) -> RoutingTrace:
    with RoutingRecorder(path) as recorder:
        recorder.attach(model, "tiny")
        mx.eval(run(model, ids))
    return read_trace(path)


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_the_choices_of_every_layer_and_token(
    golden_model: Callable[[str], Llama4], tmp_path: Path, name: str
) -> None:
    model, ids = golden_model(name), tiny.text_ids(PROMPT + 5, seed=3)
    expected = choices_of(model, ids)
    trace = record(model, ids, tmp_path / "trace")
    assert trace.header.layers == tuple(expected)
    assert trace.header.num_experts == model.config.text.num_local_experts
    assert [trace.is_decode(step) for step in trace.steps] == [False] + [True] * 5
    last = tiny.LAYERS - 1
    for layer, experts in expected.items():
        start = PROMPT - 1 if layer == last else 0  # last_only
        assert [one for step in trace.steps for one in step.experts[layer]] == experts[start:]
    assert len({tuple(experts) for experts in expected.values()}) == len(expected)


@pytest.mark.slow
def test_recording_lets_outputs_be_computed_before_their_experts_go(tmp_path: Path) -> None:
    """Where nothing else waits for them: of one layer, and calls that nobody has looked at."""
    raw = tiny.config("scout", num_hidden_layers=1, no_rope_layers=[1], intermediate_size=2048)
    source = tiny.write_checkpoint(tmp_path / "source", raw, tiny.tensors(raw), "BF16")
    convert(source, tmp_path / "mlx", Recipe("bfloat16", Quantization(32, 4)))
    resident = load_model(tmp_path / "mlx", mx.float32)
    model = streamed.load_streamed(tmp_path / "mlx", streamed.SOME)
    with RoutingRecorder(tmp_path / "trace") as recorder:
        recorder.attach(model, "tiny")
        for token in range(50):
            rows = mx.full((60, 1), token)
            found, _ = model(rows), model(mx.array([[token + 50]]))
            assert mx.array_equal(found, resident(rows))


def test_recording_changes_nothing_and_ends(
    golden_model: Callable[[str], Llama4], tmp_path: Path
) -> None:
    model, ids = golden_model("scout"), tiny.text_ids(PROMPT + 3, seed=4)
    layers = model.language_model.model.layers
    before, experts = run(model, ids), [layer.feed_forward.experts for layer in layers]
    with RoutingRecorder(tmp_path / "trace") as recorder:
        recorder.attach(model, "tiny")
        during = run(model, ids)
        size = recorder.path.stat().st_size
    after = run(model, ids)
    assert all(map(mx.array_equal, before, during))
    assert all(map(mx.array_equal, before, after))
    assert [layer.feed_forward.experts for layer in layers] == experts
    assert (tmp_path / "trace").stat().st_size == size > 0


def test_streamed_experts_are_recorded_alike(
    golden_folder: Callable[[str], Path], golden_model: Callable[[str], Llama4], tmp_path: Path
) -> None:
    ids = tiny.text_ids(PROMPT + 3, seed=4)
    resident = record(golden_model("scout"), ids, tmp_path / "resident")
    model = load_model(golden_folder("scout"), mx.float32, ExpertStreaming(2 * 10**6))
    layers = model.language_model.model.layers
    experts = [layer.feed_forward.experts for layer in layers]
    assert record(model, ids, tmp_path / "streamed") == resident
    assert [layer.feed_forward.experts for layer in layers] == experts
    assert model.expert_statistics is not None
    assert model.expert_statistics.misses > 0


def test_more_than_one_expert_a_token(tmp_path: Path) -> None:
    mx.random.seed(0)
    model = Llama4(parse_config(tiny.config("scout", num_experts_per_tok=2)))
    for layer in model.language_model.model.layers:
        weight = layer.feed_forward.router.weight
        layer.feed_forward.router.weight = mx.random.normal(weight.shape)
    ids = tiny.text_ids(PROMPT + 2, seed=5)
    trace = record(model, ids, tmp_path / "trace")
    assert [step.choices for step in trace.steps] == [2 * PROMPT, 2, 2]
    assert [trace.is_decode(step) for step in trace.steps] == [False, True, True]
    first, second = trace.steps[1].experts[0]
    assert first != second


def test_a_pass_that_is_interrupted_ends_its_step(
    golden_model: Callable[[str], Llama4], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = golden_model("scout"), mx.array(tiny.text_ids(1, seed=6))
    recorder = RoutingRecorder(tmp_path / "trace")
    with recorder:
        recorder.attach(model, "tiny")
        stopped = model.language_model.model.layers[2]
        with monkeypatch.context() as patch:
            patch.setattr(type(stopped), "attend", _interrupt_at(stopped, type(stopped).attend))
            with pytest.raises(KeyboardInterrupt):
                model(ids)
        model(ids)
    steps = read_trace(recorder.path).steps
    assert [tuple(step.experts) for step in steps] == [(0, 1), tuple(range(tiny.LAYERS))]


def _interrupt_at(stopped: Any, attend: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attend_or_stop(layer: Any, *arguments: Any) -> mx.array:
        if layer is stopped:
            raise KeyboardInterrupt
        return attend(layer, *arguments)

    return attend_or_stop


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("keep me")
    for path, reason in (
        (tmp_path / "there", "is there already"),
        (tmp_path, "is a folder"),
        (tmp_path / "absent" / "trace", "is not a folder; create it first"),
    ):
        with pytest.raises(OutputError, match=reason):
            RoutingRecorder(path)
    assert (tmp_path / "there").read_text() == "keep me"


def test_nothing_is_left_if_no_model_came(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model"), RoutingRecorder(tmp_path / "trace"):
        raise InputError("no such model")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(golden_model: Callable[[str], Llama4], tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, line: bytes) -> int:
            raise OSError(28, "No space left on device")

    model = golden_model("scout")
    with RoutingRecorder(tmp_path / "trace") as recorder:
        recorder.attach(model, "tiny")
        recorder._file.close()
        recorder._file = Full(recorder.path, "ab")
        with pytest.raises(RunError, match=r"trace: No space left on device"):
            model(mx.array(tiny.text_ids(1, seed=6)))


def lines(*objects: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in objects)


def choice(step: Any = 0, layer: Any = 0, experts: Any = (1,)) -> dict[str, Any]:
    return {"step": step, "layer": layer, "experts": experts}


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(lines(HEADER, choice(0, 0, [1, 3]), choice(0, 2, [2]), choice(1, 0, [0])))
    trace = read_trace(path)
    assert trace.header == TraceHeader("tiny", 4, 1, (0, 2))
    assert [step.experts for step in trace.steps] == [{0: [1, 3], 2: [2]}, {0: [0]}]
    assert [trace.is_decode(step) for step in trace.steps] == [False, True]
    path.write_bytes(lines(HEADER))
    assert read_trace(path).steps == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b'{"format": "mlx-lla', "line 1: the line is cut"),
        (b"\xff\xfe\n", "line 1 is not valid JSON"),
        (b"[]\n", "line 1 holds a list"),
        (lines({"format": "other"}), "is not a routing trace"),
        (lines(HEADER | {"version": 2}), "version 2; this program reads version 1"),
        (lines(HEADER | {"layers": [2, 0]}), "line 1: the header of the trace is damaged"),
        (lines(HEADER | {"layers": []}), "line 1: the header"),
        (lines(HEADER | {"num_experts": 0}), "line 1: the header"),
        (lines(HEADER | {"experts_per_token": True}), "line 1: the header"),
        (lines(HEADER | {"model": None}), "line 1: the header"),
        (lines(HEADER, choice())[:-9], "line 2: the line is cut"),
        (lines(HEADER, choice(layer=1)), "line 2: layer 1 is not one of the header's layers"),
        (lines(HEADER, choice(experts=[])), "line 2: 0 experts, not 1 for each token"),
        (lines(HEADER, choice(experts=[0, 4])), "line 2: expert 4 is not one of 0 to 3"),
        (lines(HEADER, choice(experts=[-1])), "line 2: expert -1 is not one"),
        (lines(HEADER, choice(experts=3)), "line 2: step, layer or experts"),
        (lines(HEADER, choice(step=1)), "line 2: step 1 of layer 0 is out of order"),
        (lines(HEADER, choice(), choice()), "line 3: step 0 of layer 0 is out of order"),
        (lines(HEADER, choice(), choice(2)), "line 3: step 2 of layer 0 is out of order"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_trace(tmp_path)
