"""A folder as llama.com gives it, all the way: converted, inspected, asked."""

import json
from pathlib import Path

import pytest

from mlx_llama4.convert.run import convert
from tests import meta_layout, tiny
from tests.commands import refused, run_here
from tests.convert.folders import FOUR_BITS, files
from tests.golden import cases
from tests.prompt.ranks import RANKS, write

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("ranks", [1, 4])
def test_same_bytes_as_from_hugging_face_s_layout(tmp_path: Path, ranks: int) -> None:
    case = cases.MODELS["maverick"]
    theirs = tiny.write_checkpoint(tmp_path / "hf", case.config, case.weights(), "BF16")
    meta = meta_layout.write_checkpoint(
        tmp_path / "meta", case.config, case.weights(), ranks, "BF16"
    )
    for source in (theirs, meta):
        convert(source, tmp_path / f"{source.name}-mlx", FOUR_BITS)
    found, expected = files(tmp_path / "meta-mlx"), files(tmp_path / "hf-mlx")
    assert found[WEIGHTS] == expected[WEIGHTS]
    # What Meta says in code or in params.json, a model folder needs in files.
    assert {"generation_config.json", "processor_config.json"} <= found.keys() - expected.keys()


def test_from_tokenizer_model_to_an_answer(tmp_path: Path) -> None:
    special_tokens = 2048
    config = tiny.config("scout", vocab_size=len(RANKS) + special_tokens, num_hidden_layers=2)
    config["vision_config"] = None
    source = meta_layout.write_checkpoint(tmp_path / "meta", config, tiny.tensors(config), 2)
    out = tmp_path / "out"
    assert "no tokenizer.json" in refused("convert", source, out)
    write(source / "tokenizer.model", RANKS)
    assert "not converted yet" in refused("ask", "Hi", "-m", source)
    assert "Meta's layout, 2 files" in run_here("inspect", source).stdout
    converted = run_here("convert", source, out)
    assert converted.returncode == 0, converted.stderr
    assert "Meta's layout, 2 files" in converted.stderr
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in out.iterdir()}
    answer = json.loads(run_here("ask", "the he", "-m", out, "--max-tokens", 3, "--json").stdout)
    assert answer["generated_tokens"] > 0
