"""The commands of a chat, one function each."""

import contextlib
import difflib
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.chat.personas import PERSONAS
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.talk import facts as chat_facts
from mlx_llama4.cli.talk.attachments import facts_of, name_of
from mlx_llama4.cli.talk.settings import NAMES, set_value, shown_value, shown_values
from mlx_llama4.cli.talk.system_prompt import read_system
from mlx_llama4.cli.talk.talk import Talk
from mlx_llama4.errors import Llama4Error

COMMAND = re.compile(r"/(?:[A-Za-z]+|\?)(?=\s|$)")
NUMBER = re.compile(r"[0-9]{1,9}")
FENCED = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command that can be typed in a chat."""

    run: Callable[[Talk, str], None]  # gets the rest of the line, stripped
    usage: str
    help: str


def is_command(text: str) -> bool:
    """Is this a command? A path also begins with a slash, but has another. A lone "exit" or "quit"
    counts too.
    """
    return COMMAND.match(text) is not None or text.strip() in ("exit", "quit")


def run_command(talk: Talk, text: str) -> None:
    """Run a command. Raises Llama4Error if it cannot be done."""
    name, argument = (*text.split(maxsplit=1), "")[:2]
    command = COMMANDS.get(OTHER_NAMES.get(name, name))
    if command is None:
        # Who types what was suggested should lose nothing by it.
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.6)
        is_safe = near and near[0] not in LOSING
        advice = f"did you mean {near[0]}?" if is_safe else "/help lists them"
        raise Llama4Error(f"unknown command {name}; {ELSEWHERE.get(name, advice)}")
    command.run(talk, argument.strip())


def completions(before: str) -> Iterable[str] | None:
    """Completions of the last word of a line up to the cursor; None: complete it as a path."""
    if "\n" in before or not before.startswith("/"):
        return None
    words = before.split(" ")
    if len(words) == 1:
        return None if "/" in before[1:] else [f"{name} " for name in COMMANDS]
    if len(words) == 2:
        return {"/set": [f"{name} " for name in NAMES], "/system": list(PERSONAS)}.get(words[0])
    return None


def _help(talk: Talk, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        terminal.note(terminal.wrapped(f"{command.usage:{width}}  {command.help}"))
    terminal.note(
        terminal.wrapped(
            'Enter sends; Alt-Enter, or """ before and after, makes several lines; Tab completes.\n'
            "Ctrl-R looks for what was typed before; Ctrl-X Ctrl-E opens $EDITOR, then sends.\n"
            "Paths and URLs of pictures in a message, typed, pasted or dropped, attach them.\n"
            "Ctrl-C stops an answer and keeps what is there."
        )
    )


def _image(talk: Talk, argument: str) -> None:
    if argument:
        talk.attachments.attach_named(argument)
    else:
        talk.attachments.attach_clipboard()


def _images(talk: Talk, argument: str) -> None:
    from mlx_llama4.prompt.messages import image_parts

    pending = talk.attachments.pending
    if argument == "drop":
        terminal.aside(f"[{chat_facts.counted(len(pending), 'picture')} dropped]")
        pending.clear()
        return
    if argument:
        raise Llama4Error("/images lists the pictures, /images drop forgets those attached")
    said = [part["image"] for part in image_parts(talk.chat.messages)]
    if not said and not pending:
        raise Llama4Error("there are no pictures yet; attach one with /image PATH")
    for number, image in enumerate([*said, *pending], start=1):
        facts = facts_of(image, talk.chat.processor.image_tokens(image))
        waiting = ", with the next message" if number > len(said) else ""
        terminal.note(f"{number}. {name_of(image)}: {facts}{waiting}")


def _system(talk: Talk, argument: str) -> None:
    from mlx_llama4.chat.conversation import questions

    if not argument:
        for name, text in PERSONAS.items():
            terminal.note(terminal.wrapped(f"{name:10}  {text}"))
        terminal.note(terminal.wrapped(f"{'now':10}  {talk.chat.options.system or 'none'}"))
        return
    talk.chat.set_system(None if argument == "none" else read_system(argument))
    talk.recount()
    is_name = argument == "none" or argument in PERSONAS or argument.startswith("@")
    shown = argument if is_name else f'"{textwrap.shorten(argument, 40, placeholder=" …")}"'
    said = questions(talk.chat.messages)
    again = "; what was said is read again with the next message" if said else ""
    terminal.aside(f"[system prompt: {shown}{again}]".translate(terminal.CONTROLS))


def _set(talk: Talk, argument: str) -> None:
    if not argument:
        terminal.note(shown_values(talk))
        return
    words = argument.removeprefix("parameter ")  # as in ollama
    name, _, value = re.sub(r"^(\w+)\s*[=\s]\s*", r"\1 ", words.strip()).partition(" ")
    if value:
        set_value(talk, name, value)
    terminal.aside(f"[{name} {shown_value(talk, name)}]")


def _retry(talk: Talk, argument: str) -> None:
    talk.retry(terminal.as_typed(argument) if argument else None)


def _edit(talk: Talk, argument: str) -> None:
    from mlx_llama4.chat.conversation import before

    if not argument:
        if talk.edit is None:
            raise Llama4Error("nothing can be edited here; give the text: /edit TEXT")
        last = talk.chat.messages[len(before(talk.chat.messages, 1))]["content"]
        text = last if isinstance(last, str) else last[-1].get("text", "")
        argument = talk.edit(text) or ""
    if argument.strip():
        talk.retry(terminal.as_typed(argument))
    else:
        terminal.aside("[nothing changed]")


def _undo(talk: Talk, argument: str) -> None:
    if argument and not NUMBER.fullmatch(argument):
        raise Llama4Error(f"/undo takes a number, not {argument!r}")
    talk.chat.rewind(int(argument or 1))
    talk.recount()
    left = chat_facts.counted(len(talk.chat.messages), "message")
    terminal.aside(f"[{left} left]")


def _fork(talk: Talk, argument: str) -> None:
    if argument:
        if not NUMBER.fullmatch(argument) or not 1 <= int(argument) <= len(talk.forks):
            raise Llama4Error(f"there is no fork {argument}; there are {len(talk.forks)}")
        talk.turn_to(int(argument))
    else:
        talk.forks.append(talk.chat.fork())
        talk.turn_to(len(talk.forks))
    number = talk.forks.index(talk.chat) + 1
    terminal.aside(f"[in fork {number} of {len(talk.forks)}; /fork N goes to another]")


def _save(talk: Talk, argument: str) -> None:
    from mlx_llama4.units import human_bytes

    path = _path(argument.removesuffix("!"), "/save FILE")
    chat_facts.check_something_said(talk.chat)
    nbytes = talk.save(path, replace=argument.endswith("!"))
    tokens = len(talk.chat.cache.ids)
    terminal.aside(f"[{path}: {tokens:,} tokens, {human_bytes(nbytes)}]")


def _load(talk: Talk, argument: str) -> None:
    path = _path(argument, "/load FILE")
    tokens = talk.load(path)
    terminal.aside(f"[{path}: {tokens:,} tokens]")


def _export(talk: Talk, argument: str) -> None:
    from mlx_llama4.cli.talk.export import export

    path = _path(argument, "/export FILE.md or /export FILE.json")
    chat_facts.check_something_said(talk.chat)
    missing = export(talk.chat.messages, path)
    lost = f", {missing} pictures are gone from where they were" if missing else ""
    count = chat_facts.counted(len(talk.chat.messages), "message")
    terminal.aside(f"[{path}: {count}{lost}]")


def _copy(talk: Talk, argument: str) -> None:
    from mlx_llama4.cli.talk.clipboard import copy_text

    text = talk.chat.reply.text
    if argument == "code":
        blocks = FENCED.findall(text)
        if not blocks:
            raise Llama4Error("the last answer has no block of code")
        text = blocks[-1][1]
    elif argument:
        raise Llama4Error("/copy takes the last answer, /copy code its last block of code")
    terminal.aside(f"[{len(text):,} characters copied, {copy_text(text)}]")


def _reset(talk: Talk, argument: str) -> None:
    talk.reset()
    terminal.aside("[conversation forgotten]")


def _quit(talk: Talk, argument: str) -> None:
    talk.is_over = True


def _path(argument: str, usage: str) -> Path:
    """The path as typed, blanks included; with quotes or backslashes, read as a shell would."""
    if not argument:
        raise Llama4Error(f"give the name of a file: {usage}")
    if set("'\"\\").intersection(argument) and not os.path.lexists(argument):
        with contextlib.suppress(ValueError):  # an unclosed quote is part of the name
            words = shlex.split(argument)
            argument = words[0] if len(words) == 1 else argument
    path = Path(argument)
    with contextlib.suppress(RuntimeError):  # "~nobody"
        path = path.expanduser()
    return path


COMMANDS = {
    "/help": Command(_help, "/help", "this list"),
    "/image": Command(_image, "/image [PATH …]", "attach pictures; without PATH the clipboard's"),
    "/images": Command(_images, "/images [drop]", "list them; or forget those attached"),
    "/system": Command(
        _system, "/system [TEXT|@FILE|NAME]", "another system prompt; alone lists personas"
    ),
    "/set": Command(_set, "/set [NAME VALUE]", f"how to answer: {', '.join(NAMES)}"),
    "/retry": Command(_retry, "/retry [TEXT]", "answer the last message again, or TEXT instead"),
    "/edit": Command(_edit, "/edit [TEXT]", "change the last message, then answer it"),
    "/undo": Command(_undo, "/undo [N]", "forget the last message and its answer, or N of them"),
    "/fork": Command(_fork, "/fork [N]", "go on in a copy; go to copy N"),
    "/save": Command(_save, "/save FILE", "keep the conversation with all that was read"),
    "/load": Command(_load, "/load FILE", "go on from such a file"),
    "/export": Command(_export, "/export FILE", "write it as .md or .json, with its pictures"),
    "/stats": Command(chat_facts.stats, "/stats", "speed and memory of the last answer"),
    "/tokens": Command(chat_facts.tokens, "/tokens [TEXT]", "how many the messages, or TEXT, take"),
    "/cache": Command(chat_facts.cache, "/cache", "what is kept of what was read"),
    "/context": Command(chat_facts.context, "/context", "how full the context is, and of what"),
    "/copy": Command(_copy, "/copy [code]", "the last answer, or its last code, to the clipboard"),
    "/reset": Command(_reset, "/reset", "forget the conversation and the pictures attached"),
    "/quit": Command(_quit, "/quit", "leave; so do Ctrl-D, and Ctrl-C twice"),
}

# Commands that people know from other chats.
OTHER_NAMES = {
    **dict.fromkeys(("/bye", "/exit", "exit", "quit"), "/quit"),
    "/clear": "/reset",
    "/?": "/help",
}
LOSING = ("/reset", "/undo", "/quit", "/load")  # they drop something of the conversation
ELSEWHERE = {
    "/model": "leave, and start with another --model",
    "/show": "see /set, /system, /stats and /context",
    "/tools": "tools are given at the start: chat --tools FILE.py",
    "/resume": "/load FILE reads what /save wrote; chat --resume goes on with the last one",
}
