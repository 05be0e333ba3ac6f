"""Tool files whose descriptions are more than a worker may answer."""

from pathlib import Path

import pytest

from mlx_llama4.errors import InputError
from mlx_llama4.tools.tool_file import ToolFile


@pytest.mark.parametrize("functions", [1, 1100])
def test_docstrings_that_are_too_long(tmp_path: Path, functions: int) -> None:
    words = "a" * (1_100_000 // functions)
    text = "\n".join(f'def f{n}():\n    """{words}"""' for n in range(functions))
    (tmp_path / "long.py").write_text(text)
    with pytest.raises(InputError, match="more than 1,000,000 bytes; shorten docstrings"):
        ToolFile.open(tmp_path / "long.py")
