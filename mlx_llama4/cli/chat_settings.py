"""/set: how answers are chosen, changed while the conversation goes on."""

from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_llama4.errors import InputError, Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.cli.talk import Talk

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
INTEGERS = ("top_k", "seed")
NAMES = (*FLOATS, *INTEGERS, "max_tokens", "stop")


def set_value(talk: "Talk", name: str, value: str) -> None:
    """Raises InputError for an unknown name or a value out of range."""
    options = talk.chat.options
    if name == "stop":
        options.stop = (value,) if value and value != "none" else ()
    elif name == "max_tokens":
        number = _number(name, value, int)
        if number < 1:
            raise InputError(f"max_tokens {number} must be 1 or more")
        options.max_tokens = number
    elif name == "seed" and value == "none":
        talk.apply(replace(talk.settings, seed=None))
    elif name in FLOATS or name in INTEGERS:
        number = _number(name, value, float if name in FLOATS else int)
        talk.apply(replace(talk.settings, **{name: number}))
    else:
        raise Llama4Error(f"there is no setting {name}; there are {', '.join(NAMES)}")


def shown_values(talk: "Talk") -> str:
    values = {name: getattr(talk.settings, name) for name in (*FLOATS, *INTEGERS)}
    values |= {"max_tokens": talk.chat.options.max_tokens, "stop": " ".join(talk.chat.options.stop)}
    width = max(map(len, values))
    return "\n".join(
        f"{name:{width}}  {'none' if value in (None, '') else value}"
        for name, value in values.items()
    )


def _number(name: str, value: str, kind: type) -> float:
    try:
        return kind(value)
    except ValueError:
        sort = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} takes {sort}, not {value!r}: /set {name} VALUE") from None
