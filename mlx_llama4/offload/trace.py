"""Reads a routing trace: JSON lines that list the experts each token chose. Needs no MLX.

    {"format": "mlx-llama4 routing trace", "version": 1, "model": "scout-4bit",
     "num_experts": 16, "experts_per_token": 1, "layers": [0, 1, …]}       (all in one line)
    {"step": 0, "layer": 0, "experts": [3, 3, 15, …]}
    {"step": 0, "layer": 1, "experts": […]}
    …

A step is one forward pass: a span of a prompt, or a generated token. `experts` lists the choices of
its tokens in order, k for each token. The last layer lists the last token of a span only, because
nothing asks for the output of the others. A step that was interrupted lacks its later layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from mlx_llama4.errors import InputError
from mlx_llama4.files.json_file import parse_json

FORMAT = "mlx-llama4 routing trace"
VERSION = 1


@dataclass(frozen=True)
class TraceHeader:
    """The first line of a trace."""

    model: str
    num_experts: int
    experts_per_token: int
    layers: tuple[int, ...]  # numbers of the MoE layers, ascending

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "num_experts": self.num_experts,
            "experts_per_token": self.experts_per_token,
            "layers": self.layers,
        }


@dataclass(frozen=True)
class RoutingStep:
    """One forward pass."""

    experts: dict[int, Sequence[int]] = field(default_factory=dict)  # layer → its tokens' choices

    @property
    def choices(self) -> int:
        """The most choices of any layer: tokens · experts per token."""
        return max(map(len, self.experts.values()))


@dataclass(frozen=True)
class RoutingTrace:
    header: TraceHeader
    steps: Sequence[RoutingStep]

    def is_decode(self, step: RoutingStep) -> bool:
        """Was the step for a single token?"""
        return step.choices == self.header.experts_per_token


def read_trace(path: Path) -> RoutingTrace:
    """Raises InputError, with the line, if the file is not a trace or is damaged."""
    try:
        with path.open("rb") as file:
            lines = list(file)
    except OSError as failure:
        raise InputError(f"cannot read {path}: {failure.strerror or failure}") from None
    if not lines:
        raise InputError(f"{path} is empty; record it again with --trace")
    header = _header(path, _object(path, 1, lines[0]))
    steps: list[RoutingStep] = []
    for number, line in enumerate(lines[1:], start=2):
        step, layer, experts = _choice(path, number, _object(path, number, line), header)
        if step == len(steps):
            steps.append(RoutingStep())
        elif step != len(steps) - 1 or layer <= max(steps[-1].experts):
            raise InputError(f"{path}, line {number}: step {step} of layer {layer} is out of order")
        steps[-1].experts[layer] = experts
    return RoutingTrace(header, steps)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise InputError(
            f"{path}, line {number}: the line is cut, as by a full disk; remove it to use the rest"
        )
    try:
        value = parse_json(line)
    except (ValueError, RecursionError) as failure:
        raise InputError(f"{path}, line {number} is not valid JSON ({failure})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number} holds a {type(value).__name__}, not an object")
    return value


def _header(path: Path, raw: Mapping[str, Any]) -> TraceHeader:
    if raw.get("format") != FORMAT:
        raise InputError(f"{path} is not a routing trace; record one with --trace")
    if raw.get("version") != VERSION:
        raise InputError(
            f"{path} is a routing trace of version {raw.get('version')}; "
            f"this program reads version {VERSION}"
        )
    model, layers = raw.get("model"), raw.get("layers")
    count, each = raw.get("num_experts"), raw.get("experts_per_token")
    if (
        isinstance(model, str)
        and _is_number(count)
        and _is_number(each)
        and 1 <= each <= count
        and isinstance(layers, list)
        and all(map(_is_number, layers))
        and layers == sorted(set(layers))
        and len(layers) > 0
    ):
        return TraceHeader(model, count, each, tuple(layers))
    raise InputError(f"{path}, line 1: the header of the trace is damaged")


def _choice(
    path: Path, number: int, raw: Mapping[str, Any], header: TraceHeader
) -> tuple[int, int, list[int]]:
    """Step, layer and experts of one line."""
    step, layer, experts = raw.get("step"), raw.get("layer"), raw.get("experts")
    if not _is_number(step) or not _is_number(layer) or not isinstance(experts, list):
        raise InputError(f"{path}, line {number}: step, layer or experts are missing or wrong")
    if layer not in header.layers:
        raise InputError(f"{path}, line {number}: layer {layer} is not one of the header's layers")
    if not experts or len(experts) % header.experts_per_token:
        raise InputError(
            f"{path}, line {number}: {len(experts)} experts, "
            f"not {header.experts_per_token} for each token"
        )
    for expert in experts:
        if not _is_number(expert) or expert >= header.num_experts:
            raise InputError(
                f"{path}, line {number}: expert {expert!r} is not one of 0 to "
                f"{header.num_experts - 1}"
            )
    return step, layer, experts


def _is_number(value: Any) -> TypeGuard[int]:
    """Is it a whole number, not below 0? JSON's true is not one."""
    return type(value) is int and value >= 0
