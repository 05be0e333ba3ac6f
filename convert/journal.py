"""What of an unfinished conversion is done, slice by slice, with checksums.

A line of JSON a slice, written after the slice's data is on disk. A run that was killed, or found
the disk full, is taken up where the journal ends; a line torn by the kill counts as not written.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_llama4.files.durable import sync_file

JOURNAL_NAME = "conversion.journal"
# To be raised whenever slices are cut or packed differently.
JOURNAL_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """job: index in the plan. stamp: tells whether the source is still what it was.
    checksums: output tensor → CRC-32 of its rows' bytes. errors: as in PackedSlice.
    """

    job: int
    stamp: str
    checksums: dict[str, int]
    errors: dict[str, tuple[float, float]]


class Journal:
    """The journal in a folder; `plan` says what the conversion makes, so that one with other
    options is not taken up.
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
            stream.writelines(_line(asdict(entry)) for entry in entries)
            stream.flush()
            sync_file(stream.fileno())

    def read(self) -> tuple[bool, dict[int, Entry]]:
        """Is it a journal of the same conversion? And its entries by job."""
        lines = _parsed_lines(self.path)
        if not lines or lines[0] != self.head:
            return False, {}
        entries: dict[int, Entry] = {}
        for line in lines[1:]:
            try:
                entry = Entry(**line)
                entries[int(entry.job)] = entry
            except (TypeError, ValueError):
                break
        return True, entries

    def is_of_this_version(self) -> bool:
        lines = _parsed_lines(self.path)
        return bool(lines) and lines[0].get("version") == JOURNAL_VERSION

    def mend(self, entries: Iterable[Entry]) -> None:
        """Write the journal anew, without a torn last line, which the next would be joined to."""
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as stream:
            stream.write(_line(self.head))
            stream.writelines(_line(asdict(entry)) for entry in entries)
            stream.flush()
            sync_file(stream.fileno())
        fresh.replace(self.path)


def has_progress(folder: Path) -> bool:
    """Does the folder hold at least one finished slice?"""
    return len(_parsed_lines(folder / JOURNAL_NAME)) > 1


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) + "\n"


def _parsed_lines(path: Path) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = []
    if not path.is_file():
        return parsed
    for line in path.read_text(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        parsed.append(value)
    return parsed
