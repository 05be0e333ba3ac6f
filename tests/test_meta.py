"""Meta's layout: the same model from it as from Hugging Face's, whatever the number of ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.config import Config, load_generation_config, parse_config
from mlx_llama4.convert.checkpoint import Checkpoint, open_checkpoint
from mlx_llama4.convert.matching import Matching, match_tensors
from mlx_llama4.convert.meta import is_meta, open_meta
from mlx_llama4.convert.meta_params import json_files
from mlx_llama4.convert.sources import num_rows, row_bytes
from mlx_llama4.errors import CheckpointError, ConfigError, InputError, RunError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.image import ImageTiler
from tests import meta_layout, tiny
from tests.golden import cases
from tests.tolerance import assert_same_logits
from tests.torch_files import write_torch_file

BOTH = ("scout", "maverick")
# A checkpoint that is opened and never read; small, as many tests write it.
SMALL = tiny.config("maverick", num_hidden_layers=2)


def read(
    checkpoint: Checkpoint, matching: Matching, step: int | None = None
) -> dict[str, mx.array]:
    """Every model tensor, read `step` rows at a time."""
    arrays: dict[str, list[mx.array]] = {}
    for source in dict.fromkeys(matching.sources.values()):
        rows = num_rows(source)
        for start in range(0, rows, step or rows):
            stop = min(start + (step or rows), rows)
            data = source.read(checkpoint, start, stop, "float32")
            for name, part in zip(source.targets, source.decode(data, start, stop), strict=True):
                arrays.setdefault(name, []).append(part)
    return {name: mx.concatenate(parts) for name, parts in arrays.items()}


def opened(folder: Path) -> tuple[Checkpoint, Config, Matching]:
    _, checkpoint, config, matching = open_meta(folder)
    matching.check(folder)
    return checkpoint, config, matching


def small(folder: Path, ranks: int = 2) -> Path:
    return meta_layout.write_checkpoint(folder, SMALL, tiny.tensors(SMALL), ranks, "BF16")


def rewrite(folder: Path, rank: int, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Write the file of one rank of a small checkpoint of two again, changed."""
    weights = meta_layout.split(SMALL, tiny.tensors(SMALL), 2)[rank]
    change(weights)
    write_torch_file(folder / f"consolidated.{rank:02}.pth", weights, "BF16")


def with_params(folder: Path, **changes: Any) -> Path:
    path = folder / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refused(folder: Path, error: type[InputError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize(("ranks", "step"), [(1, None), (2, 3), (4, 7)])
@pytest.mark.parametrize("name", BOTH)
def test_same_tensors_as_hugging_face_s(
    tmp_path: Path, name: str, ranks: int, step: int | None, dtype: str
) -> None:
    config, weights = cases.MODELS[name].config, cases.MODELS[name].weights()
    theirs = open_checkpoint(tiny.write_checkpoint(tmp_path / "hf", config, weights, dtype))
    expected = read(theirs, match_tensors(theirs, parse_config(config)))
    folder = meta_layout.write_checkpoint(tmp_path / "meta", config, weights, ranks, dtype)
    checkpoint, _, matching = opened(folder)
    found = read(checkpoint, matching, step)
    assert found.keys() == expected.keys()
    for target, array in found.items():
        assert array.dtype == expected[target].dtype
        assert mx.array_equal(array, expected[target]), target


def test_names_of_the_reference_s_modules(tmp_path: Path) -> None:
    weights = tiny.tensors(SMALL)
    fused, apart = (
        meta_layout.write_checkpoint(tmp_path / str(fused), SMALL, weights, 2, fused=fused)
        for fused in (True, False)
    )
    checkpoint, _, matching = opened(fused)
    expected = read(checkpoint, matching)
    checkpoint, _, matching = opened(apart)
    found = read(checkpoint, matching, 5)
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("name", BOTH)
def test_same_config_as_hugging_face_s(tmp_path: Path, name: str) -> None:
    case = cases.MODELS[name]
    folder = meta_layout.write_checkpoint(tmp_path, case.config, case.weights(), 1)
    _, config, _ = opened(folder)
    assert config == replace(parse_config(case.config), image_token_id=200092)


def test_files_that_meta_has_not(tmp_path: Path) -> None:
    """With them, our own readers take the folder as they take the releases."""
    _, config, _ = opened(small(tmp_path))
    for name, content in json_files(config).items():
        (tmp_path / name).write_text(json.dumps(content))
    generation = load_generation_config(tmp_path)
    assert generation.eos_token_ids == (200001, 200007, 200008)
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.6, 0.9)
    tiler = ImageTiler.load(tmp_path, tiny.SIDE_PIXELS)
    assert (tiler.tile_size, tiler.max_tiles) == (tiny.SIDE_PIXELS, 16)
    assert json_files(replace(config, vision=None)).keys() == {"generation_config.json"}


@pytest.mark.parametrize("name", BOTH)
def test_logits_are_the_reference_s(tmp_path: Path, name: str) -> None:
    case = cases.MODELS[name]
    folder = meta_layout.write_checkpoint(tmp_path, case.config, case.weights(), 2)
    checkpoint, config, matching = opened(folder)
    model = Llama4(replace(config, image_token_id=tiny.PATCH_ID))
    model.load_weights(list(read(checkpoint, matching).items()))
    golden = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    assert_same_logits(model(mx.array(cases.text_ids(150))), golden["text 150"], "text")
    features = model.image_features(tiny.pixels(cases.IMAGES["2x2"]))
    logits = model(model.embed(tiny.image_ids(cases.IMAGES["2x2"]), features))
    assert_same_logits(logits, golden["2x2"], "images")


def test_text_only(tmp_path: Path) -> None:
    config = tiny.config("maverick", num_hidden_layers=2)
    config["vision_config"] = None
    folder = meta_layout.write_checkpoint(tmp_path, config, tiny.tensors(config), 2)
    _, config, matching = opened(folder)
    assert config.vision is None
    assert not any("vision" in name for name in matching.sources)


def test_one_file_without_a_number(tmp_path: Path) -> None:
    folder = small(tmp_path, ranks=1)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.pth")
    opened(folder)


def test_reads_only_the_rows_asked_for(tmp_path: Path) -> None:
    """An expert of a rank is F/2 · D of bfloat16: 96 / 2 · 64 · 2 bytes."""
    checkpoint, _, matching = opened(small(tmp_path))
    prefix = "language_model.model.layers.1.feed_forward.experts"
    for projection in ("gate", "up", "down"):
        source = matching.sources[f"{prefix}.{projection}_proj.weight"]
        data = source.read(checkpoint, 3, 5, "bfloat16")
        assert [len(part) for part in data] == [2 * 96 // 2 * 64 * 2] * 2
        assert row_bytes(source) == 96 * 64 * 2
    # Rows 30 to 33 of 64: some of each rank's.
    queries = matching.sources["language_model.model.layers.0.self_attn.q_proj.weight"]
    data = queries.read(checkpoint, 30, 34, "bfloat16")
    assert [len(part) for part in data] == [2 * 64 * 2] * 2
    for start in (28, 32, 40):
        data = queries.read(checkpoint, start, start + 4, "bfloat16")
        assert [len(part) for part in data] == [4 * 64 * 2]
    assert row_bytes(queries) == 64 * 2


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    folder = small(tmp_path)

    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["layers.0.attention.wo.weight"] = np.full((64, 32), 1e6, np.float32)
        weights["layers.1.feed_forward.router_DE"] = np.full((64, 8), np.nan, np.float32)

    rewrite(folder, 0, spoil)
    rewrite(folder, 1, spoil)
    checkpoint, _, matching = opened(folder)
    prefix = "language_model.model.layers"
    output = matching.sources[f"{prefix}.0.self_attn.o_proj.weight"]
    output.read(checkpoint, 0, 4, "bfloat16")
    with pytest.raises(RunError, match=r"00\.pth: layers\.0\.attention\.wo\.weight has values"):
        output.read(checkpoint, 0, 4, "float16")
    with pytest.raises(RunError, match="router_DE has values"):
        matching.sources[f"{prefix}.1.feed_forward.router.weight"].read(
            checkpoint, 0, 4, "bfloat16"
        )


def test_is_meta(tmp_path: Path) -> None:
    assert not is_meta(tmp_path)
    folder = small(tmp_path)
    assert is_meta(folder)
    (folder / "params.json").unlink()
    assert is_meta(folder)
    assert "has no params.json" in refused(folder)
    (folder / "config.json").write_text("{}")
    assert not is_meta(folder)


def test_missing_ranks(tmp_path: Path) -> None:
    folder = small(tmp_path, ranks=4)
    (folder / "consolidated.01.pth").unlink()
    assert "1 of 4 ranks missing (consolidated.01.pth)" in refused(folder)
    for file in folder.glob("consolidated.0[23].pth"):
        file.unlink()
    message = refused(folder)
    assert "holds 1 consolidated.*.pth files, but each has 80 of 320 tokens" in message
    assert "there must be 4" in message
    (folder / "consolidated.00.pth").unlink()
    assert "holds no consolidated.00.pth" in refused(folder)


def test_file_beside_the_ranks(tmp_path: Path) -> None:
    folder = small(tmp_path)
    (folder / "consolidated.old.pth").write_bytes(b"")
    assert "or others beside them" in refused(folder)


def test_truncated_rank(tmp_path: Path) -> None:
    folder = small(tmp_path)
    file = folder / "consolidated.01.pth"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    message = refused(folder)
    assert f"{file} is truncated or damaged ({len(data) // 2:,} bytes)" in message


def test_tensors_missing(tmp_path: Path) -> None:
    folder = small(tmp_path)
    rewrite(folder, 1, lambda weights: weights.pop("layers.0.attention.wqkv.weight"))
    assert "tensor missing: layers.0.attention.wqkv.weight in consolidated.01.pth" in (
        refused(folder)
    )
    rewrite(folder, 0, lambda weights: weights.pop("layers.0.attention.wqkv.weight"))
    rewrite(folder, 1, lambda weights: weights.pop("layers.0.attention.wqkv.weight"))
    assert "layers.0.attention.wqkv.weight in consolidated.00.pth" in refused(folder)


@pytest.mark.parametrize("name", ["layers.0.attention.wq.weight", "layers.9.attention.wo.weight"])
def test_tensors_unknown(tmp_path: Path, name: str) -> None:
    """Even of names known elsewhere: beside wqkv, wq is one too many."""
    folder = small(tmp_path)
    rewrite(folder, 1, lambda weights: weights.update({name: np.ones(4, np.float32)}))
    assert f"tensor unknown: {name} in consolidated.01.pth;" in refused(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.attention.wo.weight", (64, 16)),
        ("layers.0.attention.wo.weight", (64, 64)),
        ("layers.0.attention.wqkv.weight", (72, 64)),
        ("layers.0.attention.wqkv.weight", (65, 64)),  # not to be divided
        ("layers.0.attention.wqkv.weight", ()),
        ("layers.0.feed_forward.mlp.fc1_weight", (158, 64)),
        ("layers.1.feed_forward.experts.moe_w_in_eD_F", (511, 48)),
        ("layers.1.feed_forward.experts.moe_w_in_eD_F", (512, 24)),
        ("layers.1.feed_forward.experts.moe_w_out_eF_D", (8, 48, 63)),
        ("layers.1.feed_forward.experts.moe_w_out_eF_D", ()),
        ("layers.1.feed_forward.router_DE", (8, 64)),
        ("layers.1.feed_forward.router_DE", (64,)),
        ("norm.weight", (32,)),
        ("output.weight", (161, 64)),
        ("vision_projection.weight", (64, 24)),
    ],
)
def test_tensors_of_a_wrong_shape(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    folder = small(tmp_path)
    for rank in range(2):
        rewrite(folder, rank, lambda weights: weights.update({name: np.ones(shape, np.float32)}))
    assert f"tensor of a wrong shape: {name} {list(shape)};" in refused(folder)


def test_ranks_of_different_shapes(tmp_path: Path) -> None:
    """Replicated tensors too, of which only one is read."""
    folder = small(tmp_path)
    rewrite(folder, 1, lambda weights: weights.update({"norm.weight": np.ones(9, np.float32)}))
    assert "shape: norm.weight in consolidated.01.pth [9]" in refused(folder)


def test_tensors_of_a_wrong_type(tmp_path: Path) -> None:
    folder = small(tmp_path)
    rewrite(folder, 1, lambda weights: weights.update({"norm.weight": np.ones(64, np.int64)}))
    assert "wrong type: norm.weight in consolidated.01.pth I64" in refused(folder)


def test_ranks_of_different_types(tmp_path: Path) -> None:
    folder = small(tmp_path)
    weights = meta_layout.split(SMALL, tiny.tensors(SMALL), 2)[1]
    write_torch_file(folder / "consolidated.01.pth", weights, "F16")
    assert "tensor of a wrong type: vision" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "dim is missing"),
        ({"dim": "64"}, "dim is '64', not a whole number"),
        ({"n_heads": 5}, "heads must be dim 64 / n_heads 5 wide"),
        ({"head_dim": 32}, "heads must be dim 64 / n_heads 4 wide"),
        ({"n_kv_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ({"moe_args": None}, "moe_args is missing"),
        ({"moe_args": 3}, "moe_args must be an object, not 3"),
        ({"moe_args": {"top_k": 1}}, "moe_args: num_experts is missing"),
        (
            {"moe_args": {"num_experts": 8, "use_token_choice": False}},
            "moe_args: use_token_choice is false",
        ),
        ({"quantization_args": {"spinquant": True}}, "quantization_args are not supported"),
        ({"lora_args": {"rank": 8, "scale": 1.0}}, "lora_args are not supported"),
        ({"vision_args": {"dim": 32}}, "vision_args: output_dim is missing"),
        ({"ffn_exp": 1e308}, "widths are larger than any model's"),
        ({"model": 3}, "model must be an object, not 3"),
    ],
)
def test_params_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refused(with_params(small(tmp_path), **changes), ConfigError)


def test_oblong_images(tmp_path: Path) -> None:
    folder = small(tmp_path)
    vision = json.loads((folder / "params.json").read_text())["vision_args"]
    vision["image_size"] = {"height": 56, "width": 28}
    message = refused(with_params(folder, vision_args=vision), ConfigError)
    assert "vision_args: image_size is 56 x 28; only squares" in message


def test_params_that_mean_the_same(tmp_path: Path) -> None:
    """-1 tokens, and keys that the reference ignores or fills in."""
    folder = small(tmp_path)
    _, expected, _ = opened(folder)
    path = folder / "params.json"
    params = json.loads(path.read_text())
    for key in ("norm_eps", "rope_theta", "lora_args"):
        params.pop(key)
    params |= {"vocab_size": -1, "quantization_args": {"scheme": None, "spinquant": False}}
    path.write_text(json.dumps({"model": params, "seed": 3}))
    assert opened(folder)[1] == expected


def test_params_of_other_models(tmp_path: Path) -> None:
    config = tiny.config("maverick")
    meta_layout.write_checkpoint(tmp_path, config, tiny.tensors(config), 1, "BF16")
    folder = with_params(
        tmp_path,
        nope_layer_interval=None,
        attention_chunk_size=None,
        attn_temperature_tuning=None,
        rope_scaling_factor=8.0,
        use_scaled_rope=True,
    )
    text = opened(folder)[1].text
    assert [kind.attention for kind in text.layers] == ["chunked"] * 8
    assert text.attention_chunk_size is None
    assert not text.attn_temperature_tuning
    assert text.rope_scaling is not None
    assert (text.rope_scaling.factor, text.rope_scaling.high_freq_factor) == (8.0, 1.0)


def test_widths_of_the_releases(tmp_path: Path) -> None:
    """dim 5120 gives 8192 and 16384, as their config.json says."""
    folder = with_params(
        small(tmp_path),
        dim=5120,
        n_heads=40,
        n_kv_heads=8,
        multiple_of=2048,
        ffn_dim_multiplier=1.2,
    )
    text = open_meta(folder)[2].text
    assert (text.intermediate_size, text.intermediate_size_mlp) == (8192, 16384)
    assert text.head_dim == 128


def test_four_bits(tmp_path: Path) -> None:
    folder = small(tmp_path)
    (folder / "int4_scales_0.pt").write_bytes(b"")
    assert "has weights of 4 bits (int4_scales_0.pt)" in refused(folder)


PREFIX = "layers.1.feed_forward.experts"
# Meta's name, that of the scales, ours, and whether the ranks divide what an expert puts out.
FLOAT8_EXPERTS = [
    ("moe_w_in_eD_F", "w1", "gate_proj", True),
    ("moe_w_swiglu_eD_F", "w3", "up_proj", True),
    ("moe_w_out_eF_D", "w2", "down_proj", False),
]


def e4m3(codes: np.ndarray) -> np.ndarray:
    sign, exponent, mantissa = codes >> 7, (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(int) - 7)
    return np.where(sign, -1, 1) * np.where(exponent, normal, mantissa / 8 * 2.0**-6)


def float8_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """A small checkpoint of two ranks whose experts have 8 bits → their values, by our names.

    As the reference's quantize.py has it: a scale for each output of an expert's part in a rank.
    """
    random = np.random.RandomState(0)
    small(folder)
    parts: dict[str, list[np.ndarray]] = {}
    for rank in range(2):
        changed, scales = {}, {}
        for meta, number, ours, divides_outputs in FLOAT8_EXPERTS:
            outputs, inputs = (48, 64) if divides_outputs else (64, 48)
            codes = random.randint(0, 0x7F, (8, outputs, inputs)).astype(np.uint8)
            codes |= random.randint(0, 2, codes.shape).astype(np.uint8) << 7
            scale = random.uniform(0.001, 0.01, (8, outputs)).astype(np.float32)
            changed[f"{PREFIX}.{meta}"] = codes.swapaxes(1, 2).reshape(-1, outputs).view(np.int8)
            scales[f"{PREFIX}.{number}"] = scale
            values = e4m3(codes).astype(np.float32) * scale[..., None]
            parts.setdefault(ours, []).append(values)
        rewrite(folder, rank, lambda weights, changed=changed: weights.update(changed))
        write_torch_file(folder / f"fp8_scales_{rank}.pt", scales)
    return {
        ours: np.concatenate(parts[ours], axis=1 if divides_outputs else 2)
        for _, _, ours, divides_outputs in FLOAT8_EXPERTS
    }


@pytest.mark.parametrize("step", [None, 1, 3])
def test_experts_of_eight_bits(tmp_path: Path, step: int | None) -> None:
    expected = float8_checkpoint(tmp_path)
    checkpoint, _, matching = opened(tmp_path)
    found = read(checkpoint, matching, step)
    for name, values in expected.items():
        array = found[f"language_model.model.{PREFIX}.{name}.weight"]
        assert array.dtype == mx.float32
        assert np.array_equal(np.array(array), values)


def test_scales_that_do_not_belong(tmp_path: Path) -> None:
    float8_checkpoint(tmp_path)
    scales = {f"{PREFIX}.w{number}": np.ones((8, size), np.float32) for number, size in ((1, 47),)}
    for rank in range(2):
        write_torch_file(tmp_path / f"fp8_scales_{rank}.pt", scales)
    assert f"missing: scales of {PREFIX}.w3 in consolidated.00.pth" in refused(tmp_path)
    _, _, _, matching = open_meta(tmp_path)
    assert matching.misshapen == [f"{PREFIX}.moe_w_in_eD_F [512, 48] with scales [8, 47]"]
    for rank in range(2):
        (tmp_path / f"fp8_scales_{rank}.pt").unlink()
    assert f"missing: scales of {PREFIX}.w1 in consolidated.00.pth" in refused(tmp_path)
    small(tmp_path)
    write_torch_file(tmp_path / "fp8_scales_1.pt", scales)
    assert f"unknown: scales of {PREFIX}.w1 in consolidated.01.pth" in refused(tmp_path)
    (tmp_path / "fp8_scales_1.pt").write_bytes(b"")
    assert "fp8_scales_1.pt is no file of torch.save" in refused(tmp_path)


def test_eight_bits_elsewhere(tmp_path: Path) -> None:
    folder = small(tmp_path)
    codes = np.zeros((64, 32), np.int8)
    rewrite(folder, 0, lambda weights: weights.update({"layers.0.attention.wo.weight": codes}))
    message = refused(folder)
    assert "type: layers.0.attention.wo.weight in consolidated.00.pth F8_E4M3" in message
