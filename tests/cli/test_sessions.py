"""What a chat leaves for the next one, and what --resume makes of it."""

import signal
from pathlib import Path

import pytest

from mlx_llama4.cli.chat import _last_session
from mlx_llama4.cli.talk import state_files
from mlx_llama4.cli.talk.commands import run_command
from mlx_llama4.cli.talk.line_editor import _history
from mlx_llama4.cli.talk.talk import Talk, kept_at_the_end
from mlx_llama4.errors import InputError
from mlx_llama4.opening import open_folder


def test_sessions_are_kept_and_resumed(talk: Talk, said, monkeypatch: pytest.MonkeyPatch) -> None:
    model = talk.chat.identity.model
    with kept_at_the_end(talk):
        pass
    assert state_files.sessions_of(model) == []  # nothing was said
    with pytest.raises(SystemExit), kept_at_the_end(talk):
        talk.say("My name is Ada.")
        raise SystemExit(143)
    (kept,) = state_files.sessions_of(model)
    assert kept.parent.stat().st_mode & 0o077 == 0
    talk.chat.reset()
    assert talk.resume(kept) == talk.used
    assert talk.keep() is None  # nothing new
    talk.say("What is 7 plus 5?")
    assert talk.chat.statistics.cached_tokens > 20
    (later,) = [talk.keep()]
    assert state_files.sessions_of(model) == [later] != [kept]
    for _ in range(state_files.KEPT_SESSIONS + 1):
        talk._resumed = None
        talk.say("Hello")
        talk.keep()
    assert len(state_files.sessions_of(model)) == state_files.KEPT_SESSIONS
    newest, second, _ = state_files.sessions_of(model)
    sizes = newest.stat().st_size + second.stat().st_size
    monkeypatch.setattr(state_files, "KEPT_BYTES", sizes)
    state_files.drop_old_sessions(model)
    assert state_files.sessions_of(model) == [newest, second]
    monkeypatch.setattr(state_files, "KEPT_BYTES", 0)
    state_files.drop_old_sessions(model)
    assert state_files.sessions_of(model) == [newest]
    talk.keeps_session = False
    talk.say("Hello")
    assert talk.keep() is None


def test_another_conversation_leaves_the_resumed_session(talk: Talk, said, tmp_path: Path) -> None:
    talk.say("My name is Ada.")
    first = talk.keep()
    talk.chat.save(tmp_path / "other.safetensors")
    for line in ("/reset", f"/load {tmp_path / 'other.safetensors'}"):
        talk.resume(first)
        run_command(talk, line)
        talk.say("What is 7 plus 5?")
        talk.keep()
        assert first.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_session_is_kept_whoever_wants_to_end(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    save = talk.chat.save

    def interrupted(path: Path) -> int:
        signal.raise_signal(number)
        return save(path)

    monkeypatch.setattr(talk.chat, "save", interrupted)
    before = signal.getsignal(number)
    with kept_at_the_end(talk):
        talk.say("Hello")
    assert len(state_files.sessions_of(talk.chat.identity.model)) == 1
    assert signal.getsignal(number) is before


def test_state_is_for_the_user_alone(talk: Talk) -> None:
    made = state_files.made_folder("sessions")
    assert made.stat().st_mode & 0o077 == made.parent.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_read(tmp_path: Path) -> None:
    history = _history(tmp_path)  # a folder
    assert history.load_history_strings() == []
    history.store_string("Hello")


def test_a_session_that_cannot_be_kept(
    talk: Talk, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with kept_at_the_end(talk):
        talk.say("Hello")
    assert said() == ("Hello! How can I help you?\n", "")


def test_a_damaged_session_is_passed_over(talk: Talk, said, demo_folder: Path) -> None:
    kept = []
    for _ in range(2):
        talk.say("Hello")
        kept.append(talk.keep())
    said()
    assert _last_session(open_folder(demo_folder), None) == kept[1]
    kept[1].write_bytes(kept[1].read_bytes()[:5000])
    assert _last_session(open_folder(demo_folder), None) == kept[0]
    assert said()[1] == f"{kept[1]} is damaged; trying the one before\n"
    kept[0].write_bytes(b"")
    with pytest.raises(InputError, match=r"no conversation with .* is kept; leave out --resume"):
        _last_session(open_folder(demo_folder), None)


@pytest.mark.parametrize("is_there", [False, True])
def test_only_its_owner_reads_the_history(tmp_path: Path, is_there: bool) -> None:
    file = tmp_path / "history"
    if is_there:  # of an older version
        file.touch(mode=0o644)
    _history(file).store_string("My name is Ada.")
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(_history(file).load_history_strings()) == ["My name is Ada."]
