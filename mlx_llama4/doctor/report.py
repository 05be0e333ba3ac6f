"""Write doctor's findings as Markdown to paste, or as JSON.

A report has figures and kinds, but no names of files, folders, users or hosts.
"""

import math
from dataclasses import is_dataclass
from typing import Any

from mlx_llama4.doctor.asking import DemoAnswers, ModelSpeed
from mlx_llama4.doctor.disk import READERS, DiskSpeed
from mlx_llama4.doctor.examine import Report
from mlx_llama4.doctor.goldens import Result
from mlx_llama4.doctor.machine_facts import MachineFacts
from mlx_llama4.doctor.speed import EXPERTS, DecodeSpeed
from mlx_llama4.doctor.unknown import Unknown
from mlx_llama4.units import human_bytes

Lines = list[tuple[str, str]]


def verdict(report: Report) -> str:
    """Summarise the report in one line."""
    if failed := report.failures:
        return f"Failed: {'; '.join(failed)}."
    return f"All {len(report.checks)} checks passed."


def markdown(report: Report) -> str:
    """Write a heading, the verdict, facts and figures as a list, and the checks as a table."""
    bandwidth = report.bandwidth
    facts = machine_lines(report.machine)
    rate = bandwidth if isinstance(bandwidth, Unknown) else f"{human_bytes(bandwidth)}/s"
    facts.append(("memory is read at", str(rate)))
    facts += _lines("disk", report.disk, disk_lines)
    facts += _lines("layers", report.decode, lambda found: decode_lines(found, bandwidth))
    facts += _lines("built-in model", report.demo, demo_lines)
    if report.model is not None:
        facts += _lines("model", report.model, model_lines)
    parts = ["# mlx-llama4 doctor", "", f"**{verdict(report)}**", ""]
    parts += [f"- {name}: {text}" for name, text in facts]
    parts += ["", *check_table(report.checks), "", LEGEND]
    return "\n".join(parts) + "\n"


LEGEND = (
    "Differences are of logits, whose standard deviation is 2: the largest, in bfloat16 the median."
)


def machine_lines(machine: MachineFacts) -> Lines:
    lines = [
        ("processor", str(machine.processor)),
        ("system", str(machine.system)),
        ("Python", machine.python),
        ("packages", ", ".join(f"{name} {one}" for name, one in machine.packages.items())),
        ("computes on", str(machine.device)),
    ]
    memory = machine.memory
    if isinstance(memory, Unknown):
        lines.append(("memory", str(memory)))
    else:
        text = f"{human_bytes(memory.memory)}, for a model at most {human_bytes(memory.usable)}"
        lines.append(("memory", text))
        if memory.wired is not None:
            lines.append(("the GPU may hold", human_bytes(memory.wired)))
    if (limit := machine.wired_limit) is not None:
        lines.append(("iogpu.wired_limit_mb", f"{limit}{' (as macOS sets itself)' * (limit == 0)}"))
    if machine.swap is not None:
        lines.append(("swap in use", str(machine.swap)))
    if (low := machine.low_power) is not None:
        lines.append(
            ("low power mode", str(low) if isinstance(low, Unknown) else "on" if low else "off")
        )
    return lines


def disk_lines(disk: DiskSpeed) -> Lines:
    how = "past the page cache" if disk.past_cache else "with the page cache emptied before"
    return [
        (
            "disk is read at",
            f"{human_bytes(disk.one_reader)}/s, by {READERS} readers "
            f"{human_bytes(disk.many_readers)}/s",
        ),
        ("disk", f"{disk.file_system or 'unknown kind'}; {human_bytes(disk.nbytes)}, {how}"),
    ]


def decode_lines(decode: DecodeSpeed, bandwidth: float | Unknown) -> Lines:
    work = decode.work
    width = "Scout's widths" if work.scale == 1 else f"Scout's widths / {work.scale}"
    share = ""
    if not isinstance(bandwidth, Unknown):
        share = f", {decode.bytes_per_second / bandwidth:.0%} of what memory gives"
    return [
        (
            "layers",
            f"{decode.layers}, {width}, {EXPERTS} experts each, random, 4 bits, {decode.dtype}",
        ),
        (
            "layers read",
            f"{work.prompt_tokens} tokens at {decode.prefill_tokens_per_second:,.1f} tokens/s",
        ),
        (
            "layers write",
            f"{work.new_tokens} tokens at {decode.decode_tokens_per_second:,.1f} tokens/s: "
            f"{human_bytes(decode.token_bytes)} a token, "
            f"{human_bytes(decode.bytes_per_second)}/s{share}",
        ),
    ]


def demo_lines(demo: DemoAnswers) -> Lines:
    text = f"{demo.right} of {demo.questions} answers right, {demo.tokens_per_second:,.0f} tokens/s"
    return [("built-in model", text)]


def model_lines(model: ModelSpeed) -> Lines:
    decode = model.decode_tokens_per_second
    where = "experts read from the disk" if model.streamed else "in memory"
    return [
        ("model", f"{model.variant}, {human_bytes(model.nbytes)}, {model.quantization}"),
        ("model's shape", model.architecture),
        ("model loads", f"in {model.load_seconds:.1f} s, {where}"),
        ("model takes", f"at most {human_bytes(model.peak_bytes)} while it answers"),
        (
            "model reads",
            f"{model.prompt_tokens} tokens at {model.prefill_tokens_per_second or 0:,.1f} tokens/s",
        ),
        (
            "model writes",
            f"{model.new_tokens} tokens"
            + ("" if decode is None else f" at {decode:,.1f} tokens/s"),
        ),
    ]


def check_table(checks: list[Result]) -> list[str]:
    """Make a table with padded columns, so that it is readable as plain text too."""
    rows = [("check", "on", "type", "difference", "limit", "")]
    rows += [
        (
            one.name,
            one.device,
            one.dtype,
            "none" if one.difference is None else f"{one.difference:.1e}",
            f"{one.limit:g}",
            _outcome(one),
        )
        for one in checks
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _outcome(one: Result) -> str:
    if one.passed:
        return "ok"
    if one.problem is not None:
        return f"FAIL: {one.problem.replace('|', '/')}"
    within = one.difference is not None and one.difference <= one.limit
    return "FAIL: another token wins" if within else "FAIL"


def as_json(report: Report) -> dict[str, Any]:
    """The whole report: bytes and rates as numbers, unknown values as {"unknown": why}."""
    result = {"passed": not report.failures, "failures": report.failures} | _plain(report)
    for one, check in zip(result["checks"], report.checks, strict=True):
        one["passed"] = check.passed
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Unknown):
        return {"unknown": value.why}
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    return value


def _lines(name: str, found: Any, lines: Any) -> Lines:
    return [(name, str(found))] if isinstance(found, Unknown) else lines(found)
