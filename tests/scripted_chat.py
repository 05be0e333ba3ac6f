"""`mlx-llama4` with answers that are known beforehand: `scripted_chat.py ANSWERS.json chat …`

Only the choice of tokens is scripted; the model reads, caches, and is interrupted as ever. Answers
are taken in turn; one that contains HOLD waits there until the file `go` appears in the current
folder. After the last answer the model speaks for itself.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_llama4.chat import chat
from mlx_llama4.generation.generate import Step
from mlx_llama4.generation.sampler import greedy

HOLD = "⏸"


def command(folder: Path, *answers: str) -> tuple[str, ...]:
    """What to run in `folder` in place of `mlx-llama4`."""
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    return sys.executable, "-P", __file__, "answers.json"


def main(answers: list[str], arguments: list[str]) -> None:
    generate = chat.stream_generate
    send = chat.Chat._answer
    script: Iterator[int] = iter(())

    def scripted(self, messages, on_prefill, on_picture):
        nonlocal script
        if answers:
            script = _tokens(self, answers.pop(0))
        return send(self, messages, on_prefill, on_picture)

    def choose(logits: mx.array) -> mx.array:
        token = next(script, None)
        return greedy(logits) if token is None else mx.array([token])

    chat.Chat._answer = scripted

    def stream_generate(*given: object, **options: object) -> Iterator[Step]:
        *others, settings = given
        return generate(*others, replace(settings, sampler=choose), **options)

    chat.stream_generate = stream_generate

    from mlx_llama4.cli.main import app

    app(arguments, prog_name="mlx-llama4")


def _tokens(conversation: chat.Chat, answer: str) -> Iterator[int]:
    tokenizer = conversation.processor.tokenizer
    for number, part in enumerate(answer.split(HOLD)):
        while number and not Path("go").exists():
            time.sleep(0.01)
        yield from tokenizer.encode(part)
    yield min(conversation.processor.end_tokens)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2:])
