"""`mlx-llama4 chat`: a conversation in the terminal."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.markdown.answer import Answer
from mlx_llama4.cli.model_name import open_model
from mlx_llama4.cli.talk.draft_setting import Draft, Drafts, drafter
from mlx_llama4.errors import CheckpointError, InputError, Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.cli.talk.line_editor import Editor, PlainLines
    from mlx_llama4.cli.talk.talk import Look, Talk
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.tools.tool_file import ToolFile

Plain = Annotated[
    bool,
    typer.Option("--plain", help="Show answers as plain text, not as Markdown, and no pictures."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the last conversation with this model.")
]
Private = Annotated[
    bool, typer.Option("--private", help="Save neither what you type nor the conversation.")
]
StrictContext = Annotated[
    bool,
    typer.Option(
        "--strict-context",
        help="When the context is full, refuse a message instead of dropping the oldest.",
    ),
]
Tools = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.py",
        help="A Python file of functions that the model may call; you are asked each time.",
        show_default=False,
    ),
]


@terminal.reports_errors
def chat(
    model: options.Model = None,
    revision: options.Revision = None,
    no_fetch: options.NoFetch = False,
    system: options.System = None,
    resume: Resume = False,
    tools: Tools = None,
    plain: Plain = False,
    private: Private = False,
    strict_context: StrictContext = False,
    max_tokens: options.MaxTokens = 4096,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    logit_bias: options.LogitBias = None,
    stop: options.Stop = None,
    cache: options.Cache = None,
    prefill_step: options.PrefillStep = None,
    kv_bits: options.KVBits = None,
    kv_group_size: options.KVGroupSize = None,
    kv_quantize_after: options.KVQuantizeAfter = None,
    draft: Drafts = Draft.off,
    experts: options.ExpertPlace = options.Where.auto,
    expert_memory: options.ExpertMemory = None,
    page_cache: options.PageCache = True,
    trace: options.Trace = None,
    force: options.Force = False,
) -> None:
    """Chat with a model.

    Type /help for the list of commands.

    \b
    Examples:
      mlx-llama4 chat --model scout-4bit
      mlx-llama4 chat --model scout-4bit --system teacher --tools my_tools.py
    """
    terminal.import_mlx()
    from mlx_llama4.chat.loading import limit_to_memory
    from mlx_llama4.cli.sampling import parse_logit_biases, parse_stops
    from mlx_llama4.cli.talk.talk import Talk, kept_at_the_end, say_dropped
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.planning.admission import Task
    from mlx_llama4.prompt.fetch import Fetching

    caching = options.Caching(prefill_step, kv_bits, kv_group_size, kv_quantize_after)
    placing = options.expert_options(experts, expert_memory, page_cache)
    folder = open_model(model, revision, keep=not private)
    settings = GenerationSettings(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        logit_bias=parse_logit_biases(folder, logit_bias),
        stop=parse_stops(stop),
        draft=drafter(draft),
    )
    tool_file = _open_tools(tools)
    chat_options = options.chat_options(folder, system, settings, caching)
    if not strict_context:
        chat_options.on_dropped = say_dropped
    if tool_file is not None:
        chat_options.tools = tool_file.definitions
    if resume:
        cache = _last_session(folder, cache)
    held = options.open_cache(cache, folder, chat_options).tokens if cache is not None else None
    task = Task(held, kv=chat_options.kv_quantization, span=prefill_step, grows=True)
    placement = options.place_model(folder, task, placing, force=force)
    if not force:
        limit_to_memory(chat_options, folder, placement, held or 0)
    with options.loaded_chat(folder, chat_options, placement, trace) as conversation:
        conversation.processor.fetching = Fetching(allowed=not no_fetch)
        look, typed = _look(plain, conversation.processor.picture_bytes)
        keeps = sys.stdin.isatty() and not private
        talk = Talk(conversation, look, keeps_session=keeps, keeps_pictures=not private)
        lines = _lines(talk, private)
        if tool_file is not None:
            from mlx_llama4.cli.talk.tool_consent import Consent

            talk.consent = Consent(tool_file, lines.ask, terminal.note)
        _greet(talk, tool_file)
        if cache is not None:
            _take_up(talk, cache, resume)
        with kept_at_the_end(talk), _experts_warm(talk):
            _leave_on_signals()
            _converse(talk, lines, typed)


def _open_tools(path: Path | None) -> "ToolFile | None":
    if path is None:
        return None
    from mlx_llama4.tools.tool_file import ToolFile

    return ToolFile.open(path)


def _last_session(folder: "ModelFolder", cache: Path | None) -> Path:
    """Return the newest session that is not damaged."""
    from mlx_llama4.cache.prompt_file import PromptFile
    from mlx_llama4.cli.talk.state_files import sessions_of

    if cache is not None:
        raise InputError("--resume and --cache both say where to go on; leave one out")
    for session in sessions_of(folder.identity.model):
        try:
            PromptFile(session)
        except CheckpointError:
            terminal.note(f"{session} is damaged; trying the one before")
        else:
            return session
    raise InputError(f"no conversation with {folder.path} is kept; leave out --resume")


def _look(plain: bool, picture_bytes: int) -> tuple["Look", str]:
    """Find out how to show things here. Returns that, and what was typed in the meantime."""
    from mlx_llama4.cli.talk.line_editor import can_edit
    from mlx_llama4.cli.talk.talk import Look

    if plain or not can_edit():
        return Look(), ""
    from mlx_llama4.cli.talk import preview

    detected = preview.detect()
    typed = detected.typed.decode(errors="ignore").translate(terminal.CONTROLS)
    protocol = detected.protocol
    if protocol is None:
        return Look(markdown=True), typed

    def show(image: "PromptImage") -> None:
        from mlx_llama4.prompt.picture_file import open_picture

        if image.source is None:  # from the clipboard, if no file could be written
            return
        with contextlib.suppress(Llama4Error):
            picture = open_picture(image.source, most_bytes=picture_bytes)
            shown = preview.picture(picture.reduced(*preview.MOST_SIZE), protocol)
            print(shown.removesuffix("\n"), flush=True)  # escape sequences, of our own

    return Look(markdown=True, preview=show), typed


def _lines(talk: "Talk", private: bool) -> "Editor | PlainLines":
    from mlx_llama4.cli.talk import line_editor, state_files
    from mlx_llama4.cli.talk.commands import completions

    if not line_editor.can_edit():
        return line_editor.PlainLines()
    folder = None if private else state_files.made_folder()
    history = None if folder is None else folder / "history"

    def attach_clipboard() -> None:
        try:
            talk.attachments.attach_clipboard()
        except Llama4Error as error:
            terminal.note(f"error: {error}")

    editor = line_editor.Editor(history, talk.status, completions, attach_clipboard)
    talk.edit = editor.read
    return editor


def _take_up(talk: "Talk", path: Path, resume: bool) -> None:
    """Continue from a file, and show the end of its conversation."""
    from mlx_llama4.chat.conversation import questions
    from mlx_llama4.cli.talk.facts import counted

    tokens = talk.resume(path) if resume else talk.load(path)
    if not resume:
        terminal.aside(f"[{path}: {tokens:,} tokens]")
        options.warn_without_checksums(path)
        return
    asked = questions(talk.chat.messages)
    terminal.aside(f"[resumed: {counted(len(asked), 'question')}, {tokens:,} tokens]")
    options.warn_without_checksums(path)
    if not sys.stdout.isatty():
        return
    content = talk.chat.messages[asked[-1]]["content"]
    text = content if isinstance(content, str) else content[-1].get("text", "")
    terminal.aside(f"> {text}".translate(terminal.CONTROLS))
    with Answer(talk.look.markdown) as answer:
        answer.write(talk.chat.messages[-1]["content"])


def _greet(talk: "Talk", tool_file: "ToolFile | None") -> None:
    if sys.stdin.isatty():
        name = talk.chat.name
        pictures = "" if talk.chat.processor.tiler is None else "drop pictures here; "
        terminal.aside(
            f"{name}: up to {talk.chat.context:,} tokens. /help lists what can be typed; "
            f"{pictures}Ctrl-D leaves."
        )
        if tool_file is not None:
            terminal.aside(f"tools: {', '.join(tool_file.names)}; you are asked before each call.")


def _converse(talk: "Talk", lines: "Editor | PlainLines", typed: str) -> None:
    from mlx_llama4.cli.talk.commands import is_command, run_command

    while not talk.is_over and (text := _read(lines, typed)) is not None:
        typed = ""
        try:
            if is_command(text):
                run_command(talk, text)
            else:
                talk.say(text)
        except Llama4Error as error:
            terminal.note(terminal.wrapped(f"error: {error}"))
        except KeyboardInterrupt:
            terminal.aside("[stopped]")
        except OSError:  # of the terminal itself
            raise
        except Exception as error:
            terminal.unexpected(error)
        if talk.look.markdown and not talk.is_over:
            terminal.note("")  # so that turns are easy to tell apart


def _read(lines: "Editor | PlainLines", typed: str) -> str | None:
    """Read the user's next message; None at the end of input. Ctrl-C twice in a row leaves."""
    for last in (False, True):
        try:
            return lines.read("" if last else typed)
        except KeyboardInterrupt:
            if not last:
                terminal.note("[Ctrl-C again, or Ctrl-D, leaves]")
    raise typer.Exit(terminal.INTERRUPTED)


def _leave_on_signals() -> None:
    """On a signal to end, or when the terminal closes, leave as by /quit and keep the session."""

    def leave(number: int, frame: object) -> None:
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)  # let the session be saved undisturbed
        if number == signal.SIGHUP:  # nobody is left to write to
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.dup2(nowhere, sys.stderr.fileno())
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


@contextlib.contextmanager
def _experts_warm(talk: "Talk") -> Iterator[None]:
    """Read experts from the disk while the user types the first message."""
    expert_cache = talk.chat.model.expert_cache
    if expert_cache is None or not sys.stdin.isatty():
        yield
        return
    expert_cache.warm()
    try:
        yield
    finally:
        expert_cache.stop_warming()  # a read while Python exits would end in a traceback
