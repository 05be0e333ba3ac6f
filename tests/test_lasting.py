"""Files written by version 0.1.0: each is read to the same result, or refused in one line.

golden/v0_1/README.md says what they are. A change of format on purpose raises the version in the
file, and turns the test of its contents here into one of its refusal.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests import tiny
from tests.commands import run_here
from tests.golden.v0_1.source import (
    ASKED,
    GREEDY,
    HERE,
    QUESTIONS,
    RECIPE,
    SESSION_QUESTION,
    config,
    write_source,
)
from tests.tolerance import tolerance

EXPECTED = json.loads((HERE / "expected.json").read_text())
MODEL = HERE / "model"
SESSION = next((HERE / "state/mlx-llama4/sessions").iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "source")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of it, to be changed at will; the current folder."""
    folder = tmp_path / "v0_1"
    shutil.copytree(HERE, folder)
    monkeypatch.chdir(folder)
    return folder


def refusal(*arguments: object, code: int = 2, **more: str) -> str:
    """The one line that a command says, and does nothing."""
    result = run_here(*arguments, **more)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    (line,) = result.stderr.splitlines()
    return line


def replace(file: Path, *changes: tuple[str, str]) -> None:
    data = file.read_bytes()
    for old, new in changes:
        assert old.encode() in data
        data = data.replace(old.encode(), new.encode())
    file.write_bytes(data)


def test_the_source_is_the_same() -> None:
    """Else none of the others could tell what has changed."""
    assert tiny.fingerprint(tiny.tensors(config())) == EXPECTED["fingerprint"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers(name: str, copies: Path) -> None:
    """The model folder, its mixed packing, prompt caches and a saved conversation: the tokens are
    the same, and their log-probabilities and those of the next likeliest.
    """
    result = run_here("ask", *QUESTIONS[name], "--model", "model", *ASKED)
    answer, expected = json.loads(result.stdout), dict(EXPECTED[name])
    steps, reference = answer["logprobs"], expected.pop("logprobs")
    assert {key: answer[key] for key in expected} == expected
    assert [step["token"] for step in steps] == [step["token"] for step in reference]
    if "--cache" in QUESTIONS[name]:
        assert "has no checksums, since version 0.1.0 made it" in result.stderr
    limit = 2 * tolerance("images")  # of a logit, and of the sum that it is divided by
    for step, other in zip(steps, reference, strict=True):
        assert [one["token"] for one in step["top"]] == [one["token"] for one in other["top"]]
        ours, theirs = ([one["logprob"] for one in each["top"]] for each in (step, other))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


def test_a_session_is_resumed(copies: Path) -> None:
    chat = ("chat", "--resume", "--model", "model", *GREEDY)
    result = run_here(*chat, text=SESSION_QUESTION + "\n", XDG_STATE_HOME=str(copies / "state"))
    assert result.stdout == EXPECTED["session"]["text"]
    assert result.stderr.startswith("[resumed: 2 questions, 69 tokens]\n")


def test_what_was_typed_is_remembered() -> None:
    from prompt_toolkit.history import FileHistory

    typed = FileHistory(HERE / "state/mlx-llama4/history").load_history_strings()
    assert [*typed] == ["/quit", "What is 7 plus 5?", "My name is Ada."]


def assert_same_folder(folder: Path) -> None:
    """As 0.1.0 converted it, but for the version's name.

    Weights are the same bytes on the CPU, as long as MLX packs as it did; GPUs round otherwise.
    """
    names = sorted(path.name for path in MODEL.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        if name in ("config.json", "model.safetensors.index.json"):
            ours, theirs = (json.loads((one / name).read_text()) for one in (folder, MODEL))
            assert ours == theirs  # with the packing of each module
        elif name.endswith(".safetensors") and mx.default_device() == mx.cpu:
            assert (folder / name).read_bytes() == (MODEL / name).read_bytes(), name


def test_a_recipe_means_the_same(source: Path, tmp_path: Path) -> None:
    result = run_here("convert", source, tmp_path / "again", *RECIPE)
    assert result.returncode == 0, result.stderr
    assert_same_folder(tmp_path / "again")


def test_a_stopped_conversion_goes_on(source: Path, copies: Path) -> None:
    result = run_here("convert", source, copies / "stopped", *RECIPE)
    assert result.returncode == 0 and "by an earlier run)" in result.stderr + result.stdout
    assert_same_folder(copies / "stopped")


def test_a_torn_journal_goes_on(source: Path, copies: Path) -> None:
    """As SIGKILL leaves it; what it does not vouch for is made again."""
    journal = copies / "stopped.partial/conversion.journal"
    journal.write_bytes(journal.read_bytes()[:-40])
    shard = copies / "stopped.partial/model-00001-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000] + bytes(1000))
    result = run_here("convert", source, copies / "stopped", *RECIPE)
    assert result.returncode == 0 and "by an earlier run)" in result.stderr + result.stdout
    assert_same_folder(copies / "stopped")


@pytest.mark.parametrize("version", ["2", '"1"', "null"])
def test_a_journal_of_another_version(source: Path, copies: Path, version: str) -> None:
    journal = copies / "stopped.partial/conversion.journal"
    replace(journal, ('"version": 1}', f'"version": {version}}}'))
    before = journal.read_bytes()
    result = run_here("convert", source, copies / "stopped", *RECIPE)
    assert (result.returncode, result.stdout) == (2, "")
    _, line = result.stderr.splitlines()  # the first says what the source is
    assert "stopped.partial holds an unfinished conversion by another version" in line
    assert "--restart" in line
    assert journal.read_bytes() == before


CACHES = ("document", "document_small", "document_8bit", "conversation", "session")


def damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, "is truncated"),
        (lambda file: replace(file, ('"version":"1"', '"version":"2"')), "of version 2"),
        (lambda file: replace(file, ("mlx-llama4 prompt cache", "mlx-llama4 prompt c_che")), "is "),
        (lambda file: replace(file, ('"held"', '"hold"')), "is damaged; make it again"),
        (lambda file: replace(file, ("layers.3.", "layers.7.")), "is damaged; make it again"),
    ],
    ids=["truncated", "newer", "other", "key", "layer"],
)
@pytest.mark.parametrize("name", CACHES)
def test_other_prompt_caches(
    copies: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    file = copies / "changed.safetensors"
    shutil.copy(SESSION if name == "session" else HERE / f"{name}.safetensors", file)
    change(file)
    line = refusal("ask", "What?", "--model", "model", "--cache", file.name)
    assert line.startswith("error: changed.safetensors ") and message in line and "make" in line


def test_only_a_damaged_session_is_left(copies: Path) -> None:
    damaged(copies / SESSION.relative_to(HERE))
    state = str(copies / "state")
    result = run_here("chat", "--resume", "--model", "model", text="Hello\n", XDG_STATE_HOME=state)
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert first.endswith(f"{SESSION.name} is damaged; trying the one before")
    assert second.startswith("error: no conversation with model is kept")


def set_config(folder: Path, *path: str, value: Any) -> None:
    file = folder / "model/config.json"
    whole = config = json.loads(file.read_text())
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value
    file.write_text(json.dumps(whole))


MODULE = "language_model.model.layers.1.feed_forward.experts.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: damaged(f / "model/config.json"), "config.json is not valid JSON"),
        (lambda f: set_config(f, "model_type", value="llama5"), "llama5"),
        (lambda f: set_config(f, "quantization", "mode", value="affine2"), "mode 'affine2' is unk"),
        (lambda f: set_config(f, "quantization", "bits", value=7), "quantization: 7 bits"),
        (lambda f: set_config(f, "quantization", MODULE, "mode", value="new"), "up_proj: mode"),
        (lambda f: set_config(f, "quantization", MODULE, "bits", value=4), "up_proj"),
        (lambda f: damaged(f / "model/model-00003-of-00005.safetensors"), "00003-of-00005"),
        (lambda f: (f / "model/model-00003-of-00005.safetensors").unlink(), "00003-of-00005"),
        (lambda f: damaged(f / "model/model.safetensors.index.json"), "index.json"),
        (lambda f: damaged(f / "model/tokenizer.json"), "tokenizer.json"),
    ],
)
def test_other_model_folders(copies: Path, change: Callable[[Path], None], message: str) -> None:
    change(copies)
    line = refusal("ask", "What?", "--model", "model")
    assert line.startswith("error: ") and message in line
