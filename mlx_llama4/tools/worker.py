"""`python -m mlx_llama4.tools.worker FD`: describe a user's tool file, or call a function of it.

It runs in its own process, so a tool that prints, crashes or hangs does not disturb the chat. The
request comes as JSON on standard input, which is then empty for the tool. The answer is a line of
JSON on file descriptor FD, because tools print to standard output.
"""

import hashlib
import io
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx_llama4.tools.definitions import DefinitionError, define, functions_of
from mlx_llama4.tools.schemas import annotations_of, to_python

MODULE = "mlx_llama4_tool_file"
MAX_CHARACTERS = 20_000  # in a result, since models read all of it


def main() -> None:
    answers = int(sys.argv[1])
    os.set_inheritable(answers, False)
    request = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    answer = _answer(request)
    sys.stdout.flush()
    with os.fdopen(answers, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(answer) + "\n")


def shortened(text: str) -> str:
    """Cut a text that is too long for a model, and say how long it was."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return (
        f"{text[:MAX_CHARACTERS]}\n[cut: the first {MAX_CHARACTERS:,} of {len(text):,} characters]"
    )


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    try:
        source = path.read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        # The user allowed the file as it was; a tool may write files, even its own.
        if digest != request.get("digest", digest):
            return {"error": f"{path.name} has changed since it was opened; start the chat again"}
        module = _load(path, source)
        if "call" not in request:
            return {"definitions": define(module), "digest": digest}
        return _call(module, **request["call"])
    except (DefinitionError, OSError) as failure:
        return {"error": str(failure)}


def _load(path: Path, source: bytes) -> ModuleType:
    """Run the file as a module. Raises DefinitionError if it fails."""
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except SyntaxError as failure:
        where = f", line {failure.lineno}" if failure.filename == str(path) else ""
        raise DefinitionError(f"it is not valid Python{where}: {failure.msg}") from None
    except BaseException as failure:  # sys.exit() too
        lines = [frame.lineno for frame in traceback.extract_tb(failure.__traceback__)
                 if frame.filename == str(path)]  # fmt: skip
        where = f" in line {lines[-1]}" if lines else ""
        raise DefinitionError(f"it fails{where}: {_in_words(failure)}") from None
    return module


def _call(module: ModuleType, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = functions_of(module)[name]
    annotations = annotations_of(function)
    try:
        given = {key: to_python(value, annotations[key]) for key, value in arguments.items()}
        value = function(**given)
        return {"result": None if value is None else shortened(_as_text(value))}
    except BaseException as failure:  # tell the model, whatever it is
        return {"error": shortened(_in_words(failure))}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _in_words(failure: BaseException) -> str:
    said = str(failure)
    return f"{type(failure).__name__}: {said}" if said else type(failure).__name__


if __name__ == "__main__":
    main()
