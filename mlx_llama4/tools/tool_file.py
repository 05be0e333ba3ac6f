"""A user's Python file of tools: describe them and call them.

This process never imports the file. A worker does: once to describe it, and once for each call.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_llama4.errors import InputError
from mlx_llama4.prompt.replies import ToolCall
from mlx_llama4.tools.coercion import coerced_arguments
from mlx_llama4.tools.schemas import mismatch
from mlx_llama4.tools.worker import shortened
from mlx_llama4.tools.worker_process import MAX_BYTES, Outcome, ask_worker

OPEN_SECONDS = 30.0
CALL_SECONDS = 30.0
ANSWERS = ({"error"}, {"result"}, {"definitions", "digest"})  # keys of the worker's answers


@dataclass(frozen=True)
class ToolFile:
    """A user's tools, described."""

    path: Path
    # As `Processor.encode` takes them: each is
    # {"type": "function", "function": {name, description, parameters}}, parameters a JSON schema.
    definitions: list[dict[str, Any]]
    digest: str  # of the file when it was opened; if it has changed since, it is not run

    @classmethod
    def open(cls, path: str | Path, timeout_seconds: float = OPEN_SECONDS) -> "ToolFile":
        """Describe a file's tools.

        Raises InputError if the file cannot be read, fails, or has a function without types or a
        docstring.
        """
        path = Path(path)
        if not path.is_file():
            kind = "is not a file" if path.exists() else "does not exist"
            raise InputError(f"{path} {kind}; --tools takes a Python file")
        path = path.absolute()
        try:
            outcome = ask_worker({"path": str(path)}, timeout_seconds)
        except OSError as failure:
            raise InputError(f"{path} cannot be read: {failure}") from None
        answer = _answer(outcome, timeout_seconds)
        if "error" in answer:
            raise InputError(f"{path}: {_one_line(answer['error'])}")
        return cls(path, answer["definitions"], answer["digest"])

    @property
    def names(self) -> list[str]:
        return [definition["function"]["name"] for definition in self.definitions]

    def prepared(self, call: ToolCall) -> ToolCall:
        """The call with its arguments as the tool's types mean them: 3 for 3.0 or "3"."""
        functions = {d["function"]["name"]: d["function"] for d in self.definitions}
        if call.name not in functions:
            return call
        properties = functions[call.name]["parameters"]["properties"]
        return ToolCall(call.name, coerced_arguments(call.arguments, properties))

    def check(self, call: ToolCall) -> str | None:
        """Tell the model what is wrong with a call; None if it can be run.

        The tool may be unknown, or an argument unknown, missing or of the wrong type.
        """
        call = self.prepared(call)
        functions = {d["function"]["name"]: d["function"] for d in self.definitions}
        if call.name not in functions:
            return f"error: there is no tool {call.name}; there are: {', '.join(functions)}"
        parameters = functions[call.name]["parameters"]
        properties = parameters["properties"]
        for name in call.arguments:
            if name not in properties:
                known = ", ".join(properties) or "none"
                return f"error: {call.name} has no argument {name}; its arguments: {known}"
        if missing := [name for name in parameters["required"] if name not in call.arguments]:
            return f"error: {call.name} needs the argument {missing[0]}"
        found = (mismatch(value, properties[name], name) for name, value in call.arguments.items())
        problem = next(filter(None, found), None)
        return f"error: {problem}" if problem else None

    def run(self, call: ToolCall, timeout_seconds: float = CALL_SECONDS) -> str:
        """Run a call, and return the result for the model to read.

        Strings are returned as they are, other values as JSON, followed by whatever was printed.
        Any failure is returned as a text too: "error: …".
        """
        call = self.prepared(call)
        if problem := self.check(call):
            return problem
        request = {
            "path": str(self.path),
            "digest": self.digest,
            "call": {"name": call.name, "arguments": call.arguments},
        }
        try:
            outcome = ask_worker(request, timeout_seconds)
        except OSError as failure:
            return f"error: the tool could not be started: {failure}"
        answer = _answer(outcome, timeout_seconds)
        said = f"error: {answer['error']}" if "error" in answer else answer["result"]
        texts = [text for text in (said, _printed(outcome)) if text is not None]
        # JSON can hold half a character, which is not Unicode.
        return "\n".join(texts or ["null"]).encode("utf-8", "replace").decode()


def _printed(outcome: Outcome) -> str | None:
    text = shortened(outcome.printed.decode("utf-8", "replace").rstrip("\n"))
    if outcome.dropped:
        text += f"\n[cut: {outcome.dropped:,} bytes more were printed]"
    return text if text.strip() else None


def _answer(outcome: Outcome, timeout_seconds: float) -> dict[str, Any]:
    if outcome.answer.endswith(b"\n"):
        with contextlib.suppress(ValueError):
            answer = json.loads(outcome.answer)
            if isinstance(answer, dict) and answer.keys() in ANSWERS:
                return answer
        return {"error": "the tool has written into the answer's pipe"}
    if len(outcome.answer) == MAX_BYTES:
        return {"error": f"its descriptions take more than {MAX_BYTES:,} bytes; shorten docstrings"}
    if outcome.exit_code is None:
        return {"error": f"no result within {timeout_seconds:g} seconds; it was stopped"}
    if outcome.exit_code < 0:
        return {"error": f"the tool was killed by signal {-outcome.exit_code}"}
    return {"error": f"the tool ended Python with exit code {outcome.exit_code} and no result"}


def _one_line(text: str) -> str:
    return " ".join(text.split())
