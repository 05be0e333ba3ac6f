"""Repositories of the hub on the command line, in processes of their own."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import refused, run
from tests.hub_server import NAME, TOKEN, Hub, environment


@pytest.mark.slow
def test_refusals(hub: Hub, tmp_path: Path) -> None:
    """One line from every command that takes a model, whatever is wrong with its name."""
    extra = environment(hub, tmp_path)
    commands = {
        "ask": lambda name, *more: ("ask", "x", "--model", name, *more),
        "chat": lambda name, *more: ("chat", "--model", name, *more),
        "inspect": lambda name, *more: ("inspect", name, *more),
        "convert": lambda name, *more: ("convert", name, tmp_path / "out", *more),
    }
    for command in commands.values():
        message = refused(*command("models/scuot"), **extra)
        assert "no such folder" in message and "no such repository" in message
        assert "no revision 'v9'" in refused(*command(NAME, "--revision", "v9"), **extra)
        assert "HF_HUB_OFFLINE" in refused(
            *command(NAME), code=1, **extra | {"HF_HUB_OFFLINE": "1"}
        )
    hub.gated.add(NAME)
    assert "is gated" in refused("ask", "x", MLX_LLAMA4_MODEL=NAME, **extra)
    assert not (tmp_path / "out").exists()


def test_ask(hub: Hub, tmp_path: Path, demo_folder: Path) -> None:
    """With a token, from the hub; then from the cache."""
    hub.repositories["owner/demo"] = demo_folder
    hub.gated.add("owner/demo")
    extra = environment(hub, tmp_path) | {"HF_TOKEN": TOKEN}
    for offline in ("0", "1"):
        extra["HF_HUB_OFFLINE"] = offline
        result = run("ask", "What is 7 plus 5?", "--model", "owner/demo", **extra)
        assert (result.stdout, result.stderr) == ("7 plus 5 is 12.\n", "")
    assert hub.fetched("model.safetensors") == 1


def test_convert_refuses_before_it_downloads(hub: Hub, tmp_path: Path, checkpoint: Path) -> None:
    hub.repositories["owner/source"] = checkpoint
    extra = environment(hub, tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for out, option, message in (
        (tmp_path / "out", ("--bits", 7), "7 bits are not supported"),
        (tmp_path / "out", ("--recipe", "mixed-6-3"), "recipe 'mixed-6-3' is unknown"),
        (tmp_path / "out", ("--target-size", "1MB", "--bits", 4), "chooses the bits"),
        (taken, (), "already exists"),
    ):
        assert message in refused("convert", "owner/source", out, *option, **extra)
    assert hub.requests == []


def test_inspect(hub: Hub, tmp_path: Path, checkpoint: Path) -> None:
    """Says of the repository what it says of the folder, and fetches no weights."""
    hub.repositories["owner/source"] = shutil.copytree(checkpoint, tmp_path / "source")
    extra = environment(hub, tmp_path)
    theirs = json.loads(run("inspect", "owner/source", "--json", **extra).stdout)
    ours = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert theirs.pop("folder") == "owner/source" and ours.pop("folder") == str(checkpoint)
    assert theirs == ours
    assert not any(hub.fetched(path.name) for path in checkpoint.glob("*.safetensors"))


def test_compare(hub: Hub, tmp_path: Path, demo_folder: Path) -> None:
    hub.repositories["owner/demo"] = demo_folder
    text = tmp_path / "text.txt"
    text.write_text("What is 7 plus 5?")
    options = ("--text", text, "--json")
    result = run("compare", "owner/demo", demo_folder, *options, **environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"]["max_divergence"] == 0
