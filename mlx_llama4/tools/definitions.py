"""Describe the functions of a tool file in the form that chat templates take."""

import inspect
import re
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any

from mlx_llama4.tools.schemas import annotations_of, schema_of

ARGUMENTS_SECTION = re.compile(r"^(?:Args|Arguments|Parameters):\s*$", re.MULTILINE)
SECTION = re.compile(r"^\w[\w ]*:\s*$", re.MULTILINE)
ARGUMENT = re.compile(r"^(\s+)\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


class DefinitionError(Exception):
    """Says in one line which function cannot be a tool, and what to add."""


def functions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a file offers, in order: those in `__all__`, else its public ones."""
    if (names := getattr(module, "__all__", None)) is not None:
        for name in names:
            if not inspect.isfunction(getattr(module, name, None)):
                raise DefinitionError(f"__all__ names {name}, which is not a function in the file")
        return {name: getattr(module, name) for name in names}
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def define(module: ModuleType) -> list[dict[str, Any]]:
    """Describe a file's tools.

    Raises DefinitionError if it has no function, or one without types or a docstring.
    """
    functions = functions_of(module)
    if not functions:
        raise DefinitionError("it has no function whose name does not begin with an underscore")
    return [_definition(name, function) for name, function in functions.items()]


def _definition(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(f"{name} is async; make it a plain function")
    docstring = inspect.getdoc(function) or ""
    description = _first_paragraph(docstring)
    if not description:
        raise DefinitionError(f"{name} has no docstring; say in one what it does, for the model")
    try:
        annotations = annotations_of(function)
    except Exception as failure:  # annotations may be any code
        raise DefinitionError(f"{name} has an invalid type: {failure}") from None
    described = _argument_texts(docstring)
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        properties[parameter.name] = _property(name, parameter, annotations, described)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    inner = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": inner}


def _property(
    function: str,
    parameter: inspect.Parameter,
    annotations: dict[str, Any],
    described: dict[str, str],
) -> dict[str, Any]:
    name = parameter.name
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise DefinitionError(
            f"{function} takes {parameter}, which cannot be given by name; name each parameter"
        )
    if name not in annotations:
        raise DefinitionError(
            f"{function}: the parameter {name} has no type; write {name}: str, say"
        )
    try:
        schema = schema_of(annotations[name])
    except TypeError as failure:
        raise DefinitionError(f"{function}: the parameter {name} has {failure}") from None
    if name in described:
        schema.setdefault("description", described[name])
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    if isinstance(default, str | int | float):
        schema["default"] = default
    return schema


def _first_paragraph(docstring: str) -> str:
    paragraph = re.split(r"\n\s*\n", docstring)[0]
    paragraph = ARGUMENTS_SECTION.split(paragraph)[0]
    return " ".join(paragraph.split())


def _argument_texts(docstring: str) -> dict[str, str]:
    """The description of each argument in a Google-style "Args:" section."""
    section = ARGUMENTS_SECTION.split(docstring, maxsplit=1)
    if len(section) < 2:
        return {}
    texts: dict[str, list[str]] = {}
    name, indent = None, None
    for line in SECTION.split(section[1])[0].splitlines():
        entry = ARGUMENT.match(line)
        if entry and (indent is None or len(entry[1]) <= indent):
            name, indent = entry[2], len(entry[1])
            texts[name] = [entry[3]]
        elif name is not None:
            texts[name].append(line)
    return {name: " ".join(" ".join(lines).split()) for name, lines in texts.items()}
