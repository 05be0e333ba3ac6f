"""The scripts in examples/, run in this process on the demo: answers, going on, bad input."""

import ast
import csv
import json
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from mlx_llama4.chat import Chat
from mlx_llama4.demo.questions import NOTES, PICTURES
from tests.examples.scripts import EXAMPLES, load, rows_of

SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")
WITH_OPTIONS = [name for name in SCRIPTS if name != "notebook_use"]
WITH_OUTPUT = ["folder_to_jsonl", "batch_questions", "receipts_to_csv"]
DESCRIPTIONS = {
    "first.png": "From left to right: a yellow star.",
    "star.png": "From left to right: a red star.",
    "three.png": "From left to right: an orange square, a purple cross and a black triangle.",
    "two.png": "From left to right: a blue circle and a green star.",
}


@pytest.fixture
def run(demo_folder: Path):
    """Name, arguments → exit code, with the session's demo model."""

    def run(name: str, *arguments: object) -> int:
        return load(name).main([*map(str, arguments), "--model", str(demo_folder)])

    return run


@pytest.fixture
def stopped_by_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Before the third question that a Chat is asked."""
    asked = []
    send = Chat.send

    def counted(self: Chat, *arguments: object) -> Iterator[str]:
        asked.append(arguments)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return send(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Chat, "send", counted)
        yield


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_says_what_it_does_and_how_to_run_it(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    lines = (ast.get_docstring(tree) or "").splitlines()
    assert lines[0].endswith((".", ":"))
    commands = [line for line in lines if line.startswith("python ")]
    assert commands[0].split("  ")[0] == f"python examples/{name}.py"  # alone, on the demo
    assert "demo" in commands[0]
    assert all(command.startswith(f"python examples/{name}.py") for command in commands)
    if name in WITH_OPTIONS:
        assert any("scout-4bit" in command for command in commands[1:])


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = load(name)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert (module.__doc__ or "").strip() in capsys.readouterr().out


def test_the_table_of_examples_has_each_of_them() -> None:
    table = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    assert all(f"examples/{name}.py" in table for name in SCRIPTS)


def test_without_a_model_the_demo_is_converted(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("image_qa").main([]) == 0
    assert capsys.readouterr().out.strip() == DESCRIPTIONS["three.png"]


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_a_model_that_is_not_there(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing")
    given = [missing] * 2 if name == "compare_models" else ["--model", missing]
    assert load(name).main(given) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith(f"error: {missing}")
    assert sum(line.startswith("error") for line in errors) == 1


def test_image_qa(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("image_qa", "What is on the right?", "--image", PICTURES / "two.png") == 0
    output = capsys.readouterr()
    assert output.out == "A green star is on the right."
    assert "5 tiles took 20 of" in output.err
    assert run("image_qa", "--image", "no.png") == 2
    assert capsys.readouterr().err == "error: no.png does not exist\n"


def test_compare_images(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare_images") == 0
    assert capsys.readouterr().out == "The triangle is in the second image.\n"
    pictures = [PICTURES / "second.png", PICTURES / "first.png"]
    assert run("compare_images", *pictures, "--question", "Which image has a star?") == 0
    assert capsys.readouterr().out == "The star is in the second image.\n"
    assert run("compare_images", PICTURES / "first.png") == 2
    assert "two pictures or more" in capsys.readouterr().err


def test_long_text(run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text, cache = tmp_path / "notes.txt", tmp_path / "notes.safetensors"
    text.write_text(NOTES)
    question = "What is the code of walnut?"
    for _ in ("made", "used"):
        assert run("long_text", text, question, "What is 7 plus 5?", "--cache", cache) == 0
        output = capsys.readouterr()
        answers = ["The code of walnut is 407.", "7 plus 5 is 12."]
        assert output.out.splitlines()[2::3] == answers
        assert output.err.count("tokens were there") == 2
        made = cache.stat().st_mtime_ns
    assert cache.stat().st_mtime_ns == made
    text.write_text(NOTES.replace("407", "512"))  # a cache of another text misleads nobody
    assert run("long_text", text, question, "--cache", cache) == 0
    assert "The code of walnut is 512." in capsys.readouterr().out
    text.write_bytes(b"\xff\xfe")
    assert run("long_text", text, question) == 2
    assert "not a text in UTF-8" in capsys.readouterr().err


def test_chart_questions(run, capsys: pytest.CaptureFixture[str]) -> None:
    questions = ["How many shapes are there?", "What is on the right?"]
    assert run("chart_questions", PICTURES / "two.png", *questions) == 0
    answers = ["There are two shapes.", "A green star is on the right."]
    assert capsys.readouterr().out.splitlines()[1::3] == answers
    assert run("chart_questions", "What is this?" * 50) == 2
    assert "name a picture first" in capsys.readouterr().err


def test_screenshot_to_text(run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """macOS puts a narrow no-break space into the names of screenshots."""
    screenshot = tmp_path / "Screenshot 2025-04-05 at 9.41.00\u202fAM.png"
    shutil.copy(PICTURES / "star.png", screenshot)
    asked = ("--prompt", "Describe the image.")
    assert run("screenshot_to_text", screenshot, *asked) == 0
    assert capsys.readouterr().out == DESCRIPTIONS["star.png"] + "\n"
    assert run("screenshot_to_text", screenshot, PICTURES / "two.png", *asked) == 0
    described = [DESCRIPTIONS["star.png"], DESCRIPTIONS["two.png"]]
    assert capsys.readouterr().out.split("\n")[2::4] == described
    assert run("screenshot_to_text", screenshot, *asked, "--max-tokens", 3) == 1
    assert capsys.readouterr().err == f"error: cut at --max-tokens 3: {screenshot.name}\n"


def test_a_folder_goes_on_where_it_was(
    run, capsys: pytest.CaptureFixture[str], tmp_path: Path, stopped_by_ctrl_c: None
) -> None:
    folder, output = tmp_path / "photos", tmp_path / "photos.jsonl"
    (folder / "more").mkdir(parents=True)
    for name in DESCRIPTIONS:
        shutil.copy(PICTURES / name, folder / ("more" if name == "first.png" else "") / name)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "._star.png").write_bytes(b"what macOS leaves beside files")
    (folder / "notes.txt").write_text("no picture either")
    assert run("folder_to_jsonl", folder, "--output", output) == 130
    assert [row["picture"] for row in rows_of(output)] == [
        *("broken.png", "more/first.png", "star.png")
    ]
    with output.open("a") as file:
        file.write('{"picture": "three.png", "question": "Desc')  # a kill's
    assert run("folder_to_jsonl", folder, "--output", output) == 0
    errors = capsys.readouterr().err
    assert errors.endswith(f"2 of 2  two.png: {DESCRIPTIONS['two.png']}\n")
    rows = rows_of(output)
    broken, *described = rows
    assert "broken.png" in broken["error"] and "answer" not in broken
    assert {Path(row["picture"]).name: row["answer"] for row in described} == DESCRIPTIONS
    assert {row["finish_reason"] for row in described} == {"stop"}
    before = output.read_bytes()
    assert run("folder_to_jsonl", folder, "--output", output) == 0
    assert output.read_bytes() == before
    # Another question is another answer.
    question = "How many shapes are there?"
    assert run("folder_to_jsonl", folder, "--output", output, "--question", question) == 0
    assert rows_of(output)[-1]["answer"] == "There are two shapes."


def test_a_folder_together(run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each answer is the picture's own; one that cannot be read stops nothing."""
    for name in DESCRIPTIONS:
        shutil.copy(PICTURES / name, tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert run("folder_together", tmp_path, "--rows", 3) == 1
    output = capsys.readouterr()
    said = [f"{name}: {said}" for name, said in DESCRIPTIONS.items()]
    assert sorted(output.out.splitlines()) == said
    assert output.err.startswith("broken.png: ")
    assert output.err.endswith("error: 1 of 5 pictures have no answer\n")
    assert run("folder_together", tmp_path, "--rows", 0) == 2
    assert capsys.readouterr().err == "error: batch size 0 must be 1 or more\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            (name, text)
            for name in WITH_OUTPUT
            for text in ("diary", "[1]\n", "{}\n{]\n", "shop\n1\n")
        ),
        ("folder_to_jsonl", '{"picture": 1}\n'),
        ("receipts_to_csv", "picture,total,error\n"),
    ],
)
def test_a_file_of_another_kind_is_left_as_it_is(
    run, name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "other"
    output.write_text(text)
    assert run(name, "--output", output) == 2
    assert "was not written by this script" in capsys.readouterr().err
    assert output.read_text() == text


def test_an_output_that_cannot_be_written(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "missing" / "answers.jsonl"
    assert run("batch_questions", "--output", output) == 1
    assert capsys.readouterr().err.endswith(f"error: No such file or directory: {output}\n")
    assert run("folder_to_jsonl", tmp_path / "missing", "--output", output) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'missing'} is not a folder\n"


def test_a_batch_goes_on_where_it_was(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str], stopped_by_ctrl_c: None
) -> None:
    output = tmp_path / "answers.jsonl"
    assert run("batch_questions", "--output", output) == 130
    assert [row["id"] for row in rows_of(output)] == ["sum", "star"]
    with output.open("a") as file:
        file.write("{")
    assert run("batch_questions", "--output", output) == 0
    assert [(row["id"], row["answer"]) for row in rows_of(output)] == [
        ("sum", "7 plus 5 is 12."),
        ("star", "From left to right: a red star."),
        ("count", "There are three shapes."),
        ("which", "The triangle is in the second image."),
    ]
    assert capsys.readouterr().out.splitlines()[-1].endswith("in the second image.")


def test_a_batch_with_bad_lines(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    asked = (
        {"question": "?", "images": ["no.png"]},
        {"question": " "},
        {"question": "What is 7 plus 5?"},
    )
    questions.write_text("\n\n".join(map(json.dumps, asked)))
    assert run("batch_questions", questions, "--output", output) == 0
    missing, empty, answered = rows_of(output)
    assert "no.png" in missing["error"]
    assert empty == {"question": " ", "error": "the question is empty"}
    assert answered["answer"] == "7 plus 5 is 12."
    for line in ("nonsense", "[]", "{}", '{"question": 1}', '{"question": "a", "images": [1]}'):
        questions.write_text(f'{{"question": "a"}}\n{line}\n')
        assert run("batch_questions", questions, "--output", output) == 2
        assert f"{questions}, line 2: not" in capsys.readouterr().err
    assert len(rows_of(output)) == 3


def test_receipts(
    demo_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stopped_by_ctrl_c: None,
) -> None:
    script = load("receipts_to_csv")
    script.FIELDS = script.DEMO_FIELDS
    output, broken = tmp_path / "receipts.csv", tmp_path / "=broken,  twice.png"
    broken.write_bytes(b"no picture")
    pictures = [PICTURES / "two.png", broken.relative_to(tmp_path), PICTURES / "star.png"]
    arguments = [*map(str, pictures), "--output", str(output), "--model", str(demo_folder)]
    assert script.main(arguments) == 130  # two fields of the first were asked
    assert len(output.read_text().splitlines()) == 3
    with output.open("a") as file:
        file.write('"half a row')
    for _ in ("done", "nothing to do"):
        assert script.main(arguments) == 0
        with output.open(newline="") as file:
            first, second, third = csv.DictReader(file)
        assert (first["count"], first["left"]) == (
            "There are two shapes.",
            "A blue circle is on the left.",
        )
        assert second["picture"] == "'=broken,  twice.png"
        assert "broken" in second["error"] and not second["count"]
        assert third["left"] == "A red star is on the left." and not third["error"]
    assert "has all 3 pictures; remove it to begin again" in capsys.readouterr().err


def test_compare_models(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--question", "What is in the image?", "--image", str(PICTURES / "star.png")]
    assert load("compare_models").main([str(demo_folder), str(demo_folder), *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == lines[4] == "  From left to right: a red star."
    assert lines[-1] == "1 of 1 answers are the same, word for word"
    with pytest.raises(SystemExit) as ended:
        load("compare_models").main([str(demo_folder)])
    assert ended.value.code == 2


def test_the_demo_in_two_packings(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("compare_models").main([]) == 0
    output = capsys.readouterr().out
    assert "demo-16bit  (18 tokens" in output and DESCRIPTIONS["three.png"] in output
    assert "1 of 2 answers are the same" in output  # with 2 bits, the demo sees a circle


def test_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    cells = load("notebook_use")
    assert cells.answer == "There are three shapes."
    assert cells.code == "The code of walnut is 407."
    assert DESCRIPTIONS["three.png"] in capsys.readouterr().out
    assert not cells.MODEL.exists()


def test_receipts_held_to_a_schema(run, tmp_path: Path) -> None:
    """The demo's answers are no receipts', but of the right kind they are."""
    output = tmp_path / "receipts.csv"
    assert run("receipts_to_csv", "--output", output) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["count"] for row in rows] == load("receipts_to_csv").COUNTS
    output.unlink()
    assert run("receipts_to_csv", PICTURES / "star.png", "--output", output) == 0
    with output.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["picture", "shop", "date", "currency", "total", "error"]
    assert row["currency"] in ("USD", "EUR", "GBP", "JPY", "other")
    assert not row["date"] or date.fromisoformat(row["date"])
    assert float(row["total"] or 0) >= 0
    assert not (row["total"] and "total" in row["error"])  # none that was cut
