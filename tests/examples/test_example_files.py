"""Files that the examples write, read, and leave alone."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from mlx_llama4.demo.questions import PICTURES
from tests.examples.scripts import load, rows_of


def run(demo_folder: Path, name: str, *arguments: object) -> int:
    return load(name).main([*map(str, arguments), "--model", str(demo_folder)])


def test_what_is_not_the_batch_s_is_left_as_it_is(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their last line, without a line end, would be taken for one that was cut in two."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What is 7 plus 5?"}')
    for said in ('{"a": 1}', '{"question": "What is 7 plus 5?"}\n{"question": "Wh'):
        (tmp_path / "theirs.json").write_text(said)
        assert (
            run(demo_folder, "batch_questions", questions, "--output", tmp_path / "theirs.json")
            == 2
        )
        assert (tmp_path / "theirs.json").read_text() == said
        assert "was not written by this script" in capsys.readouterr().err
    assert run(demo_folder, "batch_questions", questions, "--output", questions) == 2
    assert "holds the questions" in capsys.readouterr().err
    assert questions.read_text() == '{"question": "What is 7 plus 5?"}'


def test_names_that_are_no_unicode(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    try:
        shutil.copy(PICTURES / "star.png", os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    output = tmp_path / "pictures.jsonl"
    assert run(demo_folder, "folder_to_jsonl", folder, "--output", output) == 0
    assert [row["picture"] for row in rows_of(output)] == ["\udcff.png"]
    assert run(demo_folder, "folder_to_jsonl", folder, "--output", output) == 0
    assert "has all 1 pictures; remove it to begin again" in capsys.readouterr().err
    assert run(demo_folder, "screenshot_to_text", *2 * [folder / "\udcff.png"]) == 0
    assert "# ?.png" in capsys.readouterr().out


def test_cells_are_data_and_names_stay_apart() -> None:
    as_cell = load("receipts_to_csv").as_cell
    assert [as_cell(text) for text in ("=1+1", "+1", "@a", "-1+1", "-cmd|' /C calc'!A0")] == [
        "'=1+1", "'+1", "'@a", "'-1+1", "'-cmd|' /C calc'!A0"
    ]  # fmt: skip
    assert [as_cell(text) for text in ("-12.50", "12.50", "a\n b", None)] == [
        "-12.50", "12.50", "a b", ""
    ]  # fmt: skip
    names = [Path(name) for name in ("a b", "a  b", "a\nb", "\udcff", "a\u202fb")]
    assert [as_cell(name) for name in names] == ["a b", "a  b", "a\\nb", "\\udcff", "a\u202fb"]


def test_a_full_disk_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert load("common").reports_errors(main)() == 1
    assert capsys.readouterr().err == "error: No space left on device: standard output\n"
