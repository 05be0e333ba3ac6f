"""`plan`, and what ask, chat and convert refuse because it cannot fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from mlx_llama4.cli.options import place_model
from mlx_llama4.cli.plan_report import _print_reading
from mlx_llama4.config import load_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.errors import InputError
from mlx_llama4.opening import open_folder
from mlx_llama4.planning.admission import Experts, Task
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.planning.machine import GIB, Machine, mac
from mlx_llama4.planning.planner import Usage, need_of, packed_weights
from tests import tiny
from tests.commands import refused, run, run_here
from tests.hub_server import Hub, environment

MEGABYTE = 10**6


def planned(*arguments: object) -> dict:
    result = run_here("plan", *arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def run_on(machine: Machine, *arguments: object, text: str = "") -> subprocess.CompletedProcess:
    """As `run_here`, on a machine with other memory."""
    with mock.patch("mlx_llama4.planning.machine.this_machine", lambda: machine):
        return run_here(*arguments, text=text)


def small(megabytes: float) -> Machine:
    """A machine without a GPU, and with so little memory."""
    return Machine(int(megabytes * MEGABYTE), int(megabytes * MEGABYTE), None)


def refused_on(machine: Machine, *arguments: object) -> str:
    result = run_on(machine, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def test_json() -> None:
    options = ("--memory", "128GB", "--context", "1M", "--bits", 4, "--kv-bits", 8)
    plan = planned("scout", *options)
    assert set(plan) == {
        "model", "verdict", "released", "context", "context_limit", "kv_bits", "kv_group_size",
        "tiles",
        "machine", "bits", "weights", "weight_bytes", "cache", "cache_bytes_per_token",
        "activation_bytes", "dequantized_bytes", "growing_bytes", "vision_bytes", "feature_bytes",
        "total_bytes", "fits", "wired_limit_command", "streamed_experts", "machines", "choices",
    }  # fmt: skip
    assert (plan["context"], plan["context_limit"]) == (2**20, 10 * 2**20)
    assert plan["cache"] == {"global_layers": 26_112 * 2**20, "chunked_layers": 1_207_959_552}
    assert plan["cache_bytes_per_token"] == 26_112
    assert plan["dequantized_bytes"] == 2**32
    assert plan["machine"] == {"memory": 128 * GIB, "usable": 120 * GIB, "wired": 96 * GIB}
    assert sum(plan["weights"].values()) == plan["weight_bytes"]
    assert plan["fits"] == "yes" and plan["machines"] == 1
    least, default = plan["streamed_experts"]["least"], plan["streamed_experts"]["default"]
    assert least["total_bytes"] < default["total_bytes"] <= 96 * GIB
    assert (least["fits"], default["fits"]) == ("yes", "yes")
    assert least["expert_memory"] == 70_778_880 and least["share_in_memory"] == 0
    assert least["bytes_per_token"] == 48 * 70_778_880
    assert default["bytes_per_token"] == (1 - default["share_in_memory"]) * least["bytes_per_token"]
    assert least["tokens_per_second"]["3"] == 3e9 / least["bytes_per_token"]
    held = plan["weight_bytes"] + sum(plan["cache"].values()) + plan["feature_bytes"]
    in_flight = plan["activation_bytes"] + plan["dequantized_bytes"]
    assert plan["total_bytes"] == held + in_flight
    four = next(choice for choice in plan["choices"] if choice["bits"] == 4)
    assert four["total_bytes"] == plan["total_bytes"]
    contexts = [four["largest_context"][bits] for bits in ("16", "8", "4")]
    assert contexts == sorted(contexts) and contexts[0] >= 2**20


CHAT_SCOUT = "mlx-llama4 chat --model scout"
THREE_BITS = "mlx-llama4 convert scout scout-3bit --bits 3 --while-downloading"


@pytest.mark.parametrize("name", ["scout", "maverick", "behemoth"])
@pytest.mark.parametrize("memory", ["64GB", "512GB"])
def test_pages_fit_a_terminal(name: str, memory: str) -> None:
    result = run_here("plan", name, "--memory", memory, "--context", "1M", "--kv-bits", 8)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30


@pytest.mark.parametrize(
    ("arguments", "line", "command"),
    [
        (("--memory", "8GB"), "8 GB: too little for Scout in 4 bits", "mlx-llama4 demo"),
        (("--memory", "16GB"), "16 GB: Scout in 4 bits, streamed from the SSD", CHAT_SCOUT),
        (("--memory", "32GB"), "32 GB: Scout in 4 bits, streamed from the SSD", CHAT_SCOUT),
        (("--memory", "64GB"), "64 GB: Scout in 3 bits, up to 253K tokens", THREE_BITS),
        (("--memory", "96GB"), "96 GB: Scout in 4 bits, up to 597K tokens", CHAT_SCOUT),
        (
            ("--memory", "512GB"),
            "512 GB: Maverick in 4 bits, up to 1M tokens",
            "mlx-llama4 chat --model maverick",
        ),
        (("scout", "--memory", "512GB"), "512 GB: Scout in 4 bits, up to 8.5M tokens", CHAT_SCOUT),
        (
            ("scout", "--memory", "64GB", "--context", "4K"),
            "64 GB: Scout in 4 bits, up to 7K tokens",
            CHAT_SCOUT,
        ),
        (
            ("scout", "--memory", "64GB", "--context", "10M"),
            "64 GB: Scout in 3 bits, but only up to 253K tokens",
            THREE_BITS,
        ),
        (
            ("scout", "--memory", "96GB", "--bits", 5),
            "96 GB: Scout in 5 bits, up to 349K tokens",
            "mlx-llama4 convert scout scout-5bit --bits 5 --while-downloading",
        ),
    ],
)
def test_the_first_line_is_the_verdict_and_the_last_the_next_command(
    arguments: tuple[object, ...], line: str, command: str
) -> None:
    """Without a model it is about the best of the family."""
    lines = run_here("plan", *arguments).stdout.splitlines()
    assert lines[0].startswith(line)
    assert f"Next: {command}" in lines[-3:]
    verdict = planned(*arguments)["verdict"]
    assert verdict["line"] == lines[0].partition("; next: ")[0]
    assert verdict["next"] == command


def test_verdicts_of_folders(demo_folder: Path, tmp_path: Path) -> None:
    lines = run_here("plan", demo_folder, "--memory", "16GB").stdout.splitlines()
    assert lines[0].startswith(f"16 GB: {demo_folder}, up to 32K tokens")
    assert lines[-1] == f"Next: mlx-llama4 chat --model {demo_folder}"
    lines = run_here("plan", CHECKPOINT, "--memory", "16GB").stdout.splitlines()
    assert lines[-1] == f"Next: mlx-llama4 convert {CHECKPOINT} checkpoint-4bit"


def test_speeds_of_small_models_are_plain_numbers(capsys: pytest.CaptureFixture) -> None:
    default = SimpleNamespace(fit="yes", bytes_per_token=38.6e6)
    _print_reading(SimpleNamespace(default=default))
    assert "at most 78, 142, 192 tokens/s at 3, 5.5, 7.4 GB/s" in capsys.readouterr().out


def test_the_sysctl_is_named_where_it_helps() -> None:
    """In 4 bits Scout fits 64 GB, but not what the GPU may wire of it."""
    page = run_here("plan", "scout", "--memory", "64GB", "--context", "4K").stdout
    assert "fits if the limit is raised" in page
    assert page.splitlines()[-1].strip() == "sudo sysctl iogpu.wired_limit_mb=61440"
    for options in (("--memory", "64GB", "--bits", 8), ("--memory", "512GB")):
        assert "sysctl" not in run_here("plan", "scout", *options, "--context", "4K").stdout


def test_behemoth_is_not_released() -> None:
    page = run_here("plan", "behemoth", "--memory", "128GB").stdout
    for words in ("not released", "288B active", "16 experts", "about 2T", "KV cache: unknown"):
        assert words in page
    plan = planned("behemoth", "--memory", "128GB", "--bits", 8)
    assert (plan["released"], plan["cache"], plan["machines"]) == (False, None, 17)
    assert plan["weight_bytes"] == 2_125 * 10**9


def test_folders(demo_folder: Path) -> None:
    """A converted one as it is stored; one that is not as it would be."""
    options = ("--memory", "16GB", "--context", "8K")
    stored = planned(demo_folder, *options)
    assert stored["bits"] is None
    assert stored["weight_bytes"] == inspect_folder(demo_folder).nbytes
    eight = next(choice for choice in stored["choices"] if choice["bits"] == 8)
    assert eight["weight_bytes"] == stored["weight_bytes"]
    source = planned(CHECKPOINT, *options, "--bits", 8)
    assert (source["bits"], source["weights"]) == (8, stored["weights"])
    assert planned(CHECKPOINT, *options)["bits"] == 4


def test_a_folder_wins_over_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "scout")
    monkeypatch.chdir(tmp_path)
    assert planned("scout")["weight_bytes"] < 10 * MEGABYTE


def test_repositories(hub: Hub, tmp_path: Path, checkpoint: Path) -> None:
    """Of the hub: headers are enough."""
    hub.repositories["owner/source"] = shutil.copytree(checkpoint, tmp_path / "source")
    options = ("--memory", "16GB", "--context", "1K", "--json")
    result = run("plan", "owner/source", *options, **environment(hub, tmp_path))
    theirs = json.loads(result.stdout)
    assert theirs.pop("model") == "owner/source"
    ours = planned(checkpoint, *options)
    del ours["model"]
    for plan in (theirs, ours):  # these two name the model
        assert plan["verdict"].pop("line") and plan["verdict"].pop("next")
    assert theirs == ours
    assert not any(hub.fetched(path.name) for path in checkpoint.glob("*.safetensors"))


def test_without_memory_it_is_this_machine() -> None:
    page = run_here("plan", "scout", "--context", "1K").stdout
    assert "this M" in page or "this machine of" in page


def test_plans_of_releases_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mlx_llama4.cli.main import app\n"
        "app(['plan', 'maverick', '--memory', '64GB'], standalone_mode=False)\n"
        "heavy = {'mlx', 'mlx.core', 'numpy', 'tokenizers', 'huggingface_hub', 'rich.progress'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("maverick", "--context", "10M"), "Llama 4 Maverick takes at most 1,048,576 tokens"),
        (("scout", "--context", "much"), "--context much: write a number of tokens"),
        (("scout", "--memory", "much"), "'much' is not a size"),
        (("scout", "--images", 10**8), "from 0 to 10,000 pictures"),
        (("scout", "--images", -1), "from 0 to 10,000 pictures"),
        (("scout", "--bits", 7), "7 bits are not supported"),
        (("behemoth", "--bits", 7), "7 bits are not supported"),
        (("scout", "--kv-bits", 6), "--kv-bits 6: keys and values take 4 or 8 bits"),
        (("scout", "--kv-group-size", 48), "--kv-group-size 48: use 32"),
        (("scout", "--memory", "128"), "--memory 128: a Mac has more; write it with its unit"),
        (("nowhere",), "OWNER/NAME, or one of scout, maverick, guard, behemoth"),
        (("scout", "--revision", "v1"), "--revision is for repositories"),
    ],
)
def test_refusals(arguments: tuple[object, ...], message: str) -> None:
    assert message in refused("plan", *arguments)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers global, with heads so many that ten million tokens take 2.7 TB."""
    root = tmp_path_factory.mktemp("wide")
    heads = {"num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": 128}
    layers = {"num_hidden_layers": 4, "no_rope_layers": [0] * 4}
    config = tiny.config("scout", vocab_size=1019, **heads, **layers)
    config["image_token_index"] = 1018
    source = tiny.write_checkpoint(root / "source", config, tiny.tensors(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, source)
    convert(source, root / "mlx", Recipe("float32", None))
    return root / "mlx"


def test_ask_refuses_what_no_machine_here_holds(wide: Path) -> None:
    message = refused("ask", "x", "-m", wide, "--max-tokens", 10_000_000)
    assert "2.6" in message and "TB of memory for 10,000" in message
    assert "tokens would fit" in message and "--force" in message


def test_ask_and_chat_refuse_a_model_that_is_too_large(demo_folder: Path) -> None:
    for command in (("ask", "Hello", "-i", PICTURES / "star.png"), ("chat",)):
        message = refused_on(small(6), *command, "-m", demo_folder)
        assert f"{demo_folder} takes " in message and "of 6 MB available" in message
        assert "no bits a weight make it fit; --force tries anyway" in message


def test_force_tries_anyway(demo_folder: Path) -> None:
    asked = run_on(small(6), "ask", "What is 7 plus 5?", "-m", demo_folder, "--force")
    assert (asked.returncode, asked.stdout) == (0, "7 plus 5 is 12.\n")
    chatted = run_on(small(6), "chat", "-m", demo_folder, "--force", text="What is 7 plus 5?\n")
    assert (chatted.returncode, chatted.stdout) == (0, "7 plus 5 is 12.\n")


def test_what_is_wrong_with_the_folder_comes_first(tmp_path: Path) -> None:
    assert "is not converted, and takes" in refused_on(small(1), "chat", "-m", CHECKPOINT)
    assert "no config.json" in refused_on(small(1), "chat", "-m", tmp_path)


def check(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, folder: Path, context: int | None = None
) -> None:
    """With all experts in memory."""
    monkeypatch.setattr("mlx_llama4.planning.machine.this_machine", lambda: machine)
    place_model(open_folder(folder), Task(context), Experts("resident"))


def test_options_that_would_help(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million tokens, 262 KB each, and one layer of four twice."""
    with pytest.raises(InputError) as refusal:
        check(small(200_000), monkeypatch, wide, 10**6)
    for option in (" tokens would fit", "--kv-bits 8 would do"):
        assert option in str(refusal.value)
    assert "--bits" not in str(refusal.value).replace("--kv-bits", "")


def test_fewer_bits_that_would_help(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(small(1000), monkeypatch, demo_folder)
    config = load_config(demo_folder)
    six = need_of(
        config, sum(packed_weights(config, 6, 4).values()), Usage(2048, 4, fused=False)
    ).total
    with pytest.raises(InputError, match="converted with --bits 6 it would fit"):
        check(Machine(six, six, None), monkeypatch, demo_folder)
    with pytest.raises(InputError, match="converted with --bits 5 it would fit"):
        check(Machine(six, six - 1, None), monkeypatch, demo_folder)


def test_more_than_the_gpu_may_hold_is_said(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    check(mac(16 * GIB, 2 * MEGABYTE), monkeypatch, demo_folder)
    said = capsys.readouterr().err
    assert "sudo sysctl iogpu.wired_limit_mb=1024" in said and len(said.splitlines()) == 1
    check(mac(16 * GIB), monkeypatch, demo_folder)
    assert capsys.readouterr().err == ""


def test_convert_refuses_what_it_has_no_memory_for(tmp_path: Path) -> None:
    for option in ((), ("--dry-run",)):
        message = refused_on(small(50), "convert", CHECKPOINT, tmp_path / "out", *option)
        assert "converting takes about 1" in message and "of 50 MB available" in message
    message = refused_on(small(50), "convert", CHECKPOINT, tmp_path / "out", "--search")
    assert "leave out --search" in message
    assert list(tmp_path.iterdir()) == []
    result = run_on(small(50), "convert", CHECKPOINT, tmp_path / "out", "--force")
    assert result.returncode == 0 and (tmp_path / "out").is_dir()


def test_convert_says_that_the_result_cannot_run_here(tmp_path: Path, wide: Path) -> None:
    """Converting takes 130 MB, and running what it makes more."""
    folder = wide.with_name("source")
    told = run_on(small(190), "convert", folder, tmp_path / "out", "--bits", 16, "--dry-run")
    assert told.returncode == 0
    notes = told.stderr.splitlines()
    assert len(notes) == 1 and notes[0].startswith("The result takes "), notes
    quiet = run_on(small(2000), "convert", folder, tmp_path / "out", "--bits", 16, "--dry-run")
    assert (quiet.returncode, quiet.stderr) == (0, "")
