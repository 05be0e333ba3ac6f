"""A conversation in a terminal: send messages, show answers, keep the session."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.markdown.answer import Answer
from mlx_llama4.cli.talk import state_files
from mlx_llama4.cli.talk.attachments import Attachments, facts_of, name_of
from mlx_llama4.errors import Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.cli.talk.tool_consent import Consent
    from mlx_llama4.generation.generate import Statistics
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.prompt.messages import Message


@dataclass
class Totals:
    """Totals over all answers since the chat began."""

    answers: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class Look:
    """How to show things."""

    markdown: bool = False
    preview: Callable[["PromptImage"], None] | None = None  # shows a picture; None: cannot


@dataclass
class Talk:
    """A conversation in a terminal, with its forks."""

    chat: "Chat"  # the current one of `forks`
    look: Look = field(default_factory=Look)
    consent: "Consent | None" = None
    keeps_session: bool = True
    keeps_pictures: bool = True  # those that have no file of their own
    edit: Callable[[str], str | None] | None = None  # None: nothing can be edited here
    totals: Totals = field(default_factory=Totals)
    is_over: bool = False

    def __post_init__(self) -> None:
        self.forks = [self.chat]
        self.attachments = self._attachments()
        self._resumed: Path | None = None
        self.used = 0  # tokens that the conversation takes
        self._kept: list[Message] = []
        # Files that hold an earlier state of a conversation here, which may go on in them.
        self._saved: dict[Path, Chat] = {}
        self.recount()

    def say(self, text: str) -> None:
        """Send a message with the pictures named in it or attached, and show the answer."""
        text = self.attachments.take_from(terminal.as_typed(text))
        spoken = list(self.chat.messages)
        if not text.strip() and not self.attachments.pending:
            return
        try:
            self._show(
                lambda answer: self.chat.send(
                    text, self.attachments.pending, answer.on_prefill, answer.on_picture
                )
            )
        finally:
            # Dropped questions may leave as many messages as there were.
            if self.chat.messages != spoken:
                self.attachments.pending.clear()

    def retry(self, text: str | None = None) -> None:
        """Answer the last message again, or `text` in its place; its own pictures stay.

        Raises Llama4Error if the new text names pictures.
        """
        if text is not None:
            self.attachments.refuse_in(text)
        self._show(lambda answer: self.chat.retry(text, answer.on_prefill, answer.on_picture))

    def _show(self, begin: Callable[[Answer], Iterator[str]]) -> None:
        """Show an answer while it is generated; run the tools it calls, and show what follows."""
        # Show calls as plain text, because Markdown would interpret some of their characters.
        literal = "[{<" if self.consent is not None else ""
        while True:
            former = self.chat.statistics
            try:
                with (
                    terminal.keys_unseen(),
                    Answer(self.look.markdown, literal) as answer,
                ):
                    answer.show(begin(answer))
            finally:
                self._count(former)
            self._say_if_cut_short()
            results = self._run_tools()
            if results is None:
                return

            def begin(answer: Answer, results: list[str] = results) -> Iterator[str]:
                return self.chat.give_results(results, answer.on_prefill)

    def _run_tools(self) -> list[str] | None:
        """Run the tools that the last answer calls. Returns their results; None without calls."""
        if self.consent is None:
            return None
        reply = self.chat.reply
        if reply.refused:
            terminal.aside(
                f"[no call that can be run: {reply.refused}]".translate(terminal.CONTROLS)
            )
        return self.consent.answer(reply.calls) if reply.calls else None

    def _count(self, former: "Statistics") -> None:
        """Add up the answer's statistics. former: those before it, unchanged if none has begun."""
        statistics, totals = self.chat.statistics, self.totals
        if statistics is former:
            return
        if not statistics.generated_tokens:
            self.recount()
            return
        totals.answers += 1
        totals.generated_tokens += statistics.generated_tokens
        totals.prompt_tokens += statistics.prompt_tokens
        totals.cached_tokens += statistics.cached_tokens
        self.used = statistics.prompt_tokens + statistics.generated_tokens

    def recount(self) -> None:
        """Count the tokens again after the conversation was changed, other than by an answer."""
        self.used = self.chat.count_tokens(self.chat.messages)

    def _say_if_cut_short(self) -> None:
        if self.chat.statistics.finish_reason != "length":
            return
        if self.used >= self.chat.context:
            terminal.aside("[stopped: the context is full]")
        else:
            count = self.chat.statistics.generated_tokens
            terminal.aside(f"[stopped after {count:,} tokens; /set max_tokens allows more]")

    def _attachments(self) -> Attachments:
        return Attachments(self.chat, self._show_picture, self.keeps_pictures)

    def _show_picture(self, image: "PromptImage") -> None:
        if self.look.preview is not None:
            self.look.preview(image)
        facts = facts_of(image, self.chat.processor.image_tokens(image))
        terminal.aside(f"[{name_of(image)}: {facts}]")

    @property
    def settings(self) -> "GenerationSettings":
        return self.chat.settings

    def turn_to(self, number: int) -> None:
        """Switch to a fork, counted from 1."""
        self.chat.stop()
        settings = self.settings
        self.chat = self.forks[number - 1]
        self.chat.set_settings(settings)
        pending = self.attachments.pending
        self.attachments = self._attachments()
        self.attachments.pending = pending
        self.recount()

    def status(self, typed: str = "") -> str:
        """A status line: the state of the conversation, and the pictures of the message being
        typed, as far as the window has room.
        """
        from prompt_toolkit.utils import get_cwidth

        from mlx_llama4.units import human_bytes

        statistics = self.chat.statistics
        parts = [self.chat.name, f"{self.used:,} of {self.chat.context:,} tokens"]
        if len(self.forks) > 1:
            parts.insert(1, f"fork {self.forks.index(self.chat) + 1} of {len(self.forks)}")
        if statistics.decode_tokens_per_second is not None:
            parts.append(f"{statistics.decode_tokens_per_second:.1f} tokens/s")
        if statistics.time_to_first_token is not None:
            parts.append(f"first token {statistics.time_to_first_token:.2g} s")
            parts.append(f"{statistics.cached_tokens:,} cached")
            parts.append(human_bytes(statistics.peak_memory_bytes))
        experts = statistics.decode_experts
        if experts is not None and (needed := experts.hits + experts.misses):
            parts.append(f"experts {experts.hits / needed:.0%}")
        if pictures := [*self.attachments.pending, *self.attachments.in_sight(typed)]:
            tokens = sum(map(self.chat.processor.image_tokens, pictures))
            names = ", ".join(map(name_of, pictures))
            parts.insert(0, f"+ {names}: {tokens:,} tokens")
        width = shutil.get_terminal_size().columns
        while get_cwidth(line := " │ ".join(parts)) > width and len(parts) > 1:
            parts.pop()
        return line

    def keep(self) -> Path | None:
        """Save this session for --resume, if there is anything new in it. Returns its path."""
        from mlx_llama4.chat.conversation import questions

        said = self.chat.messages
        if not self.keeps_session or not questions(said) or said == self._kept:
            return None
        if self.chat.identity is None:
            return None
        model = self.chat.identity.model
        path = state_files.new_session(model)
        if path is None:
            return None
        self.chat.save(path)
        self._kept = list(said)
        if self._resumed is not None:  # the new file continues that one
            self._resumed.unlink(missing_ok=True)
        state_files.drop_old_sessions(model)
        return path

    def save(self, path: Path, replace: bool) -> int:
        """Write the conversation to a file. Returns how many bytes it has.

        Raises Llama4Error if the file is there and holds something else than an earlier state of
        this conversation, unless `replace` is set.
        """
        if path.is_file() and self._saved.get(path.resolve()) is not self.chat and not replace:
            raise Llama4Error(f"{path} is there already; /save {path}! replaces it")
        nbytes = self.chat.save(path)
        self._saved[path.resolve()] = self.chat
        return nbytes

    def _forget_saved(self) -> None:
        """What is said from here on is another conversation."""
        self._saved = {path: chat for path, chat in self._saved.items() if chat is not self.chat}

    def load(self, path: Path) -> int:
        """Continue from a file. Returns how many tokens it holds.

        Raises what `Chat.load` raises, and Llama4Error if it is longer than the context.
        """
        from mlx_llama4.cache.prompt_file import PromptFile

        tokens = PromptFile(path).tokens
        if tokens >= self.chat.context:
            raise Llama4Error(
                f"{path} has {tokens:,} tokens; there is room for {self.chat.context:,} here"
            )
        self._forget_saved()
        self.chat.load(path)
        self._saved[path.resolve()] = self.chat
        self._resumed = None
        self._kept = list(self.chat.messages)
        self.recount()
        return tokens

    def reset(self) -> None:
        """Forget the conversation and the attached pictures; a session's file stays."""
        self.chat.reset()
        self._forget_saved()
        self.attachments.pending.clear()
        self._resumed = None
        self.recount()

    def resume(self, session: Path) -> int:
        """Like `load`, but this session will replace the file when it is kept."""
        tokens = self.load(session)
        self._resumed = session
        return tokens


def say_dropped(turns: int) -> None:
    questions = "question was" if turns == 1 else f"{turns} questions were"
    terminal.aside(f"[the context is full: the oldest {questions} dropped]")


@contextlib.contextmanager
def kept_at_the_end(talk: Talk) -> Iterator[None]:
    """Keep the session at the end in any case, and tell the user how to resume it."""
    try:
        yield
    finally:
        try:
            with terminal.no_signals():
                path = talk.keep()
        except Llama4Error as error:
            terminal.note(f"error: this session could not be kept: {error}")
        else:
            if path is not None:
                terminal.aside("[kept; chat --resume goes on from here]")
