"""The long proofs: each subject has its tests, and their ordinary runs stay short."""

import re
from pathlib import Path

import pytest

from tests import proofs


def test_subjects_are_those_of_the_tests() -> None:
    sources = (path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    marked = {name for text in sources for name in re.findall(r'\.mark\.prove\("(\w+)"\)', text)}
    assert marked == set(proofs.SUBJECTS)


def test_only_a_proof_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "is_proving", False)
    assert proofs.scaled(20, long=300) == 20
    monkeypatch.setattr(proofs, "is_proving", True)
    assert proofs.scaled(20, long=300) == 300
