"""`mlx-llama4 doctor`: what it checks, what it says, and what it never says."""

import json
import shutil
import socket
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import typer

from mlx_llama4.chat import Chat
from mlx_llama4.cli.doctor import doctor
from mlx_llama4.doctor import (
    asking,
    cases,
    disk,
    examine,
    goldens,
    machine_facts,
    report,
    speed,
    tiny,
)
from mlx_llama4.doctor.unknown import Unknown, attempt, reason
from mlx_llama4.errors import ConfigError, OutputError
from tests.commands import refused

DEVICE = "CPU" if mx.default_device() == mx.cpu else "GPU"
TEXT, PICTURE = goldens.CHECKS[0], goldens.CHECKS[3]
LITTLE = examine.Effort((TEXT,), 10**6, 10**6, speed.Work(8, 8, 3))


def quick(check: goldens.Check) -> bool:
    return check.model != "wide" and check.steps is None


@pytest.mark.parametrize("check", [*filter(quick, goldens.CHECKS)], ids=lambda check: check.name)
def test_checks_hold_here(check: goldens.Check) -> None:
    found = goldens.run(check, DEVICE)
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.parametrize("device", goldens.devices())
def test_all_checks_hold_here(device: str) -> None:
    done = [goldens.run(check, device) for check in goldens.CHECKS if not quick(check)]
    assert [one for one in done if not one.passed and one.dtype == "float32"] == []


@pytest.mark.slow
@pytest.mark.skipif(DEVICE != "CPU", reason="of the CPU's kernels")
def test_packed_weights_in_bfloat16_stay_far_within_their_limit() -> None:
    """So that the limit, which no GPU has set, is not one by chance."""
    found = goldens.run(goldens.CHECKS[-1], "CPU")
    assert 0.001 < found.difference < goldens.BFLOAT16_MEDIAN_LIMIT / 2


@pytest.mark.parametrize("name", ["scout", "maverick", "strong_rope"])
def test_weights_are_the_reference_s(name: str) -> None:
    kept = np.load(goldens.FOLDER / f"{name}.npz")
    assert tiny.fingerprint(cases.MODELS[name].weights()) == kept["weights"]


def test_the_goldens_are_small() -> None:
    files = [*goldens.FOLDER.iterdir()]
    assert {file.stem for file in files} == set(cases.MODELS) == set(cases.SEEDS)
    assert sum(file.stat().st_size for file in files) < 200_000
    assert {(check.model, check.inputs) for check in goldens.CHECKS} == {
        (name, inputs) for name, seeds in cases.SEEDS.items() for inputs in seeds
    }


def damaged(folder: Path, key: str, change) -> Path:
    arrays = dict(np.load(goldens.FOLDER / "scout.npz"))
    arrays[key] = change(arrays[key])
    np.savez(folder / "scout.npz", **arrays)
    return folder


def test_one_wrong_value_fails(tmp_path: Path) -> None:
    def change(logits: np.ndarray) -> np.ndarray:
        logits[3, 77] += 0.01
        return logits

    found = goldens.run(TEXT, DEVICE, damaged(tmp_path, "text", change))
    assert not found.passed and found.difference == pytest.approx(0.01, abs=2e-3)
    assert report._outcome(found) == "FAIL"


def test_another_winner_fails(tmp_path: Path) -> None:
    """Also at a position whose logits are not kept."""
    assert 50 not in cases.kept_positions(cases.TEXT_TOKENS)

    def change(winners: np.ndarray) -> np.ndarray:
        winners[50] = (winners[50] + 1) % tiny.VOCABULARY
        return winners

    found = goldens.run(TEXT, DEVICE, damaged(tmp_path, "text winners", change))
    assert not found.passed and found.difference <= found.limit
    assert report._outcome(found) == "FAIL: another token wins"


def test_what_cannot_be_computed_or_is_no_number_fails(tmp_path: Path, monkeypatch) -> None:
    found = goldens.run(TEXT, DEVICE, tmp_path)
    assert (found.passed, found.problem) == (False, "No such file or directory")
    assert report._outcome(found) == "FAIL: No such file or directory"
    shape = (cases.TEXT_TOKENS, tiny.VOCABULARY)
    monkeypatch.setattr(goldens, "logits", lambda model, check: np.full(shape, np.nan))
    assert not goldens.run(TEXT, DEVICE).passed


def test_a_wrong_model_fails(monkeypatch) -> None:
    """The temperature of global layers one step off."""
    wrong = cases.RandomModel("scout", {"floor_scale": 17})
    monkeypatch.setitem(cases.MODELS, "scout", wrong)
    assert goldens.run(TEXT, DEVICE).difference > 10 * goldens.LIMITS["GPU", "text"]


PRIVATE = ("zanzibar", "Quixote", "geheim")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose every name is odd; what the system says of its user and host is, too."""
    home = tmp_path / "Quixote"
    (home / "hub geheim").mkdir(parents=True)
    for name in ("USER", "LOGNAME", "HOSTNAME", "MLX_LLAMA4_MODEL"):
        monkeypatch.setenv(name, "zanzibar")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hub geheim"))
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("platform.node", lambda: "zanzibar.local")
    monkeypatch.setattr("platform.release", lambda: "6.1.0-12-zanzibar")
    monkeypatch.setattr(socket, "gethostname", lambda: "zanzibar.local")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2+zanzibar")
    return home


def assert_private(found: examine.Report) -> str:
    text = report.markdown(found)
    for shown in (text, json.dumps(report.as_json(found))):
        for name in (*PRIVATE, tempfile.gettempdir(), "/tmp", "/home", "/Users", "/root"):
            assert name not in shown, shown
    return text


def test_a_report_names_nothing_private(private: Path, demo_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(asking, "QUESTIONS", asking.QUESTIONS[:1])
    monkeypatch.setattr(asking, "REPEATED", 1)
    folder = private / "geheim-70b"
    shutil.copytree(demo_folder, folder)

    def measure() -> asking.ModelSpeed:
        return asking.measure_model(folder, Chat.open(folder), 1.0)

    files = [*folder.glob("*.safetensors")]
    found = examine.examine(lambda _: nullcontext(), files, measure, LITTLE)
    text = assert_private(found)
    assert "All 1 checks passed" in text and "1 of 1 answers right" in text
    assert "a Llama 4 of its own size" in text and "8 bits" in text
    assert "mlx 1.2 (own build)" in text
    assert found.model.new_tokens > 1 and found.model.prompt_tokens > 100
    assert not [*private.glob("*mlx-llama4*")]


def test_what_goes_wrong_is_told_without_names(private: Path, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(private))

    def fail_otherwise(*arguments: object) -> None:
        raise RuntimeError(f"[load] Failed to open file {private}/geheim one.safetensors")

    for module, name in (
        (examine, "ask_demo"),
        (disk, "measure_folder"),
        (machine_facts, "_linux"),
    ):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(speed, "measure_decode", fail_otherwise)
    monkeypatch.setattr(speed, "measure_bandwidth", fail_otherwise)
    found = examine.examine(lambda _: nullcontext(), (), fail_otherwise, LITTLE)
    text = assert_private(found)
    assert "- disk: unknown: No space left on device\n" in text
    assert "- model: unknown: RuntimeError: [load] Failed to open file\n" in text
    assert found.failures == []


def test_errors_of_our_own_begin_with_names() -> None:
    error = ConfigError("geheim: eos_token_id must be one token id or several")
    assert reason(error) == "ConfigError"


def test_no_room_for_the_built_in_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OutputError("/tmp/x/demo-8bit needs 4 MB but only 1 MB are free on that disk")

    monkeypatch.setattr(asking, "convert", refuse)
    said = "unknown: there is no room in the temporary folder"
    assert str(attempt(asking.ask_demo)) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(13, "Permission denied", "/Users/x"), "Permission denied"),
        (ValueError("cannot open '/Users/x y/z.txt' now"), "ValueError: cannot open"),
        (ValueError("~/x is wrong"), "ValueError"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_reasons(error: Exception, said: str) -> None:
    def find() -> None:
        raise error

    assert reason(error) == said
    assert str(attempt(find)) == f"unknown: {said}"


MAC = {
    ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M2 Max",
    ("sysctl", "-n", "hw.physicalcpu"): "12",
    ("sysctl", "-n", "hw.perflevel0.name"): "Performance",
    ("sysctl", "-n", "hw.perflevel0.physicalcpu"): "8",
    ("sysctl", "-n", "hw.perflevel1.name"): "Efficiency",
    ("sysctl", "-n", "hw.perflevel1.physicalcpu"): "4",
    ("sysctl", "-n", "iogpu.wired_limit_mb"): "0",
    ("sysctl", "-n", "vm.swapusage"): "total = 2048.00M  used = 512.25M  free = 1535.75M",
    ("pmset", "-g"): "System-wide power settings:\n lowpowermode         1\n sleep 1",
}


def test_the_facts_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS prints them; and what is not known does not keep the others from being told."""

    def output(*command: str) -> str:
        if command not in MAC:
            raise ValueError(f"{command[0]} does not say")
        return MAC[command]

    monkeypatch.setattr(machine_facts, "_output", output)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(
        machine_facts, "this_machine", lambda: machine_facts.Machine(2**36, 60 * 2**30, 2**35)
    )
    found = machine_facts.look()
    monkeypatch.undo()
    lines = dict(report.machine_lines(found))
    assert lines["processor"] == "Apple M2 Max, 12 cores (8 performance, 4 efficiency)"
    assert lines["the GPU may hold"] == "34.4 GB"
    assert lines["iogpu.wired_limit_mb"] == "0 (as macOS sets itself)"
    assert (lines["swap in use"], lines["low power mode"]) == ("512.25M", "on")
    assert lines["system"].startswith("macOS")


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCK_BYTES", 2**16)
    found = disk.measure_folder(tmp_path, 10**6)
    assert found.nbytes >= 10**6 and min(found.one_reader, found.many_readers) > 0
    assert not [*tmp_path.iterdir()]
    (tmp_path / "a").write_bytes(bytes(70_000))
    (tmp_path / "b").write_bytes(bytes(10))
    found = disk.measure_files([tmp_path / "a", tmp_path / "b"], 10**9)
    assert found.nbytes == 70_010
    empty = attempt(lambda: disk.measure_files([], 10))
    assert empty == Unknown("there is nothing to read")
    missing = attempt(lambda: disk.measure_folder(tmp_path / "c", 10))
    assert missing == Unknown("No such file or directory")


def test_layers_of_scouts_shapes() -> None:
    found = speed.measure_decode(speed.Work(8, 8, 3))
    text = speed.scaled_scout(8).text
    assert (text.hidden_size, text.head_dim, text.num_hidden_layers) == (640, 128, 4)
    assert [kind.attention for kind in text.layers] == ["chunked"] * 3 + ["global"]
    scale_bits = 32 if DEVICE == "CPU" else 16
    # What a token takes: attention, an expert and the shared one of each layer, and the head.
    layer = 640 * (5 + 2) * 128 + 640 * 640 + 2 * 3 * 640 * 1024
    packed = (4 * layer + 2048 * 640) * (4 + 2 * scale_bits / 64) / 8
    assert found.token_bytes == pytest.approx(packed, rel=0.01)
    assert found.decode_tokens_per_second > 0 and found.prefill_tokens_per_second > 0


def finished(passed: bool) -> examine.Report:
    why = Unknown("not asked")
    result = goldens.Result("a check", "GPU", "float32", 0.5 - 0.5 * passed, 1e-3, True)
    return examine.Report(machine_facts.look(), why, why, why, why, None, [result])


def test_a_failure_is_one_line_and_exit_code_1(monkeypatch, capsys) -> None:
    monkeypatch.setattr(examine, "examine", lambda *_: finished(False))
    with pytest.raises(typer.Exit) as end:
        doctor(model=None, output=None, as_json=True)
    captured = capsys.readouterr()
    assert end.value.exit_code == 1
    errors = [line for line in captured.err.splitlines() if line.startswith("error")]
    assert errors == ["error: Failed: a check on the GPU; please report it"]
    found = json.loads(captured.out)
    assert (found["passed"], found["failures"]) == (False, ["a check on the GPU"])
    assert found["disk"] == {"unknown": "not asked"}


def test_a_report_is_written(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(examine, "examine", lambda *_: finished(True))
    file = tmp_path / "report.md"
    doctor(model=None, output=file, as_json=False)
    assert "All 1 checks passed" in file.read_text() and capsys.readouterr().out == ""
    assert [*tmp_path.iterdir()] == [file]
    for path, said in (
        (file, "is there already"),
        (tmp_path / "no" / "a.md", "there is no folder"),
    ):
        with pytest.raises(typer.Exit) as end:
            doctor(model=None, output=path, as_json=False)
        assert end.value.exit_code == 2 and said in capsys.readouterr().err


def test_a_wrong_path_is_refused_at_once() -> None:
    assert "no/such/model does not exist" in refused("doctor", "--model", "no/such/model")
