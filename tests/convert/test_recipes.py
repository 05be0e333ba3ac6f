"""Recipes: what they pack, how they are written down, and that every peer reads the result."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.config import load_config
from mlx_llama4.convert.recipes import (
    Recipe,
    Rule,
    check_rules,
    choose_recipe,
    parse_mixed,
    parse_rule,
)
from mlx_llama4.convert.run import convert
from mlx_llama4.convert.sizing import fit_to_size
from mlx_llama4.errors import InputError
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    FIXED_MODES,
    Quantization,
    packing,
)
from mlx_llama4.tensors import model_tensors
from mlx_llama4.units import parse_bytes
from tests import tiny
from tests.convert.folders import arrays
from tests.golden import cases
from tests.tolerance import assert_same_logits

IDS = mx.array(cases.text_ids(40))
LAYER = "language_model.model.layers.{}"


def mixed(name: str, group_size: int) -> Recipe:
    low, high = (packing(bits, group_size, None) for bits in parse_mixed(name))
    return Recipe("float32", low, high)


RULES = (
    "*.experts.*=2:32",
    "*.experts.down_proj=6:128",
    "*.lm_head=16",
    "*.self_attn.*=4:32:mxfp4",
)
AFFINE = {
    f"{bits} bits by {size}": Recipe("float32", packing(bits, size, None))
    for bits in AFFINE_BITS
    for size in AFFINE_GROUP_SIZES
}
MODES = {mode: Recipe("float32", packing(None, None, mode)) for mode in FIXED_MODES}
MIXED = {
    f"{name} by {size}": mixed(name, size)
    for name in ("mixed-2-6", "mixed-3-6", "mixed-4-8")
    for size in AFFINE_GROUP_SIZES
}
OTHERS = {
    "rules": Recipe("float32", packing(3, 64, None), rules=tuple(map(parse_rule, RULES))),
    "vision": Recipe("float32", packing(4, 32, None), rules=(parse_rule("vision_model.*=8:32"),)),
    "search": Recipe("float32", packing(4, 64, None), search=True),
}
RECIPES = AFFINE | MODES | MIXED | OTHERS
QUICK = ("3 bits by 32", "5 bits by 128", "nvfp4", "mixed-2-6 by 64", "rules", "vision")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    config = tiny.config("scout", num_hidden_layers=4, **sizes)
    folder = tmp_path_factory.mktemp("wide")
    return tiny.write_checkpoint(folder, config, tiny.tensors(config), "BF16")


def check_peers(folder: Path, module: object) -> None:
    """Ours, mlx-lm's and, where it is installed, mlx-vlm's reading of a folder."""
    ours = np.array(load_model(folder, mx.float32)(IDS))
    assert np.isfinite(ours).all()
    peer, _ = module.load_model(folder)
    assert_same_logits(np.array(peer(IDS)), ours, "text")


@pytest.mark.parametrize("name", QUICK)
def test_mlx_lm_reads_it(
    source: Path, tmp_path: Path, mlx_lm: object, right_epsilon: None, name: str
) -> None:
    convert(source, tmp_path / "out", RECIPES[name])
    check_peers(tmp_path / "out", mlx_lm)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in QUICK])
def test_mlx_lm_reads_all_of_them(
    source: Path, tmp_path: Path, mlx_lm: object, right_epsilon: None, name: str
) -> None:
    convert(source, tmp_path / "out", RECIPES[name])
    check_peers(tmp_path / "out", mlx_lm)


@pytest.mark.peers
@pytest.mark.parametrize("name", RECIPES)
def test_mlx_vlm_reads_it(source: Path, tmp_path: Path, right_epsilon: None, name: str) -> None:
    mlx_vlm = pytest.importorskip("mlx_vlm.utils", reason="needs the peers extra")
    convert(source, tmp_path / "out", RECIPES[name])
    ours = np.array(load_model(tmp_path / "out", mx.float32)(IDS))
    peer = mlx_vlm.load_model(tmp_path / "out")
    assert_same_logits(np.array(peer.language_model(IDS).logits), ours, "text")


def test_division_of_a_mixed_recipe(source: Path, tmp_path: Path) -> None:
    """Routed experts low, except in the first layer and the last; the table says so."""
    convert(source, tmp_path / "out", RECIPES["mixed-3-6 by 64"])
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    quantization = load_config(tmp_path / "out").quantization
    for index, bits in enumerate((6, 3, 3, 6)):
        experts = f"{LAYER.format(index)}.feed_forward.experts.up_proj"
        assert quantization.of(experts).bits == bits
        assert quantization.of(f"{LAYER.format(index)}.self_attn.q_proj").bits == 6
        assert (
            quantization.of(f"{LAYER.format(index)}.feed_forward.shared_expert.up_proj").bits == 6
        )
        assert table[f"{LAYER.format(index)}.feed_forward.router"] is False
    assert quantization.of("language_model.lm_head").bits == 6


def test_the_last_rule_wins(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", RECIPES["rules"])
    quantization = load_config(tmp_path / "out").quantization
    experts = f"{LAYER.format(2)}.feed_forward.experts"
    assert quantization.of(f"{experts}.up_proj") == Quantization(32, 2)
    assert quantization.of(f"{experts}.down_proj") == Quantization(128, 6)
    assert quantization.of(f"{LAYER.format(2)}.self_attn.k_proj") == FIXED_MODES["mxfp4"]
    assert quantization.of("language_model.lm_head") is None
    assert "language_model.lm_head.scales" not in arrays(tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_target_size(
    source: Path, tmp_path: Path, mlx_lm: object, right_epsilon: None, share: float
) -> None:
    """Never more bytes than allowed, and not many fewer; experts, the most bytes, go low first."""
    base = Recipe("float32", packing(None, 64, None))
    least, most = (
        convert(
            source, tmp_path / f"{bits}", Recipe("float32", Quantization(64, bits))
        ).output_bytes
        for bits in (2, 8)
    )
    target = int(least + share * (most - least))
    recipe = fit_to_size(open_source(source), base, target)
    report = convert(source, tmp_path / "out", recipe)
    largest = 4 * 128 * 128 * 4  # an expert tensor, unpacked
    assert target - largest < report.output_bytes <= target
    quantization = load_config(tmp_path / "out").quantization
    bits = {
        part: quantization.of(f"{LAYER.format(1)}.{part}")
        for part in ("feed_forward.experts.up_proj", "feed_forward.shared_expert.up_proj")
    }
    low, high = (16 if one is None else one.bits for one in bits.values())
    assert low < high if share == 0.8 else low <= high
    check_peers(tmp_path / "out", mlx_lm)


def test_target_size_too_small(source: Path) -> None:
    base = Recipe("float32", packing(None, 64, None))
    with pytest.raises(InputError, match="--target-size 1 KB is too small: with 2 bits"):
        fit_to_size(open_source(source), base, 1000)


def test_more_bits_and_search_lose_less(source: Path, tmp_path: Path) -> None:
    def errors(recipe: Recipe, name: str) -> dict[str, float]:
        return convert(source, tmp_path / name, recipe).quality.tensors

    kinds = [
        errors(Recipe("float32", Quantization(64, bits), search=search), f"{bits} {search}")
        for bits in (2, 4, 8)
        for search in (False, True)
    ]
    for name in kinds[0]:
        assert [one[name] for one in kinds] == sorted((one[name] for one in kinds), reverse=True)


PATTERN = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\n"), min_size=1
)


@given(PATTERN, st.sampled_from(AFFINE_BITS), st.sampled_from(AFFINE_GROUP_SIZES))
def test_rules_are_read_back(pattern: str, bits: int, group_size: int) -> None:
    """Even a pattern with = and : in it."""
    expected = Rule(pattern, Quantization(group_size, bits))
    assert parse_rule(f"{pattern}={bits}:{group_size}") == expected
    assert parse_rule(f"{pattern}={bits}:{group_size}:affine") == expected
    assert parse_rule(f"{pattern}={bits}").quantization == Quantization(64, bits)
    assert parse_rule(f"{pattern}=16") == Rule(pattern, None)
    assert parse_rule(f"{pattern}=4:32:mxfp4") == Rule(pattern, FIXED_MODES["mxfp4"])


@pytest.mark.parametrize("options", [{"group_size": 32}, {"mode": "mxfp4"}])
def test_nothing_packed_has_no_packing(options: dict[str, Any]) -> None:
    given_options = {"group_size": None, "mode": None} | options
    with pytest.raises(InputError, match="16 packs nothing; leave out"):
        choose_recipe(
            dtype=None,
            bits=16,
            mixed=None,
            rules=(),
            search=False,
            source_dtype="bfloat16",
            source_is_packed=False,
            **given_options,
        )


@given(st.text(max_size=30))
def test_any_other_text_is_refused_or_understood(text: str) -> None:
    for parse in (parse_rule, parse_mixed, parse_bytes):
        try:
            parse(text)
        except InputError as error:
            assert "\n" not in str(error)


@given(st.integers(0, 10**6), st.sampled_from(["", "K", "M", "G", "T"]), st.booleans())
def test_sizes(number: int, unit: str, is_binary: bool) -> None:
    base = 1024 if is_binary and unit else 1000
    expected = number * base ** ["", "K", "M", "G", "T"].index(unit)
    spelled = f"{number}{unit}{'i' * (is_binary and bool(unit))}"
    if expected:
        assert parse_bytes(f"{spelled}B") == parse_bytes(f" {spelled.lower()}b ") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*.q_proj", "is not of the form PATTERN=BITS"),
        ("=4", "is not of the form"),
        ("a=b", "is not of the form"),
        ("a=4:64:", "is not of the form"),
        ("a=7", "7 bits are not supported; use 2, 3, 4, 5, 6 or 8"),
        ("a=4:48", "groups of 48 are not supported; use 32, 64 or 128"),
        ("a=4:32:q4_k", "mode q4_k is unknown; use affine, "),
        ("a=8:32:mxfp4", "mxfp4 has 4 bits in groups of 32"),
        ("a=16:64", "16 bits are not supported"),
        ("a=16:mxfp4", "mxfp4 has 4 bits"),
        ("a=0", "0 bits are not supported"),
    ],
)
def test_bad_rules(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_rule(text)
    assert message in str(caught.value) and repr(text) in str(caught.value)


@pytest.mark.parametrize("name", ["mixed", "mixed-6-3", "mixed-4-4", "mixed-1-4", "mixed-4-16", ""])
def test_bad_mixed_recipes(name: str) -> None:
    with pytest.raises(InputError, match=f"recipe '{name}' is unknown; use mixed-LOW-HIGH"):
        parse_mixed(name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, None), Quantization(64, 4)),
        ((3, None, None), Quantization(64, 3)),
        ((None, 32, "affine"), Quantization(32, 4)),
        ((None, None, "mxfp8"), Quantization(32, 8, "mxfp8")),
        ((4, 16, "nvfp4"), Quantization(16, 4, "nvfp4")),
        ((8, None, "nvfp4"), None),
        ((None, 64, "mxfp8"), None),
        ((0, None, None), None),
        ((4, 0, None), None),
        ((7, None, None), None),
    ],
)
def test_options_of_a_packing(
    arguments: tuple[int | None, int | None, str | None], expected: Quantization | None
) -> None:
    if expected is not None:
        assert packing(*arguments) == expected
        return
    with pytest.raises(InputError):
        packing(*arguments)


def test_rules_that_match_nothing(source: Path) -> None:
    specs = model_tensors(load_config(source))
    for pattern in ("*.router", "*.norm", "*.q_proj.weight", "nothing"):
        rule = parse_rule(f"{pattern}=4")
        with pytest.raises(InputError, match="matches no module that can be packed"):
            check_rules(Recipe("bfloat16", None, rules=(rule,)), specs)
    check_rules(Recipe("bfloat16", None, rules=(parse_rule("*.q_proj=4"),)), specs)
