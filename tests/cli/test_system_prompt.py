"""A system prompt is a text, a persona or a file; what is nearly a name is asked about."""

from pathlib import Path

import pytest

from mlx_llama4.chat.personas import PERSONAS
from mlx_llama4.cli.talk.system_prompt import read_system
from mlx_llama4.errors import InputError
from tests.commands import refused


@pytest.mark.parametrize("typed", ["techer", "Teacher", "teachers", "TEACHER", "teachr"])
def test_what_is_nearly_a_persona(typed: str) -> None:
    assert "teacher" in PERSONAS
    with pytest.raises(InputError, match=f"'{typed}' is not a persona; did you mean teacher"):
        read_system(typed)
    assert read_system(f"{typed} ") is not None  # the word itself


@pytest.mark.parametrize("typed", ["Brief!", "You are a techer.", "be terse", "Quack"])
def test_texts(typed: str) -> None:
    assert read_system(typed) == typed


def test_a_file_without_its_sign(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    assert read_system(str(path)) == str(path)  # there is no such file
    path.write_text("Be brief.")
    with pytest.raises(InputError, match=r"prompt\.txt is a file; write @"):
        read_system(str(path))
    assert read_system(f"@{path}") == "Be brief."


def test_commands(demo_folder: Path) -> None:
    asked = ("ask", "Hello", "-m", demo_folder, "--system", "techer")
    assert "did you mean teacher?" in refused(*asked)
