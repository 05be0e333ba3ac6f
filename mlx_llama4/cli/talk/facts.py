"""Show facts about a chat: /stats, /tokens, /cache, /context."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_llama4.chat.conversation import questions
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.cli.talk.talk import Talk

BAR = 30


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def check_something_said(chat: "Chat") -> None:
    if not questions(chat.messages) and not chat.document:
        raise Llama4Error("nothing has been said yet that could be saved")


def stats(talk: "Talk", argument: str) -> None:
    from mlx_llama4.units import human_bytes

    statistics, totals = talk.chat.statistics, talk.totals
    if not totals.answers:
        raise Llama4Error("nothing has been answered yet")
    rows = [
        ("prompt", f"{statistics.prompt_tokens:,} tokens, {statistics.cached_tokens:,} of them "
         f"cached, {statistics.image_tokens:,} of pictures"),
        ("first token", _value(statistics.time_to_first_token, ".2f", "s")),
        ("reading", _value(statistics.prefill_tokens_per_second, ",.0f", "tokens/s")),
        ("answer", counted(statistics.generated_tokens, "token")),
        ("writing", _value(statistics.decode_tokens_per_second, ",.1f", "tokens/s")),
        ("peak memory", human_bytes(statistics.peak_memory_bytes)),
    ]  # fmt: skip
    if (drafts := statistics.drafts) is not None:
        drafted = counted(drafts.drafted, "token")
        rows.append(("drafts", f"{drafts.accepted:,} of {drafted} were right"))
    experts = statistics.decode_experts
    if experts is not None and (needed := experts.hits + experts.misses):
        read = human_bytes(experts.bytes_read)
        rows.append(("experts", f"{experts.hits / needed:.0%} were in memory, {read} read"))
    answers = counted(totals.answers, "answer")
    share = totals.cached_tokens / max(totals.prompt_tokens, 1)
    rows.append(
        ("in all", f"{answers}, {counted(totals.generated_tokens, 'token')} written, "
         f"{share:.0%} of {totals.prompt_tokens:,} read from the cache")
    )  # fmt: skip
    _table(rows)


def tokens(talk: "Talk", argument: str) -> None:
    chat = talk.chat
    if argument:
        count = len(chat.processor.tokenizer.encode(terminal.as_typed(argument)))
        terminal.note(counted(count, "token"))
        return
    if not chat.messages:
        raise Llama4Error("nothing has been said yet; /tokens TEXT counts a text")
    rows, before = [], 0
    for index, message in enumerate(chat.messages, start=1):
        total = chat.count_tokens(chat.messages[:index])
        rows.append((message["role"], f"{total - before:,}", _beginning(message["content"])))
        before = total
    rows.append(("in all", f"{before:,}", ""))
    _table(rows)


def cache(talk: "Talk", argument: str) -> None:
    from mlx_llama4.units import human_bytes

    chat = talk.chat
    packing = chat.options.kv_quantization
    rows = [
        ("this conversation", f"{len(chat.cache.ids):,} tokens, "
         f"{human_bytes(sum(array.nbytes for array in chat.cache.arrays))}"),
        ("packed", f"to {packing.bits} bits, in the global layers" if packing else "no"),
        ("earlier beginnings", f"{human_bytes(chat.prefixes.nbytes)} of at most "
         f"{human_bytes(chat.options.prefix_bytes)}"),
        ("pictures", human_bytes(chat.features.nbytes)),
    ]  # fmt: skip
    _table(rows)


def context(talk: "Talk", argument: str) -> None:
    chat, used = talk.chat, talk.used
    model = chat.model.config.text.max_position_embeddings
    limit = "the model" if chat.context == model else "this machine's memory"
    filled = min(used * BAR // chat.context, BAR)
    parts: dict[str, int] = {}
    before = 0
    for index, message in enumerate(chat.messages, start=1):
        total = chat.count_tokens(chat.messages[:index])
        parts[message["role"]] = parts.get(message["role"], 0) + total - before
        before = total
    terminal.note(
        terminal.wrapped(
            f"{'█' * filled}{'░' * (BAR - filled)} {used:,} of {chat.context:,} tokens "
            f"({used / chat.context:.1%}), as {limit} allows"
        )
    )
    if chat.document:
        terminal.note("with a document, which stays when questions are dropped")
    names = {"system": "system prompt", "user": "questions", "assistant": "answers",
             "ipython": "results of tools"}  # fmt: skip
    _table([(names.get(role, role), f"{count:,}") for role, count in parts.items()])


def _value(value: float | None, form: str, unit: str) -> str:
    return "unknown" if value is None else f"{value:{form}} {unit}"


def _beginning(content: str | list) -> str:
    if isinstance(content, str):
        text = content
    else:
        text = " ".join(p["text"] if p["type"] == "text" else "[picture]" for p in content)
    text = " ".join(text.split()).translate(terminal.CONTROLS)
    return text if len(text) <= 50 else text[:49] + "…"


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{first:{widths[0]}}", *rest[:-1], rest[-1]]
        if len(cells) == 3:
            cells[1] = f"{cells[1]:>{widths[1]}}"
        terminal.note(terminal.wrapped("  ".join(cells).rstrip()))
