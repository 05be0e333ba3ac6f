"""What is typed in a chat, and what comes of it; the terminal itself is in test_chat_screens.py."""

import errno
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_llama4.chat.conversation import questions
from mlx_llama4.chat.personas import PERSONAS
from mlx_llama4.cli.chat import _converse as converse
from mlx_llama4.cli.console.progress import ReadingProgress
from mlx_llama4.cli.talk.commands import (
    COMMANDS,
    ELSEWHERE,
    completions,
    is_command,
    run_command,
)
from mlx_llama4.cli.talk.line_editor import PlainLines
from mlx_llama4.cli.talk.talk import Talk
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import InputError, Llama4Error, OutputError
from mlx_llama4.generation.settings import GenerationSettings

STAR = "From left to right: a red star."


def test_pictures_in_a_message(talk: Talk, said) -> None:
    talk.say(f"What is in the image? '{PICTURES / 'star.png'}'")
    out, notes = said()
    assert out == STAR + "\n"
    assert notes == "[star.png: 56×56 pixels, 1 tile, 7 tokens]\n"
    assert talk.attachments.pending == []
    assert talk.chat.messages[0]["content"][-1]["text"] == "What is in the image?"
    assert talk.used == talk.chat.statistics.prompt_tokens + 10
    run_command(talk, "/images")
    assert said()[1] == "1. star.png: 56×56 pixels, 1 tile, 7 tokens\n"


def test_a_picture_that_cannot_be_read_keeps_the_message_back(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="not a picture in a known format"):
        talk.say(f"What is this? {tmp_path / 'text.png'}")
    assert talk.chat.messages == []
    with pytest.raises(InputError, match="not a picture"):
        run_command(talk, f"/image {PICTURES / 'star.png'} {tmp_path / 'text.png'}")
    assert talk.attachments.pending == []  # all or none


def test_attached_pictures(talk: Talk, said) -> None:
    run_command(talk, f"/image {PICTURES / 'first.png'} {PICTURES / 'second.png'}")
    assert said()[1].count("tokens]") == 2
    two = sum(map(talk.chat.processor.image_tokens, talk.attachments.pending))
    assert talk.status().startswith(f"+ first.png, second.png: {two} tokens │ ")
    typed = f"and '{PICTURES / 'star.png'}'"
    assert talk.status(typed).startswith(f"+ first.png, second.png, star.png: {two + 7} tokens │ ")
    assert talk.status(typed[:-4]).startswith("+ first.png, second.png: ")
    run_command(talk, "/images")
    assert said()[1].count("with the next message") == 2
    talk.say("Which image has a triangle?")
    assert said()[0] == "The triangle is in the second image.\n"
    run_command(talk, f"/image {PICTURES / 'star.png'}")
    run_command(talk, "/images drop")
    assert talk.attachments.pending == []
    with pytest.raises(Llama4Error, match="/images drop forgets"):
        run_command(talk, "/images 2")


def test_pictures_attached_before_the_message(talk: Talk) -> None:
    first, star = PICTURES / "first.png", PICTURES / "star.png"
    run_command(talk, f"/image {first}")
    assert talk.status(f"{star} {first}").startswith("+ first.png, star.png: ")
    text = talk.attachments.take_from(f"Compare {star} with {first}, please")
    assert text == "Compare image 2 with image 1, please"
    assert [image.source for image in talk.attachments.pending] == [first, star]


def test_retry_undo_edit(talk: Talk, said) -> None:
    talk.say("What is 7 plus 5?")
    run_command(talk, "/retry")
    assert said()[0] == "7 plus 5 is 12.\n" * 2
    with pytest.raises(Llama4Error, match="nothing can be edited here; give the text"):
        run_command(talk, "/edit")
    run_command(talk, "/edit What is 2 plus 3?")
    assert said()[0] == "2 plus 3 is 5.\n"
    talk.edit = lambda text: text.replace("2", "4")
    run_command(talk, "/edit")
    assert said()[0] == "4 plus 3 is 7.\n"
    talk.edit = lambda text: None
    run_command(talk, "/edit")
    assert said() == ("", "[nothing changed]\n")
    with pytest.raises(Llama4Error, match="pictures stay as they are"):
        run_command(talk, f"/edit What is this? {PICTURES / 'star.png'}")
    run_command(talk, "/undo")
    assert (talk.chat.messages, talk.used) == ([], 0)
    with pytest.raises(Llama4Error, match="takes a number"):
        run_command(talk, "/undo x")
    with pytest.raises(Llama4Error, match="nothing has been asked"):
        run_command(talk, "/undo")


def test_forks(talk: Talk, said) -> None:
    talk.say("My name is Ada.")
    run_command(talk, "/fork")
    talk.say("What is 7 plus 5?")
    assert len(questions(talk.chat.messages)) == 2
    assert "fork 2 of 2" in talk.status()
    run_command(talk, "/fork 1")
    assert len(questions(talk.chat.messages)) == 1
    assert talk.chat.cache.layers[0].offset == talk.used
    with pytest.raises(Llama4Error, match="no fork 3; there are 2"):
        run_command(talk, "/fork 3")


def test_system_prompts(talk: Talk, said, tmp_path: Path) -> None:
    run_command(talk, "/system")
    notes = said()[1]
    assert all(name in notes for name in PERSONAS) and notes.endswith("now         none\n")
    run_command(talk, "/system Talk like a pirate, in words of the sea, always")
    assert said()[1] == '[system prompt: "Talk like a pirate, in words of the …"]\n'
    run_command(talk, "/system none")
    talk.say("What is 7 plus 5?")
    said()
    run_command(talk, "/system teacher")
    again = "what was said is read again with the next message"
    assert said()[1] == f"[system prompt: teacher; {again}]\n"
    assert talk.chat.messages[0] == {"role": "system", "content": PERSONAS["teacher"]}
    (tmp_path / "s.txt").write_text("Be brief.\n")
    run_command(talk, f"/system @{tmp_path / 's.txt'}")
    assert talk.chat.options.system == talk.chat.messages[0]["content"] == "Be brief."
    assert talk.used == talk.chat.count_tokens(talk.chat.messages)
    talk.say("What is 7 plus 5?")
    assert talk.chat.statistics.cached_tokens <= 3  # the rest was read anew
    run_command(talk, "/system none")
    assert talk.chat.messages[0]["role"] == "user"
    with pytest.raises(InputError, match="cannot read the system prompt"):
        run_command(talk, "/system @/nowhere.txt")


def test_settings(talk: Talk, said) -> None:
    run_command(talk, "/set temperature 0.7")
    run_command(talk, "/set seed 3")
    run_command(talk, "/set max_tokens 2")
    run_command(talk, "/set stop xyz")
    assert (talk.settings.temperature, talk.settings.seed) == (0.7, 3)
    assert (talk.settings.max_tokens, talk.settings.stop) == (2, ("xyz",))
    talk.say("Hello")
    assert "[stopped after 2 tokens; /set max_tokens allows more]" in said()[1]
    run_command(talk, "/set")
    assert "temperature         0.7\n" in said()[1]
    for line, message in (
        ("/set warmth 1", "there is no setting warmth"),
        ("/set temperature hot", "temperature takes a number, not 'hot'"),
        ("/set top_p 2", "must be above 0 and at most 1"),
        ("/set top_k 1.5", "takes a whole number"),
        ("/undo " + "9" * 5000, "takes a number"),
        ("/fork " + "9" * 5000, "there is no fork"),
        ("/set max_tokens 0", "must be 1 or more"),
        ("/set repeat_penalty 1.1", r"did you mean repetition_penalty\?"),
        ("/set warmth", "there is no setting warmth"),
        ("/set draft yes", "draft is off or ngram, not 'yes'"),
    ):
        with pytest.raises(Llama4Error, match=message):
            run_command(talk, line)
    expected = GenerationSettings(max_tokens=2, temperature=0.7, seed=3, stop=("xyz",))
    assert talk.settings == expected.resolved(talk.chat.processor.defaults)
    said()
    for line in ("/set temperature", "/set stop", "/set top_k=7", "/set parameter min_p 0.1"):
        run_command(talk, line)
    assert said()[1] == "[temperature 0.7]\n[stop xyz]\n[top_k 7]\n[min_p 0.1]\n"
    run_command(talk, "/set seed none")
    run_command(talk, "/set stop none")
    assert (talk.settings.seed, talk.settings.stop) == (None, ())


def test_drafts(talk: Talk, said) -> None:
    run_command(talk, "/set draft ngram")
    run_command(talk, "/set draft")
    assert said()[1] == "[draft ngram]\n[draft ngram]\n"
    talk.say("Hello")
    talk.say("Hello")
    said()
    run_command(talk, "/stats")
    assert "drafts       8 of 16 tokens were right\n" in said()[1]
    run_command(talk, "/set draft off")
    talk.say("Hello")
    said()
    run_command(talk, "/stats")
    assert "drafts" not in said()[1]


def test_facts(talk: Talk, said) -> None:
    for line in ("/stats", "/tokens"):
        with pytest.raises(Llama4Error, match="nothing has been"):
            run_command(talk, line)
    talk.say(f"Describe the image. {PICTURES / 'star.png'}")
    said()
    run_command(talk, "/stats")
    assert "10 tokens\n" in said()[1]
    run_command(talk, "/tokens")
    rows = said()[1].splitlines()
    assert rows[0].startswith("user") and rows[0].endswith("[picture] Describe the image.")
    assert rows[-1].split()[-1] == str(talk.chat.count_tokens(talk.chat.messages))
    run_command(talk, "/tokens Hello there")
    assert said()[1] == f"{len(talk.chat.processor.tokenizer.encode('Hello there'))} tokens\n"
    run_command(talk, "/context")
    assert f"{talk.used} of 32,768 tokens" in said()[1]
    run_command(talk, "/cache")
    assert f"{len(talk.chat.cache.ids)} tokens" in said()[1]


def test_what_was_not_answered_is_not_counted(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.say("Hello")
    talk.say("What is 7 plus 5?")
    run_command(talk, "/undo")
    totals, used = replace(talk.totals), talk.used
    talk.chat.options.max_context = used + 10
    with pytest.raises(Llama4Error, match="the prompt has"):
        talk.say("What is 7 plus 5, and what is 2 plus 3, and what is 4 plus 4?")
    assert (talk.totals, talk.used) == (totals, used)
    talk.chat.options.max_context = None
    run_command(talk, "/undo")
    with pytest.raises(Llama4Error, match="nothing has been asked"):
        run_command(talk, "/retry")
    assert (talk.totals, talk.used) == (totals, 0)

    def interrupt(progress: ReadingProgress, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ReadingProgress, "update", interrupt)
    talk.chat.options.prefill_step = 4
    with pytest.raises(KeyboardInterrupt):
        talk.say("What is 7 plus 5?")
    assert (talk.totals, talk.used, talk.chat.messages) == (totals, 0, [])


def test_unknown_commands(talk: Talk) -> None:
    with pytest.raises(Llama4Error, match=r"unknown command /sav; did you mean /save\?"):
        run_command(talk, "/sav x")
    with pytest.raises(Llama4Error, match="unknown command /zzzzzz; /help lists them"):
        run_command(talk, "/zzzzzz")
    for name, advice in ELSEWHERE.items():
        with pytest.raises(Llama4Error) as raised:
            run_command(talk, name)
        assert str(raised.value) == f"unknown command {name}; {advice}"


def test_names_that_other_chats_have(talk: Talk, said) -> None:
    run_command(talk, "/?")
    assert said()[1].startswith("/help")
    talk.say("My name is Ada.")
    run_command(talk, "/clear")
    assert talk.chat.messages == []
    for name in ("/bye", "/exit", "exit", "quit "):
        talk.is_over = False
        run_command(talk, name)
        assert talk.is_over


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ('one\n"""two\n\nthree""" \nfour\n', ["one", "two\n\nthree", "four"]),
        ('"""one\ntwo\n', ["one\ntwo"]),  # never closed
        ('""""""\n"""\n', ["", ""]),
    ],
)
def test_lines_without_an_editor(
    monkeypatch: pytest.MonkeyPatch, typed: str, messages: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    lines = PlainLines()
    assert [*iter(lines.read, None)] == messages


def test_what_is_a_command() -> None:
    for text in ("/quit", "/?", "/save x y", "/unknown", "exit", "quit "):
        assert is_command(text)
    for text in ("/Users/ada/x.png what?", "/tmp/x", "quit it", " /quit", "/", "/2", "//x", "/?x"):
        assert not is_command(text)


def test_completion() -> None:
    assert "/save " in completions("/sa")
    assert "temperature " in completions("/set te")
    assert "teacher" in completions("/system te")
    assert completions("/image /tm") is completions("see /tm") is completions("/tmp/x") is None


def test_help_names_all_commands(talk: Talk, said) -> None:
    run_command(talk, "/help")
    notes = said()[1]
    assert all(command.usage in notes for command in COMMANDS.values())


def test_export(talk: Talk, said, tmp_path: Path) -> None:
    picture = shutil.copy(PICTURES / "star.png", tmp_path / "my star.png")
    with pytest.raises(Llama4Error, match="nothing has been said yet"):
        run_command(talk, f"/export {tmp_path / 'a.md'}")
    talk.say(f"What is in the image? '{picture}'")
    for suffix in ("md", "json"):
        run_command(talk, f"/export {tmp_path / 'talk'}-{suffix}.{suffix}")
        copied = tmp_path / f"talk-{suffix}-pictures" / "1.png"
        assert copied.read_bytes() == Path(picture).read_bytes()
    markdown = (tmp_path / "talk-md.md").read_text()
    assert "![56×56 pixels](talk-md-pictures/1.png)\n\nWhat is in the image?" in markdown
    assert markdown.endswith(f"## Answer\n\n{STAR}\n")
    written = json.loads((tmp_path / "talk-json.json").read_text())["messages"]
    assert written[1] == {"role": "assistant", "content": [{"type": "text", "text": STAR}]}
    assert written[0]["content"][0]["path"] == "talk-json-pictures/1.png"
    Path(picture).unlink()
    said()
    run_command(talk, f"/export {tmp_path / 'later.md'}")
    assert "1 pictures are gone" in said()[1]
    with pytest.raises(OutputError, match="is there already"):
        run_command(talk, f"/export {tmp_path / 'later.md'}")
    with pytest.raises(InputError, match=r"must end in \.md or \.json"):
        run_command(talk, f"/export {tmp_path / 'later.txt'}")
    for name in ("nowhere/x", "n" * 300):
        with pytest.raises(Llama4Error, match="cannot write"):
            run_command(talk, f"/export {tmp_path / name}.md")


def test_an_export_that_fails_leaves_nothing(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.say(f"What is in the image? {PICTURES / 'star.png'}")

    def full(temporary: Path, text: str, encoding: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    folder = tmp_path / "new"
    folder.mkdir()
    with pytest.raises(Llama4Error, match=r"cannot write .*: No space left"):
        run_command(talk, f"/export {folder / 'a.md'}")
    assert [*folder.iterdir()] == []


def test_save_and_load(talk: Talk, said, tmp_path: Path) -> None:
    talk.say(f"What is in the image? {PICTURES / 'star.png'}")
    path = tmp_path / "kept.safetensors"
    run_command(talk, f"/save {path}")
    run_command(talk, "/reset")
    said()
    run_command(talk, f"/load {path}")
    assert said()[1] == f"[{path}: {talk.used} tokens]\n"
    run_command(talk, "/images")
    assert said()[1].startswith("1. star.png: ")
    talk.say("Describe the image.")
    assert talk.chat.statistics.cached_tokens > 30
    assert said()[0] == STAR + "\n"
    talk.chat.options.max_context = 20
    with pytest.raises(Llama4Error, match="there is room for 20 here"):
        run_command(talk, f"/load {path}")
    (tmp_path / "it's kept").write_bytes(path.read_bytes())
    talk.chat.options.max_context = None
    for name in ("it's kept", r"it\'s\ kept", '"it\'s kept"'):
        typed = f'"{tmp_path / name[1:]}' if name.startswith('"') else tmp_path / name
        run_command(talk, f"/load {typed}")
    for line in ("/save", "/load", "/export"):
        with pytest.raises(Llama4Error, match="give the name of a file"):
            run_command(talk, line)


def test_what_should_not_happen_does_not_end_the_chat(
    talk: Talk, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("the sky fell")

    monkeypatch.setattr(talk, "retry", broken)
    monkeypatch.setattr("sys.stdin", io.StringIO("/retry\nWhat is 7 plus 5?\n"))
    converse(talk, PlainLines(), "")
    out, notes = said()
    assert out == "7 plus 5 is 12.\n"
    assert notes.splitlines()[0] == "error: unexpected ZeroDivisionError: the sky fell"
