"""Records which slices of an unfinished conversion are done, with checksums.

Each slice is a line of JSON, written after the slice's data is on the disk. After a kill or a full
disk, the next run continues where the journal ends. A line torn by the kill counts as not written.
"""

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mlx_llama4.checkpoint.open import JOURNAL_NAME
from mlx_llama4.files.durable import sync_file

# Raise it whenever slices are cut or packed differently.
JOURNAL_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One finished slice."""

    job: int  # index in the plan
    stamp: str  # tells whether the source is still the same
    checksums: dict[str, int]  # output tensor → CRC-32 of its rows' bytes
    errors: dict[str, tuple[float, float]]  # as in PackedSlice


class Journal:
    """The journal in a folder. `plan` describes the conversion, so that one with other options is
    not continued.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.path = folder / JOURNAL_NAME
        self.head = {"version": JOURNAL_VERSION, **plan}

    def create(self) -> None:
        with self.path.open("w") as stream:
            stream.write(_line(self.head))
            sync_file(stream.fileno())

    def append(self, entries: Iterable[Entry]) -> None:
        with self.path.open("a") as stream:
            stream.writelines(map(_entry_line, entries))
            stream.flush()
            sync_file(stream.fileno())

    def read(self) -> tuple[bool, dict[int, Entry]]:
        """Whether it is a journal of the same conversion, and its entries by job."""
        lines = _parsed_lines(self.path)
        if not lines or lines[0] != self.head:
            return False, {}
        entries: dict[int, Entry] = {}
        for line in lines[1:]:
            crc = line.pop("crc", None)  # version 0.1.0 wrote none
            if not _is_entry(line) or crc not in (None, zlib.crc32(_line(line).encode())):
                break
            entry = Entry(**line)
            entries[entry.job] = entry
        return True, entries

    def is_of_this_version(self) -> bool:
        lines = _parsed_lines(self.path)
        return bool(lines) and lines[0].get("version") == JOURNAL_VERSION

    def mend(self, entries: Iterable[Entry]) -> None:
        """Rewrites the journal without a torn last line, to which the next would be joined."""
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as stream:
            stream.write(_line(self.head))
            stream.writelines(map(_entry_line, entries))
            stream.flush()
            sync_file(stream.fileno())
        fresh.replace(self.path)


def has_progress(folder: Path) -> bool:
    """Does the folder hold at least one finished slice?"""
    return len(_parsed_lines(folder / JOURNAL_NAME)) > 1


def _entry_line(entry: Entry) -> str:
    value = asdict(entry)
    return _line({**value, "crc": zlib.crc32(_line(value).encode())})


def _is_entry(line: dict[str, Any]) -> bool:
    """Has a line the fields of an Entry, and of the same types?"""
    if line.keys() != {field.name for field in fields(Entry)}:
        return False
    checksums, errors = line["checksums"], line["errors"]
    return (
        type(line["job"]) is int
        and isinstance(line["stamp"], str)
        and isinstance(checksums, dict)
        and all(type(checksum) is int for checksum in checksums.values())
        and isinstance(errors, dict)
        and all(_is_pair(pair) for pair in errors.values())
    )


def _is_pair(pair: Any) -> bool:
    """Two sums of squares, as the errors are?"""
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(one) in (int, float) and math.isfinite(one) for one in pair)
    )


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) + "\n"


def _parsed_lines(path: Path) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = []
    if not path.is_file():
        return parsed
    for line in path.read_text(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        parsed.append(value)
    return parsed
