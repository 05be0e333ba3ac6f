"""Read what the user types: in an editor with history and completion on a terminal, otherwise line
by line.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT, CONTINUED = "> ", "  "
QUOTES = '"""'
LAST_WORD = re.compile(r"(?:\\.|[^\s\\])*\\?$")  # a blank after a backslash is part of it


class PlainLines:
    """Reads each line as a message, or several between triple quotes. Prompts only on terminals."""

    def __init__(self) -> None:
        self._prompt = sys.stdin.isatty() and sys.stdout.isatty()

    def read(self, text: str = "") -> str | None:
        """Read the next message; None at the end of input. `text` cannot be edited here."""
        line = self._line(PROMPT)
        if line is None:
            return None
        lines = [line]
        if is_open(line):
            while (line := self._line(CONTINUED)) is not None:
                lines.append(line)
                if line.rstrip().endswith(QUOTES):
                    break
        return unquoted("\n".join(lines))

    def ask(self, question: str) -> str:
        """Ask, and read what is typed after that. Raises EOFError if nobody can answer."""
        if not self._prompt:
            raise EOFError
        terminal.forget_typed()
        return input(question)

    def _line(self, prompt: str) -> str | None:
        try:
            return input(prompt if self._prompt else "")
        except EOFError:
            if self._prompt:
                terminal.note("")
            return None
        except KeyboardInterrupt:
            terminal.note("")
            raise


class Editor:
    """prompt_toolkit's editor. Enter sends, Alt-Enter begins a new line."""

    def __init__(
        self,
        history: Path | None,
        status: Callable[[str], str],
        complete: Callable[[str], Iterable[str] | None],
        on_picture: Callable[[], None],
    ):
        """history: a file; None keeps nothing.
        status: makes the bottom line from what is typed so far.
        complete: completes the last word of a command; None completes it as a path.
        on_picture: called on Ctrl-V.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.styles import Style

        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUED,
            history=InMemoryHistory() if history is None else _history(history),
            completer=_completer(complete),
            complete_while_typing=False,
            enable_open_in_editor=True,
            enable_suspend=True,
            bottom_toolbar=lambda: status(self._session.default_buffer.text),
            key_bindings=_keys(on_picture),
            style=Style.from_dict({"bottom-toolbar": "noreverse italic"}),
        )

    def read(self, text: str = "") -> str | None:
        """Read the next message, starting from `text`; None at the end of input."""
        try:
            return unquoted(self._session.prompt(default=text))
        except EOFError:
            return None

    def ask(self, question: str) -> str:
        """Ask, and read what is typed after that."""
        from prompt_toolkit import prompt
        from prompt_toolkit.input.typeahead import clear_typeahead

        clear_typeahead(self._session.input)
        terminal.forget_typed()
        return prompt(question)


def is_open(text: str) -> bool:
    """Do triple quotes begin the text without ending it?"""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def unquoted(text: str) -> str:
    """The text without its triple quotes, if it has them."""
    stripped = text.strip()
    if not stripped.startswith(QUOTES):
        return text
    return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")


def can_edit() -> bool:
    """Is this a terminal whose cursor can be moved?"""
    return (
        sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", None)
    )


def _history(path: Path) -> "FileHistory":
    from prompt_toolkit.history import FileHistory

    class ForgivingHistory(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return [*super().load_history_strings()]
            except OSError:  # it may belong to another user
                return []

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk must not end the conversation
                path.touch(mode=0o600)  # what is typed is the user's alone
                path.chmod(0o600)
                super().store_string(string)

    return ForgivingHistory(str(path))


def _keys(on_picture: Callable[[], None]) -> "KeyBindings":
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    in_message = has_focus(DEFAULT_BUFFER)  # not in the search of Ctrl-R

    @keys.add("enter", filter=in_message)
    def _(event: "KeyPressEvent") -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=in_message)
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-v")
    def _(event: "KeyPressEvent") -> None:
        run_in_terminal(on_picture)

    return keys


def _completer(complete: Callable[[str], Iterable[str] | None]) -> "Completer":
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class CommandsAndPaths(Completer):
        def get_completions(
            self, document: Document, event: "CompleteEvent"
        ) -> Iterator["Completion"]:
            before = document.text_before_cursor
            last = LAST_WORD.search(before)
            word = last[0] if last else ""
            choices = complete(before)
            if choices is not None:
                for choice in choices:
                    if choice.startswith(word):
                        yield Completion(choice, start_position=-len(word))
            elif word:
                path = Document(re.sub(r"\\(.)", r"\1", word))
                with contextlib.suppress(OSError, ValueError):
                    for found in paths.get_completions(path, event):
                        # A folder is shown with its slash but completed without it.
                        slash = "/" if found.display_text.endswith("/") else ""
                        rest = re.sub(r"([\s\\'\"()])", r"\\\1", found.text) + slash
                        yield Completion(rest, found.start_position, found.display)

    return CommandsAndPaths()
