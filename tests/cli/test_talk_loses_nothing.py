"""Commands of the chat lose no conversation that nobody gave up."""

import errno
import os
from pathlib import Path

import pytest

from mlx_llama4.cli.talk.commands import COMMANDS, LOSING, run_command
from mlx_llama4.cli.talk.talk import Talk
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import Llama4Error


def test_a_suggestion_costs_nothing(talk: Talk) -> None:
    """Whoever types what is suggested keeps the conversation."""
    for typed in (
        "/resume",
        "/rest",
        "/rset",
        "/resett",
        "/und",
        "/quitt",
        "/ndo",
        "/reste",
        "/clea",
        "/laod",
        "/edti",
    ):
        with pytest.raises(Llama4Error) as raised:
            run_command(talk, typed)
        assert not any(f"mean {name}?" in str(raised.value) for name in LOSING)
    assert set(LOSING) <= set(COMMANDS)


def test_another_conversation_is_never_replaced_unasked(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    talk.say("Hello")
    run_command(talk, f"/save {path}")
    talk.say("What is 7 plus 5?")
    run_command(talk, f"/save {path}")  # the same conversation goes on in its file
    kept = path.read_bytes()
    run_command(talk, "/reset")
    talk.say("What is a llama?")
    for typed in (path, f'"{path}"'):
        with pytest.raises(Llama4Error, match=r"kept is there already; /save .*kept! replaces it"):
            run_command(talk, f"/save {typed}")
    assert path.read_bytes() == kept
    run_command(talk, f"/save {path}!")
    assert path.read_bytes() != kept
    run_command(talk, "/fork")  # goes on by itself
    talk.say("Hello")
    with pytest.raises(Llama4Error, match="is there already"):
        run_command(talk, f"/save {path}")
    run_command(talk, f"/load {path}")
    talk.say("Hello")
    run_command(talk, f"/save {path}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Llama4Error, match="is there already"):
        run_command(talk, f"/save {tmp_path / 'notes.txt'}")


def test_two_exports_share_their_pictures(talk: Talk, tmp_path: Path) -> None:
    talk.say(f"What is in the image? {PICTURES / 'star.png'}")
    run_command(talk, f"/export {tmp_path / 'talk.md'}")
    folder = tmp_path / "talk-pictures"
    run_command(talk, f"/export {tmp_path / 'talk.json'}")
    assert [path.name for path in folder.iterdir()] == ["1.png"]
    assert '"talk-pictures/1.png"' in (tmp_path / "talk.json").read_text()
    (tmp_path / "talk.json").unlink()
    (folder / "1.png").write_bytes(b"another")  # of the same name
    run_command(talk, f"/export {tmp_path / 'talk.json'}")
    assert '"talk-pictures/2.png"' in (tmp_path / "talk.json").read_text()
    assert (folder / "1.png").read_bytes() == b"another"
    (tmp_path / "other-pictures").mkdir()  # a folder that is no export's
    with pytest.raises(Llama4Error, match="other-pictures is there already"):
        run_command(talk, f"/export {tmp_path / 'other.md'}")


def test_an_export_that_fails_takes_back_only_its_own(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.say(f"What is in the image? {PICTURES / 'star.png'}")
    run_command(talk, f"/export {tmp_path / 'talk.md'}")
    talk.say(f"What is in the image? {PICTURES / 'two.png'}")
    before = {path.name: path.read_bytes() for path in (tmp_path / "talk-pictures").iterdir()}

    def full(*arguments: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Llama4Error, match="No space left"):
        run_command(talk, f"/export {tmp_path / 'talk.json'}")
    after = {path.name: path.read_bytes() for path in (tmp_path / "talk-pictures").iterdir()}
    assert after == before and not (tmp_path / "talk.json").exists()
