"""Folders in Meta's layout that are refused: incomplete, damaged, or of another model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_llama4.checkpoint.meta.layout import is_meta, open_meta
from mlx_llama4.errors import CheckpointError, ConfigError, InputError, RunError
from tests import meta_layout, tiny
from tests.checkpoint.meta_folders import (
    PREFIX,
    SMALL,
    float8_checkpoint,
    opened,
    rewrite,
    small,
    with_params,
)
from tests.torch_files import write_torch_file


def refused(folder: Path, error: type[InputError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


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


def test_four_bits(tmp_path: Path) -> None:
    folder = small(tmp_path)
    (folder / "int4_scales_0.pt").write_bytes(b"")
    assert "has weights of 4 bits (int4_scales_0.pt)" in refused(folder)


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
    assert "fp8_scales_1.pt is not a torch.save file" in refused(tmp_path)


def test_eight_bits_elsewhere(tmp_path: Path) -> None:
    folder = small(tmp_path)
    codes = np.zeros((64, 32), np.int8)
    rewrite(folder, 0, lambda weights: weights.update({"layers.0.attention.wo.weight": codes}))
    message = refused(folder)
    assert "type: layers.0.attention.wo.weight in consolidated.00.pth F8_E4M3" in message
