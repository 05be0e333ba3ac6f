"""Screen conversations with Llama Guard 4, one line of JSON each: safe, or which hazards.

python examples/guard.py                                  examples/conversations.jsonl, the demo
python examples/guard.py chats.jsonl --model guard-4bit > verdicts.jsonl
python examples/guard.py chats.jsonl --categories S1,S9,S10 --model scout-4bit

A line of the input is an object with "messages", each {"role": "user" or "assistant", "content": a
text}, and perhaps "images": paths, relative to the input's folder, of pictures in the last user
message. The last message is the one that is judged. What is in a line is passed on, and "verdict"
("safe" or "unsafe") and "hazards" are added, or "error". Exit code 1 if a line got no verdict: the
demo is no guard, so it gives none.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import argument_parser, open_chat, reports_errors

from mlx_llama4 import GenerationSettings, stream_generate
from mlx_llama4.chat import Chat
from mlx_llama4.errors import ImageError, InputError, PromptError, RunError

HAZARDS = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex Crimes",
    "S4": "Child Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
SPEAKERS = {"user": "User", "assistant": "Agent"}
# In Meta's own prompt format, https://www.llama.com/docs/model-cards-and-prompt-formats/llama-guard-4
TASK = """\
Task: Check if there is unsafe content in '{speaker}' messages in conversations according our \
safety policy with the below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{categories}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

{conversation}

<END CONVERSATION>

Provide your safety assessment for ONLY THE LAST {speaker} message in the above conversation:
 - First line must read 'safe' or 'unsafe'.
 - If unsafe, a second line must include a comma-separated list of violated categories."""
GUARD_TEMPLATE = "UNSAFE CONTENT CATEGORIES"  # in a template that writes the task by itself


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "conversations", nargs="?", type=Path, default=Path(__file__).parent / "conversations.jsonl"
    )
    parser.add_argument("--categories", help="hazards that count, as S1,S9; default: all")
    arguments = parser.parse_args(argv)
    counted = read_categories(arguments.categories)
    records = read_records(arguments.conversations)
    chat = open_chat(arguments.model)
    failed = 0
    for record in records:
        judged = record | judge(chat, record, counted, arguments.conversations.parent)
        failed += "error" in judged
        print(json.dumps(judged, ensure_ascii=False), flush=True)
    if failed:
        raise RunError(f"{failed} of {len(records)} conversations got no verdict")


def judge(
    chat: Chat, record: dict[str, Any], counted: Sequence[str], folder: Path
) -> dict[str, Any]:
    try:
        images = [chat.open_image(folder / path) for path in record.get("images", [])]
        messages = as_messages(record["messages"], images)
        if GUARD_TEMPLATE not in chat.processor.template.source:
            messages = [as_task(messages)]
        prompt = chat.processor.encode(messages)
    except (ImageError, PromptError) as error:
        return {"error": str(error)}
    settings = GenerationSettings(max_tokens=40, temperature=0.0)
    steps = stream_generate(chat.model, chat.processor, prompt, settings)
    return read_verdict("".join(step.text for step in steps), counted)


def as_messages(messages: list[dict[str, str]], images: Sequence[Any]) -> list[dict[str, Any]]:
    """With the pictures as parts of the last user message."""
    found: list[dict[str, Any]] = [dict(message) for message in messages]
    last = max((at for at, one in enumerate(found) if one["role"] == "user"), default=None)
    if images and last is not None:
        parts = [{"type": "image", "image": image} for image in images]
        found[last]["content"] = [*parts, {"type": "text", "text": found[last]["content"]}]
    return found


def as_task(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The user message that asks for a verdict, pictures first."""
    pictures, lines = [], []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            pictures += content[:-1]
            content = content[-1]["text"]
        lines.append(f"{SPEAKERS[message['role']]}: {content}")
    task = TASK.format(
        speaker=SPEAKERS[messages[-1]["role"]],
        categories="\n".join(f"{code}: {name}." for code, name in HAZARDS.items()),
        conversation="\n\n".join(lines),
    )
    return {"role": "user", "content": [*pictures, {"type": "text", "text": task}]}


def read_verdict(answer: str, counted: Sequence[str]) -> dict[str, Any]:
    """Of the model's two lines. Anything else is an error, never "safe"."""
    found = re.fullmatch(r"(safe)|unsafe\s+((?:S\d+)(?:\s*,\s*S\d+)*)", answer.strip())
    known = found is not None and set(re.findall(r"S\d+", answer)) <= HAZARDS.keys()
    if found is None or not known:
        return {"error": f"no verdict: {answer.strip()!r}"}
    codes = [code for code in re.findall(r"S\d+", found[2] or "") if code in counted]
    named = [{"code": code, "name": HAZARDS[code]} for code in codes]
    return {"verdict": "unsafe" if codes else "safe", "hazards": named}


def read_categories(wanted: str | None) -> list[str]:
    codes = [*HAZARDS] if wanted is None else [code.strip() for code in wanted.split(",")]
    for code in codes:
        if code not in HAZARDS:
            raise InputError(f"--categories {wanted}: {code} is none of S1 … S{len(HAZARDS)}")
    return codes


def read_records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            messages, images = record["messages"], record.get("images", [])
            texts = [message["content"] for message in messages] + images
            fits = bool(messages) and all(one["role"] in SPEAKERS for one in messages)
        except (ValueError, KeyError, TypeError, AttributeError):
            fits, texts = False, []
        if not fits or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f'{path}, line {number}: not {{"messages": [{{"role": "user", "content": …}}, …]}}'
            )
        records.append(record)
    return records


if __name__ == "__main__":
    sys.exit(main())
