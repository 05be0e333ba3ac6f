"""Formats sizes for people, and parses what people write."""

import re

from mlx_llama4.errors import InputError


def human_bytes(count: float) -> str:
    """A size for people, in decimal units, as disks and macOS count."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def parse_bytes(text: str) -> int:
    """ "60GB", "500 MB", "1.5T" or "4GiB" → bytes. Raises InputError."""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if match is None:
        raise InputError(f"{text!r} is not a size; write it like 60GB or 500MB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))
