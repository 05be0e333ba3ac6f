"""`mlx-llama4 ask` in this process: what it reads, what it prints, when it refuses."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mlx_llama4.cli import ask_input
from mlx_llama4.cli.main import app
from mlx_llama4.demo.questions import NOTES, PICTURES
from mlx_llama4.opening import open_folder
from mlx_llama4.prompt.raw_template import raw_template
from tests.commands import run

Ask = Callable[..., Result]

YES_OR_NO = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}


@pytest.fixture
def ask(demo_folder: Path) -> Ask:
    def invoke(*arguments: object, model: Path = demo_folder, text: str | None = None) -> Result:
        command = ["ask", "--model", str(model), *map(str, arguments)]
        return CliRunner().invoke(app, command, input=text)

    return invoke


@pytest.fixture
def refused(ask: Ask) -> Callable[..., str]:
    def said(*arguments: object, **more: object) -> str:
        result = ask(*arguments, **more)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        return line.removeprefix("error: ")

    return said


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(YES_OR_NO | {"additionalProperties": False}))
    return path


def test_a_document_that_is_piped_in(demo_folder: Path) -> None:
    question = "What is the code of walnut?"
    result = run("ask", question, "--model", demo_folder, text=NOTES)
    assert (result.stdout, result.stderr) == ("The code of walnut is 407.\n", "")
    assert run("ask", "Hello", "-m", demo_folder, text="\n").stdout.startswith("Hello! How can I")


def test_where_the_document_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the question, after a blank line; only from pipes and files."""
    path = tmp_path / "document"
    for document, raw, question, expected in (
        ("\ufeffOne.\r\nTwo.\n\n", False, "What?", "One.\nTwo.\n\nWhat?"),
        ("  \n", False, "What?", "What?"),
        ("What?\n", False, None, "What?\n"),
        ("What?\n", False, "-", "What?\n"),
        ("Once\n\n", True, None, "Once\n"),
        ("Once\n", True, "upon", "Once\n\nupon"),
    ):
        path.write_bytes(document.encode())
        with path.open(encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            assert ask_input.read_question(question, raw) == expected
    with Path("/dev/zero").open(encoding="utf-8") as stream:  # would never end
        monkeypatch.setattr(sys, "stdin", stream)
        assert ask_input.read_question("What?", False) == "What?"


def test_several_answers(ask: Ask) -> None:
    """By seeds one after the other, each as if it were asked for alone; the prompt is read once."""
    sampled = ("--temperature", 9, "--max-tokens", 12, "--json")
    lines = ask("Hello", "--n", 3, "--seed", 2**64 - 2, *sampled).stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["seed"] for answer in answers] == [2**64 - 2, 2**64 - 1, 0]
    assert len({answer["text"] for answer in answers}) == 3
    read = answers[0]["prompt_tokens"]
    assert [answer["cached_tokens"] for answer in answers] == [0, read - 1, read - 1]
    (alone,) = ask("Hello", "--seed", 2**64 - 1, *sampled).stdout.splitlines()
    assert json.loads(alone)["text"] == answers[1]["text"]
    unseeded = json.loads(ask("Hello", *sampled).stdout)
    again = json.loads(ask("Hello", "--seed", unseeded["seed"], *sampled).stdout)
    assert again["text"] == unseeded["text"]


def test_several_answers_as_text(ask: Ask) -> None:
    result = ask("Hello", "--n", 3, "--temperature", 0.01)
    hello = "Hello! How can I help you?\n"
    assert result.stdout == f"{hello}--- 2 of 3 ---\n{hello}--- 3 of 3 ---\n{hello}"


def test_logprobs(ask: Ask) -> None:
    hello = json.loads(ask("Hello", "--json", "--logprobs", 2).stdout)
    tokens = hello["logprobs"]
    assert "".join(token["text"] for token in tokens) == hello["text"] + "<|eot|>"
    assert len(tokens) == hello["generated_tokens"]
    for token in tokens:
        first, second = token["top"]
        assert first == {key: token[key] for key in ("token", "text", "logprob")}
        assert 0 >= first["logprob"] > second["logprob"]
    assert hello["seed"] is None and "steps" not in hello
    plain = json.loads(ask("Hello", "--json", "--logprobs", 0).stdout)
    assert [token["top"] for token in plain["logprobs"]] == [[]] * len(tokens)
    assert "logprobs" not in json.loads(ask("Hello", "--json").stdout)


def test_logprobs_of_half_a_character(ask: Ask, demo_folder: Path) -> None:
    processor = open_folder(demo_folder).processor
    first, *_ = processor.tokenizer.encode("🦙")
    forced = ("--logit-bias", f"{first}=1000", "--max-tokens", 1)
    answer = json.loads(ask("Hello", "--json", "--logprobs", 0, *forced).stdout)
    (token,) = answer["logprobs"]
    assert token["token"] == first and "text" not in token
    assert bytes(token["bytes"]) == "🦙".encode()[: len(token["bytes"])]


def test_a_schema(ask: Ask, schema: Path) -> None:
    result = ask("Is it so?", "--json-schema", schema)
    assert isinstance(json.loads(result.stdout)["yes"], bool)
    assert (result.exit_code, result.stderr) == (0, "")
    several = ("--n", 2, "--temperature", 1, "--json")
    lines = ask("Is it so?", "--json-schema", schema, *several).stdout.splitlines()
    assert all(json.loads(json.loads(line)["text"]).keys() == {"yes"} for line in lines)


def test_an_answer_that_is_cut_short_is_no_json(ask: Ask, schema: Path) -> None:
    cut = ("--json-schema", schema, "--max-tokens", 3)
    result = ask("Is it so?", *cut)
    assert result.exit_code == 1
    assert result.stderr == "(stopped after 3 tokens; the JSON is cut short)\n"
    result = ask("Is it so?", *cut, "--json")
    assert (result.exit_code, json.loads(result.stdout)["finish_reason"]) == (1, "length")


def test_pictures_that_a_shell_has_listed(refused: Callable[..., str]) -> None:
    said = refused("What?", "-i", "a.png", "b.png", "c d.png")
    assert said.startswith("'b.png c d.png' is too much: put one question in quotes, and a pattern")


def test_schemas_that_are_refused(
    refused: Callable[..., str], tmp_path: Path, demo_folder: Path
) -> None:
    """Before the weights are read: here there are none."""
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    path = tmp_path / "bad.json"

    def said() -> str:
        return refused("Hello", "--json-schema", path, model=folder)

    advice = "give a file that holds a JSON schema"
    assert said() == f"cannot read {path}: No such file or directory; {advice}"
    for text, expected in (
        ('{"type": ', "is not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' comes twice"),
        ("[1]", "a schema must be a JSON object"),
        ('{"type": "thing"}', "'thing' is not a type"),
        ('{"not": {}}', "Unimplemented keys"),
        ('{"type": "integer", "minimum": 2, "maximum": 1}', "Unsatisfiable schema"),
        ('{"type": "string", "pattern": "["}', "regex parse error"),
    ):
        path.write_text(text)
        line = said()
        assert line.startswith(str(path)) and expected in line


def test_raw_text(ask: Ask, demo_folder: Path) -> None:
    processor = open_folder(demo_folder).processor
    chat_prompt = processor.encode([{"role": "user", "content": "Hello"}]).ids
    processor.template = raw_template(processor.tokenizer)
    text = "  My <|eot|> name\n"
    ids = processor.encode([{"role": "user", "content": text}]).ids
    begin = processor.tokenizer.special_id("<|begin_of_text|>")
    assert ids.tolist() == [begin, *processor.tokenizer.encode(text)]
    answer = json.loads(ask("Hello", "--raw", "--json", "--max-tokens", 5).stdout)
    assert answer["prompt_tokens"] == 2 < len(chat_prompt)


def test_repetition_and_bias(ask: Ask, demo_folder: Path) -> None:
    """What was said before is said less, or not at all."""
    short = ("--max-tokens", 5)
    assert ask("Hello", "--logit-bias", "Hello=-100", *short).stdout[:5] != "Hello"
    assert ask("Hello", "--logit-bias", "<|eot|>=-inf", "--max-tokens", 15).stderr.startswith(
        "(stop"
    )
    assert ask("Hello", "--repetition-penalty", 50, *short).stdout[:5] != "Hello"


def test_options_that_are_refused(refused: Callable[..., str], schema: Path) -> None:
    star = PICTURES / "star.png"
    for expected, given in {
        "--image is for conversations": ("--raw", "--image", star),
        "--system is for conversations": ("--raw", "--system", "Be kind."),
        "--cache is for conversations": ("--raw", "--cache", "x.safetensors"),
        "--draft guesses at tokens": ("--draft", "ngram", "--json-schema", schema),
        "--stop would cut what --json-schema makes": ("--stop", "x", "--json-schema", schema),
        "--logprobs are shown in JSON": ("--logprobs", 2),
        "--n 2: at temperature 0 all answers": ("--n", 2),
        "min-p 2.0 must be": ("--temperature", 1, "--min-p", 2),
        "repetition penalty 0.0 must be above 0": ("--repetition-penalty", 0),
        "a stop string is empty": ("--stop", ""),
        "write it as TOKEN=BIAS": ("--logit-bias", "Hello"),
        "such as 1234=-100": ("--logit-bias", "5=nan"),
        "the model's tokens are 0 to 1018": ("--logit-bias", "1019=1"),
        "'Hello walnut' is 2 tokens (614, ": ("--logit-bias", "Hello walnut=1"),
        "token 614 has a bias already": ("--logit-bias", "Hello=1", "--logit-bias", "614=2"),
    }.items():
        assert expected in refused("Hello", *given)


def test_samples_as_told(ask: Ask, talkative: Path) -> None:
    def words(*options: object) -> str:
        return ask("Hello", "--max-tokens", 12, *options, model=talkative).stdout

    likeliest, third = words(), words("--temperature", 1, "--seed", 3)
    assert third == words("--temperature", 1, "--seed", 3)
    assert third != words("--temperature", 1, "--seed", 4)
    for one in ((0,), (1, "--top-k", 1), (1, "--min-p", 1)):
        assert words("--temperature", *one) == likeliest
