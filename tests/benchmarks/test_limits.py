"""What the machine allows: bytes and FLOPs of a model, counted by hand, and their measuring."""

from pathlib import Path

import pytest

from benchmarks.harness import limits
from benchmarks.harness.limits import decode_bytes, measure_limits, prefill_flops
from benchmarks.harness.presets import preset_config, preset_folder
from mlx_llama4.config import parse_config
from tests.benchmarks.program import benchmark

TINY = parse_config(preset_config("tiny")).text
HIDDEN, WIDTH, EXPERTS, HEADS, HEAD_DIM, VOCABULARY = 320, 512, 16, 5, 64, 3072
# Of five layers, the fourth global: a token's products with weights, attention aside.
KEYS_AND_VALUES = 2 * HIDDEN * HEAD_DIM
QUERIES_AND_OUTPUT = 2 * HIDDEN * HEADS * HEAD_DIM
FEED_FORWARD = 2 * 3 * HIDDEN * WIDTH + HIDDEN * EXPERTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preset_folder("tiny", tmp_path_factory.mktemp("preset"))


@pytest.mark.parametrize(("tokens", "near"), [(0, 0), (100, 100), (256, 0), (600, 88)])
def test_bytes_of_a_token(folder: Path, tokens: int, near: int) -> None:
    """4 bits and, for 64 weights, a scale and a bias in float32; routers and norms not packed."""
    layer = QUERIES_AND_OUTPUT + KEYS_AND_VALUES + 2 * 3 * HIDDEN * WIDTH
    packed = 5 * layer + HIDDEN * VOCABULARY
    whole = 5 * HIDDEN * EXPERTS + 11 * HIDDEN
    cached = 2 * HEAD_DIM * 4 * (4 * near + tokens)
    assert decode_bytes(folder, tokens) == packed * 5 // 8 + whole * 4 + cached


def test_flops_of_a_prompt() -> None:
    """Twice the products; of the last layer but keys and values only the last token."""
    one = 5 * (QUERIES_AND_OUTPUT + KEYS_AND_VALUES + FEED_FORWARD) + HIDDEN * VOCABULARY
    attention = 2 * HEADS * HEAD_DIM
    assert prefill_flops(TINY, 1) == 2 * (one + 5 * attention)
    more = 4 * (QUERIES_AND_OUTPUT + FEED_FORWARD) + 5 * KEYS_AND_VALUES
    # The second token sees two; in the last layer it does instead of the first.
    assert prefill_flops(TINY, 2) == 2 * (one + more + attention * (4 * (1 + 2) + 2))
    # A chunk's first token sees itself, and in the global layer all.
    across = prefill_flops(TINY, 257) - prefill_flops(TINY, 256)
    assert across == 2 * (more + attention * (3 * 1 + 257 + (1 - 256)))


def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARRAY_BYTES", 2**22)
    monkeypatch.setattr(limits, "BEST_OF", 1)
    monkeypatch.setattr(limits, "MATMUL_ROWS", 8)
    found = measure_limits(TINY)
    assert found.bytes_per_second > 0 and found.packed_vector > 0
    assert found.matmul > 0 and found.packed_matmul > 0
    assert list(found.lines()) == ["memory", "matmul", "one row"]


@pytest.mark.slow
def test_limits_from_end_to_end() -> None:
    result = benchmark("limits", "--preset", "tiny", "--tokens", 1000)
    assert result.returncode == 0, result.stderr
    setup, table = result.stdout.split("\n\n")
    assert setup.startswith("limits of tiny\n")
    assert [line.split("  ")[1] for line in table.splitlines()[1:]] == [
        "decode, after 1,000 tokens",
        "the same by MLX's product with one row",
        "prefill of 1,000 tokens",
    ]
