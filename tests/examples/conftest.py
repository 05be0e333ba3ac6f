"""Where the scripts of examples/ are run."""

from pathlib import Path

import pytest

from tests.examples.scripts import EXAMPLES


@pytest.fixture(autouse=True)
def where_scripts_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `python examples/NAME.py` has it: the script's folder on the path."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
