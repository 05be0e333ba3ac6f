"""/set: change the generation settings during a conversation."""

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_llama4.cli.talk.draft_setting import Draft, drafter, drafts_with
from mlx_llama4.errors import InputError, Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.cli.talk.talk import Talk

Number = TypeVar("Number", int, float)

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
INTEGERS = ("top_k", "seed")
NAMES = (*FLOATS, *INTEGERS, "max_tokens", "stop", "draft")


def set_value(talk: "Talk", name: str, value: str) -> None:
    """Change a setting. Raises InputError for an unknown name or a value out of range."""
    options, settings = talk.chat.options, talk.settings
    if name == "stop":
        stop = (value,) if value and value != "none" else ()
        options.settings = replace(settings, stop=stop)
    elif name == "max_tokens":
        tokens = _number(name, value, int)
        if tokens < 1:
            raise InputError(f"max_tokens {tokens} must be 1 or more")
        options.settings = replace(settings, max_tokens=tokens)
    elif name == "draft":
        if value not in list(Draft):
            raise InputError(f"draft is {' or '.join(Draft)}, not {value!r}: /set draft VALUE")
        options.settings = replace(settings, draft=drafter(Draft(value)))
    elif name == "seed" and value == "none":
        talk.chat.set_settings(replace(settings, seed=None))
    elif name in FLOATS or name in INTEGERS:
        changed: dict[str, Any] = {name: _number(name, value, float if name in FLOATS else int)}
        talk.chat.set_settings(replace(settings, **changed))
    else:
        raise _unknown(name)


def shown_value(talk: "Talk", name: str) -> str:
    """A setting's value, for display. Raises Llama4Error for an unknown name."""
    settings = talk.settings
    others = {"stop": " ".join(settings.stop), "draft": drafts_with(settings.draft)}
    if name not in NAMES:
        raise _unknown(name)
    value = others[name] if name in others else getattr(settings, name)
    return "none" if value in (None, "") else str(value)


def shown_values(talk: "Talk") -> str:
    width = max(map(len, NAMES))
    return "\n".join(f"{name:{width}}  {shown_value(talk, name)}" for name in NAMES)


def _unknown(name: str) -> Llama4Error:
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
    return Llama4Error(f"there is no setting {name}; {advice}")


def _number(name: str, value: str, kind: type[Number]) -> Number:
    try:
        return kind(value)
    except ValueError:
        sort = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} takes {sort}, not {value!r}: /set {name} VALUE") from None
