"""Dense models of the family, in every layout they come in, and what commands make of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.opening import load_model
from tests import meta_layout, tiny
from tests.commands import refused, run_here
from tests.convert.folders import PLAIN, arrays, expected_arrays
from tests.golden import cases
from tests.golden.logits import goldens
from tests.tolerance import assert_same_logits

GUARD, TIED = cases.MODELS["guard"], cases.MODELS["tied"]


def assert_same(folder: Path, expected: dict[str, mx.array]) -> None:
    found = arrays(folder)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert mx.array_equal(found[name], array), name


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_hugging_face_s_layout(tmp_path: Path, dtype: str) -> None:
    weights = GUARD.weights()
    source = tiny.write_checkpoint(tmp_path / "source", GUARD.config, weights, dtype, shards=3)
    convert(source, tmp_path / "mlx", PLAIN)
    assert_same(tmp_path / "mlx", expected_arrays(weights))
    convert(tmp_path / "mlx", tmp_path / "again", PLAIN)
    assert_same(tmp_path / "again", expected_arrays(weights))


def test_meta_s_layout(tmp_path: Path) -> None:
    weights = GUARD.weights()
    source = meta_layout.write_checkpoint(tmp_path / "source", GUARD.config, weights, 2)
    params = json.loads((source / "params.json").read_text())
    for count, experts in enumerate((None, {"num_experts": 0}, {"num_experts": -1})):
        (source / "params.json").write_text(json.dumps(params | {"moe_args": experts}))
        convert(source, tmp_path / f"{count}", PLAIN)
        assert_same(tmp_path / f"{count}", expected_arrays(weights))


@pytest.mark.parametrize("head", ["absent", "the embedding", "of its own"])
def test_tied_heads(tmp_path: Path, head: str) -> None:
    """A head that is stored is taken, whatever it is, as transformers 5 takes it."""
    weights = TIED.weights()
    embedding = weights["model.embed_tokens.weight"]
    stored = {"absent": None, "the embedding": embedding, "of its own": embedding[::-1]}[head]
    given = weights if stored is None else weights | {"lm_head.weight": stored}
    source = tiny.write_checkpoint(tmp_path / "source", TIED.config, given, "BF16")
    convert(source, tmp_path / "mlx", PLAIN)
    found = arrays(tmp_path / "mlx")["language_model.lm_head.weight"]
    assert np.array_equal(found, embedding if stored is None else stored)
    written = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert written["text_config"]["tie_word_embeddings"] is False
    if head != "of its own":
        logits = load_model(tmp_path / "mlx", mx.float32)(mx.array(cases.text_ids(60)))
        assert_same_logits(logits, goldens("tied")["text 60"], "text")


def test_a_tied_model_without_an_embedding(tmp_path: Path) -> None:
    weights = TIED.weights()
    del weights["model.embed_tokens.weight"]
    source = tiny.write_checkpoint(tmp_path / "source", TIED.config, weights)
    assert "embed_tokens" in refused("convert", source, tmp_path / "mlx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Guard-like model with the demo's tokenizer, in 4 bits, and its source beside it."""
    root = tmp_path_factory.mktemp("guard")
    demo = json.loads((CHECKPOINT / "config.json").read_text())
    case = replace(GUARD, overrides=GUARD.overrides | {"vocab_size": 1019})
    image_keys = {key: value for key, value in demo.items() if key.startswith(("image_", "boi_"))}
    source = tiny.write_checkpoint(root / "source", case.config | image_keys, case.weights())
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(CHECKPOINT / name, source)
    result = run_here("convert", source, root / "mlx", "--group-size", 32)
    assert result.returncode == 0, result
    return root / "mlx"


def test_commands(folder: Path, tmp_path: Path) -> None:
    said = run_here("inspect", folder).stdout
    assert "8 layers, 8 with RoPE and no chunks, dense, 2 vision layers" in said
    assert "experts" not in said and "complete" in said
    asked = ("-m", folder, "--max-tokens", 3)
    for picture in ((), ("-i", PICTURES / "star.png")):
        result = run_here("ask", "Hello", *picture, *asked)
        assert result.returncode == 0 and result.stdout, result
    result = run_here("chat", *asked, text="Hello\n")
    assert result.returncode == 0 and result.stdout, result
    text = tmp_path / "text.txt"
    text.write_text("The code of walnut is 407. " * 20)
    result = run_here("compare", folder.parent / "source", folder, "--text", text)
    assert "same top token" in result.stdout, result
    plan = json.loads(run_here("plan", folder, "--json").stdout)
    assert plan["verdict"]["how"] == "memory"


def test_there_is_nothing_to_stream(folder: Path) -> None:
    message = refused("ask", "Hello", "-m", folder, "--experts", "stream")
    assert "has no routed experts, so there is nothing to stream; leave the option out" in message
