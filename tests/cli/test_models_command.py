"""Which models are here, which is the default, and what the short names lead to."""

import json
import shutil
from pathlib import Path

import pytest

from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import HubError, InputError
from mlx_llama4.hub.released import RELEASES, full_name
from mlx_llama4.hub.repository import find_folder
from mlx_llama4.planning.machine import GIB, Machine, mac
from tests.commands import run_here

QUESTION = "What is 7 plus 5?"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder and a state of its own, and an empty hub's cache."""
    for name in ("XDG_STATE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "HF_HUB_CACHE"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def on(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr("mlx_llama4.planning.machine.this_machine", lambda: machine)


def listed() -> dict:
    result = run_here("models", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    result = run_here(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_nothing_here(here: Path) -> None:
    lines = run_here("models").stdout.splitlines()
    assert lines[0].startswith("No Llama 4 model that runs is here.")
    assert lines[-1].strip() == "mlx-llama4 demo -o demo-8bit"
    assert listed() == {"default": None, "models": []}


def test_folders_here_and_folders_used_before(here: Path, demo_folder: Path) -> None:
    shutil.copytree(CHECKPOINT, "source")
    Path("other").mkdir()
    Path("other", "config.json").write_text('{"model_type": "another"}')
    Path("broken").mkdir()
    Path("broken", "config.json").write_text("{")
    assert [model["name"] for model in listed()["models"]] == ["source"]
    assert run_here("models").stdout.splitlines()[-1].startswith("Next: mlx-llama4 convert source")
    run_here("ask", QUESTION, "-m", demo_folder)
    found = {model["name"]: model for model in listed()["models"]}
    assert {name: model["state"] for name, model in found.items()} == {
        "source": "not converted",
        str(demo_folder): "in memory",
    }
    assert found[str(demo_folder)]["nbytes"] > 10**6
    page = run_here("models").stdout
    assert f"Next: mlx-llama4 chat --model {demo_folder}" in page
    assert "8 bits" in page and "MB" in page


def test_private_chats_are_not_remembered(here: Path, demo_folder: Path) -> None:
    run_here("chat", "--private", "-m", demo_folder, text=f"{QUESTION}\n")
    assert listed()["models"] == []


def test_incomplete_and_too_large(
    here: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_folder, "whole")
    shutil.copytree(demo_folder, "part")
    config = json.loads(Path("part", "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    for name in ("no_rope_layers", "moe_layers", "layer_types"):
        config["text_config"].pop(name, None)
    Path("part", "config.json").write_text(json.dumps(config))
    shutil.copytree(demo_folder, "damaged")
    shard = next(Path("damaged").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:1000])
    on(monkeypatch, Machine(10**6, 10**6, None))
    states = {model["name"]: model["state"] for model in listed()["models"]}
    assert states == {"damaged": "incomplete", "part": "incomplete", "whole": "too large"}


def test_models_of_the_hubs_cache(here: Path, demo_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "HF_HUB_CACHE" / "models--owner--name" / "snapshots" / ("0" * 40)
    shutil.copytree(demo_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (model,) = listed()["models"]
    assert (model["name"], model["from_hub"]) == ("owner/name", True)
    assert "owner/name  (in the hub's cache)" in run_here("models").stdout


def test_the_default_model(here: Path, demo_folder: Path) -> None:
    assert "no model is named" in refused("ask", QUESTION)
    said = run_here("models", "--default", demo_folder)
    assert (said.returncode, said.stderr) == (0, f"Default: {demo_folder}\n")
    assert run_here("ask", QUESTION).stdout == "7 plus 5 is 12.\n"
    page = run_here("models").stdout
    assert "(default)" in page and page.splitlines()[-1] == "Next: mlx-llama4 chat"
    run_here("models", "--default", "none")
    assert "mlx-llama4 demo -o demo-8bit" in refused("chat")


def test_a_default_is_found_from_elsewhere(
    here: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_folder.parent)
    run_here("models", "--default", demo_folder.name)
    monkeypatch.chdir(here)
    assert run_here("ask", QUESTION).stdout == "7 plus 5 is 12.\n"


def test_defaults_that_are_not_there(here: Path) -> None:
    assert "there is no model folder of that name" in refused("models", "--default", "nowhere")
    assert listed()["default"] is None


def test_a_state_file_that_cannot_be_read_is_as_none(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "XDG_STATE_HOME" / "mlx-llama4"
    folder.mkdir(parents=True)
    for text in ("", "[]", '{"seen": 3}', '{"seen": [1, "x"], "default": 4}', "\udcff"):
        (folder / "models.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert listed() == {"default": None, "models": []}


def test_short_names_lead_to_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_name("scout") == RELEASES["scout"].ready_made
    assert full_name("maverick", "convert") == RELEASES["maverick"].original
    assert full_name("owner/name") == "owner/name"
    Path("scout").mkdir()
    assert full_name("scout") == "scout"
    assert find_folder("scout") == Path("scout")


@pytest.mark.parametrize(("typed", "meant"), [("scuot", "scout"), ("mavrick", "maverick")])
def test_misspelt_releases(here: Path, typed: str, meant: str) -> None:
    assert refused("ask", QUESTION, "-m", typed).endswith(f"; did you mean {meant}?\n")
    assert "did you mean" not in refused("ask", QUESTION, "-m", "nowhere")


def test_an_unfinished_conversion_is_no_model(here: Path, demo_folder: Path) -> None:
    """Its tensors have their sizes already, and zeros where nothing is written yet."""
    shutil.copytree(demo_folder, "out.partial")
    Path("out.partial", "conversion.journal").write_text("{}\n")
    for command in (("ask", QUESTION, "-m"), ("inspect",), ("plan",)):
        assert "is an unfinished conversion; repeat the convert" in refused(*command, "out.partial")
    assert [model["state"] for model in listed()["models"]] == ["incomplete"]


def test_a_release_is_taken_ready_made_where_it_fits(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, revision: str | None) -> Path:
        asked.append(name)
        raise HubError("no network")

    monkeypatch.setattr("mlx_llama4.hub.repository.download_side_files", download)
    on(monkeypatch, mac(128 * GIB))
    said = run_here("ask", QUESTION, "-m", "scout").stderr.splitlines()
    assert asked == [RELEASES["scout"].ready_made]
    assert said[0].startswith(f"scout: {RELEASES['scout'].ready_made}, downloaded once")
    assert said[1:] == ["error: no network"]
    run_here("convert", "scout", "out")
    assert asked[1:] == [RELEASES["scout"].original]


def test_a_release_leads_to_convert_where_fewer_bits_fit(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, mac(64 * GIB))
    result = run_here("chat", "--model", "scout")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: 64 GB: Scout in 3 bits, up to 253K tokens; convert it first: "
        "mlx-llama4 convert scout scout-3bit --bits 3 --while-downloading\n"
    )
    on(monkeypatch, mac(8 * GIB))
    result = run_here("chat", "--model", "scout")
    assert result.returncode == 2
    assert "8 GB: too little for Scout in 4 bits, which needs 16 GB at least" in result.stderr


def test_unwritable_state(here: Path, tmp_path: Path, demo_folder: Path) -> None:
    (tmp_path / "XDG_STATE_HOME").write_text("a file")
    assert run_here("ask", QUESTION, "-m", demo_folder).returncode == 0
    message = refused("models", "--default", demo_folder)
    assert "cannot write" in message and issubclass(HubError, InputError)
