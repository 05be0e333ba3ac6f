"""`python -m benchmarks schemas FOLDER`: JSON-Schema-Test-Suite against what answers are held to.

FOLDER is a clone of https://github.com/json-schema-org/JSON-Schema-Test-Suite. Needs no model: a
tokenizer of bytes follows each of the suite's values through the grammar of its schema.
"""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

DRAFTS = ("draft7", "draft2020-12")
SPACINGS: tuple[dict[str, Any], ...] = (
    {"separators": (",", ":")}, {"separators": (", ", ": ")}, {"indent": 2}
)  # fmt: skip


@dataclass
class Outcome:
    """What became of one group: a schema, and values that fit it or do not."""

    refusal: str | None = None
    accepted: list[str] = field(default_factory=list)  # values that do not fit, by description
    rejected: int = 0  # values that do not fit
    reached: int = 0  # values that fit
    unreached: int = 0


def schemas(
    folder: Annotated[Path, typer.Argument(help="A clone of JSON-Schema-Test-Suite.")],
    list_all: Annotated[bool, typer.Option("--all", help="List each group refused.")] = False,
) -> None:
    """Try JSON-Schema-Test-Suite: what compiles, what is refused, and whether that is right."""
    for draft in DRAFTS:
        if not (folder / "tests" / draft).is_dir():
            raise typer.BadParameter(f"{folder} has no tests/{draft}")
    wrong = 0
    total, refused, crashes = Outcome(), Counter[str](), list[str]()
    groups = 0
    for name, group, outcome in _outcomes(folder):
        groups += 1
        label = f"{name}: {group['description']}"
        if outcome is None:
            crashes.append(label)
            continue
        if outcome.refusal is not None:
            refused[Path(name).stem] += 1
            if list_all:
                print(f"refused  {label}: {outcome.refusal}")
            continue
        for description in outcome.accepted:
            wrong += 1
            print(f"accepted though invalid  {label}: {description}")
        total.rejected += outcome.rejected
        total.reached += outcome.reached
        total.unreached += outcome.unreached
    for label in crashes:
        print(f"crashed  {label}")
    count = refused.total()
    print(
        f"{groups} groups: {groups - count - len(crashes)} compile, {count} refused, "
        f"{len(crashes)} crash"
    )
    print(f"invalid values: {total.rejected} rejected, {wrong} accepted")
    print(f"valid values: {total.reached} can be written, {total.unreached} cannot")
    print("refused, by the suite's file:")
    print(", ".join(f"{stem} {number}" for stem, number in refused.most_common()))
    if crashes or wrong:
        raise typer.Exit(1)


def _outcomes(folder: Path) -> Iterator[tuple[str, dict[str, Any], Outcome | None]]:
    """Each group of the suite, in a child process: None for one that killed it."""
    spawned = get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=spawned)
    try:
        for draft in DRAFTS:
            for path in sorted((folder / "tests" / draft).glob("*.json")):
                for group in json.loads(path.read_text("utf-8")):
                    outcome: Outcome | None = None
                    try:
                        outcome = pool.submit(_try_group, group).result()
                    except BrokenProcessPool:
                        pool = ProcessPoolExecutor(1, mp_context=spawned)
                    yield f"{draft}/{path.name}", group, outcome
    finally:
        pool.shutdown()


def _try_group(group: dict[str, Any]) -> Outcome:
    from llguidance import LLMatcher, LLTokenizer

    from mlx_llama4.errors import InputError
    from mlx_llama4.generation.grammar import _check, _source
    from mlx_llama4.generation.json_schema.prepare import prepared

    outcome = Outcome()
    tokens = LLTokenizer("byte")
    try:
        source = _source(prepared(group["schema"])[0])
        _check(source)
    except InputError as failure:
        outcome.refusal = str(failure)
        return outcome
    for test in group["tests"]:
        written = {json.dumps(test["data"], ensure_ascii=False, **one) for one in SPACINGS}
        taken = any(
            _takes(LLMatcher(tokens, source, log_level=0), text.encode()) for text in written
        )
        if test["valid"]:
            outcome.reached += taken
            outcome.unreached += not taken
        elif taken:
            outcome.accepted.append(test["description"])
        else:
            outcome.rejected += 1
    return outcome


def _takes(matcher: Any, text: bytes) -> bool:
    return all(matcher.consume_token(byte) for byte in text) and matcher.is_accepting()
