"""`python -m benchmarks batch`: what each engine is given, what is counted, what is told."""

from pathlib import Path

import pytest

from benchmarks import batch
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.presets import preset_folder
from benchmarks.harness.rounds import Runs

TOKENS = sum(count for _, count in batch.TEXTS)


def measured(seconds: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "decode_seconds": seconds / 3,
        "cpu_seconds": 2 * seconds,
        "decode_cpu_seconds": seconds,
        "peak_bytes": 100,
    }


def test_figures_and_what_is_told_of_them() -> None:
    able = {"text": {"alone": measured(9), "together": measured(6), "rows_right": 5}}
    failed = {"failure": "ValueError: not yet"}
    unable = {"text": {"alone": measured(9), "together": failed, "rows_right": 0}}
    figures = batch.figures_of(able)
    assert figures["text_together_tokens_a_second"] == TOKENS / 6
    assert figures["text_together_decode_tokens_a_second"] == (TOKENS - 6) / 2
    assert figures["text_together_cpu_seconds"] == 12
    assert batch.figures_of(unable)["text_together_tokens_a_second"] == 0
    assert not any(key.startswith("pictures") for key in figures)
    runs = Runs({OURS: [figures] * 3, "mlx-lm": [batch.figures_of(unable)] * 3})
    assert batch.findings(runs, {"mlx-lm": "ValueError: not yet"}) == {
        OURS: "tokens a second, together / one by one: 1.50 (1.50 to 1.50), of decode alone 1.50 "
        "(1.50 to 1.50); 5 of 6 rows have the tokens of their own run",
        "mlx-lm": "cannot do it together: ValueError: not yet",
    }


@pytest.mark.slow
def test_rows_of_a_preset_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, over a border of chunks and with pictures; of the peer it is told why it cannot."""
    model = preset_folder("tiny", tmp_path)
    monkeypatch.setattr(batch, "TEXTS", ((3, 5), (254, 4)))
    monkeypatch.setattr(batch, "PICTURES", (("star.png", 3),))
    found = batch.answer_both_ways(Engine(OURS), model, True, tmp_path)
    assert (found["text"]["rows_right"], found["pictures"]["rows_right"]) == (2, 3)
    for load in found.values():
        for way in ("alone", "together"):
            assert load[way]["seconds"] > load[way]["decode_seconds"] > 0
    found = batch.answer_both_ways(Engine("mlx-lm"), model, False, tmp_path)
    assert list(found) == ["text"] and found["text"]["alone"]["seconds"] > 0
    assert "batching" in found["text"]["together"]["failure"] or found["text"]["rows_right"] == 2
