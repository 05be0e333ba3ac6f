"""`python -m benchmarks needle`: its documents, how answers are judged, and the whole way."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from benchmarks.harness.machine import Machine
from benchmarks.harness.shares import Share, total
from benchmarks.needle import command as subject
from benchmarks.needle.command import _lift_limit, _read, is_right, parse_lengths, parse_seeds
from benchmarks.needle.haystack import KEYS, Needle, draw_haystack, spread
from benchmarks.needle.heat_map import write_heat_map
from benchmarks.needle.recall import (
    Asked,
    Reading,
    Recall,
    as_json,
    heat_map,
    print_recall,
    table_rows,
)
from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import InputError, PromptError
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.opening import load
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests.benchmarks.program import benchmark

ROOT = Path(__file__).parents[2]
LONGEST_SENTENCE = 16  # tokens


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(CHECKPOINT)


@pytest.fixture
def chat(demo_folder: Path) -> Chat:
    options = ChatOptions(GenerationSettings(max_tokens=32))
    return Chat(*load(demo_folder), options)


def count_words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("length", [200, 768, 5000])
@pytest.mark.parametrize("depths", [2, 9, len(KEYS)])
def test_documents_have_the_length_and_the_facts_asked_for(
    tokenizer: Tokenizer, length: int, depths: int
) -> None:
    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    if depths == len(KEYS) and length == 200:
        with pytest.raises(InputError, match=f"200 tokens cannot hold {depths} facts"):
            draw_haystack(length, spread(depths), 1, count)
        return
    haystack = draw_haystack(length, spread(depths), 1, count)
    # The last line's end, and a first sentence that has no space before it.
    assert abs(count(haystack.text) - haystack.tokens) <= 2
    assert length <= haystack.tokens < length + LONGEST_SENTENCE
    assert [one.depth for one in haystack.needles] == list(spread(depths))
    assert len({one.key for one in haystack.needles}) == depths
    assert len({one.code for one in haystack.needles}) == depths
    for one in haystack.needles:
        assert haystack.text.count(one.sentence) == haystack.text.count(f" {one.key} ") == 1
        before = haystack.text[: haystack.text.index(one.sentence)]
        assert abs(count(before.rstrip()) - one.position) <= 2


def test_facts_are_at_their_depths() -> None:
    haystack = draw_haystack(20_000, spread(5), 3, count_words)
    words = len(haystack.text.split())
    for one, share in zip(haystack.needles, (0, 0.25, 0.5, 0.75, 1), strict=True):
        assert one.position / words == pytest.approx(share, abs=0.005)
    first, last = haystack.needles[0].sentence, haystack.needles[-1].sentence
    assert haystack.text.startswith(f"Remember these notes.\n{first} ")
    assert haystack.text.endswith(f" {last}\n")


def test_same_seed_same_document() -> None:
    documents = [draw_haystack(300, spread(3), seed, count_words) for seed in (1, 1, 2)]
    assert documents[0] == documents[1]
    assert documents[0].text != documents[2].text


def test_judging() -> None:
    one = Needle("walnut", "407", 0.5, 10)
    assert one.question == "What is the code of walnut?"
    assert is_right(one, "The code of walnut is 407.", exact=True)
    for answer in ("The code of walnut is 407. ", "The code of amber is 407.", "407", ""):
        assert not is_right(one, answer, exact=True)
    for answer in ("407", "It is **407**.", "walnut: 407, as line 3 says"):
        assert is_right(one, answer, exact=False)
    for answer in ("", "1407", "4071", "40", "The code of walnut is 408."):
        assert not is_right(one, answer, exact=False)


def test_lengths_and_seeds() -> None:
    assert parse_lengths("8K, 768,1m,768") == [768, 8192, 1_048_576]
    assert parse_seeds("3", 2) == [3, 3]
    assert parse_seeds("8, 2", 2) == [8, 2]
    for bad in ("", "0", "-1", "8k,", "8G", "K"):
        with pytest.raises(InputError, match="write a number of tokens"):
            parse_lengths(bad)
    for bad in ("", "0", "a", "1,,2", "-1"):
        with pytest.raises(InputError, match="write a number"):
            parse_seeds(bad, 2)
    with pytest.raises(InputError, match="there are 2 lengths; give one number or 2"):
        parse_seeds("1,2,3", 2)


def test_intervals_are_wilson_s() -> None:
    """Values of statsmodels' proportion_confint(method="wilson")."""
    assert Share(10, 10).interval == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert Share(0, 10).interval == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert Share(8, 10).interval == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert total([Share(1, 2), Share(3, 3)]) == Share(4, 5)


def recall() -> Recall:
    """Two documents of 100 tokens, one of 2,000; the only wrong answer is in the middle of one."""
    readings = []
    for length, seed in ((100, 1), (100, 2), (2000, 1)):
        asked = []
        for depth in spread(3):
            right = (length, seed, depth) != (100, 2, 0.5)
            asked.append(Asked(Needle("otter", "123", depth, 7), "an answer", right, 130, 90))
        readings.append(Reading(length, length + 3, seed, 1.5 * seed, tuple(asked)))
    machine = Machine("a processor", 2, 8 * 10**9, "an OS")
    return Recall("a model", "the whole answer", spread(3), 1000, readings, machine)


def test_table_and_json_follow_from_the_answers(capsys: pytest.CaptureFixture[str]) -> None:
    found = recall()
    assert table_rows(found) == [
        ("depth", "100 tokens", "2,000 tokens"),
        ("0%", "2/2", "1/1"),
        ("50%", "1/2", "1/1"),
        ("100%", "2/2", "1/1"),
        ("all", "83.3%", "100.0%"),
        ("95% interval", "44% to 97%", "44% to 100%"),
        ("reading one", "2.2 s", "1.5 s"),
    ]
    print_recall(found)
    text = capsys.readouterr().out
    assert "beyond the model's own limit of 1,000 tokens, lifted" in text
    assert "  machine  a processor, 2 cores, 8 GB, an OS" in text
    whole = json.loads(json.dumps(as_json(found)))
    assert whole.keys() == {"date", "setup", "machine", "cells", "readings"}
    assert [cell["right"] for cell in whole["cells"]] == [2, 1, 2, 1, 1, 1]
    assert whole["cells"][1]["interval"] == pytest.approx(Share(1, 2).interval)
    assert whole["readings"][1]["asked"][1] == {
        "needle": {"key": "otter", "code": "123", "depth": 0.5, "position": 7},
        "answer": "an answer",
        "right": False,
        "prompt_tokens": 130,
        "cached_tokens": 90,
    }


def test_limit_is_named_only_where_it_was_lifted(capsys: pytest.CaptureFixture[str]) -> None:
    print_recall(dataclasses.replace(recall(), lifted_limit=None))
    assert "limit" not in capsys.readouterr().out


@pytest.mark.peers
def test_heat_map_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the peers extra")
    write_heat_map(heat_map(recall()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_heat_map_has_the_table_s_cells() -> None:
    found = recall()
    drawn = heat_map(found)
    cells = [tuple(map(str, row)) for row in drawn.shares]
    assert cells == [row[1:] for row in table_rows(found)[1:4]]
    assert drawn.rows == ["0%", "50%", "100%"] and drawn.columns == ["100", "2,000"]


def test_a_document_is_read_once_and_asked_often(chat: Chat, tokenizer: Tokenizer) -> None:
    # 3 · 128: ends just after a chunk's border, so that the questions stay in that chunk.
    haystack = draw_haystack(384, spread(5), 1, lambda text: len(tokenizer.encode(text)))
    reading = _read(chat, 384, 1, haystack, exact=True)
    assert [one.needle for one in reading.asked] == list(haystack.needles)
    assert all(one.right for one in reading.asked)
    cached = [one.cached_tokens for one in reading.asked]
    assert cached[0] == 0 and min(cached[1:]) >= haystack.tokens
    assert reading.seconds > 0
    # The same document in another order: no question sees the ones before.
    shuffled = dataclasses.replace(haystack, needles=haystack.needles[::-1])
    again = _read(chat, 384, 1, shuffled, exact=True)
    for one, other in itertools.product(reading.asked, again.asked):
        if one.needle == other.needle:
            assert one.answer == other.answer


@pytest.mark.slow
def test_questions_over_a_chunk_s_border_are_right_too(chat: Chat, tokenizer: Tokenizer) -> None:
    haystack = draw_haystack(500, spread(3), 1, lambda text: len(tokenizer.encode(text)))
    reading = _read(chat, 500, 1, haystack, exact=True)
    ends = [one.prompt_tokens // 128 for one in reading.asked]
    assert ends == [4] * 3 and haystack.tokens // 128 == 3
    chat.reset()
    for one in reading.asked:
        chat.messages.clear()
        chat.cache = type(chat.cache)(chat.model.make_cache())
        assert "".join(chat.send(haystack.text + one.needle.question)).strip() == one.answer


def test_the_limit_is_lifted_only_for_longer_documents(chat: Chat) -> None:
    own = chat.model.config.text.max_position_embeddings
    assert _lift_limit(chat.model, own) is None
    assert chat.model.config.text.max_position_embeddings == own
    assert _lift_limit(chat.model, own + 1) == own
    assert chat.model.config.text.max_position_embeddings == own + 1
    short = dataclasses.replace(chat.model.config.text, max_position_embeddings=50)
    chat.model.config = dataclasses.replace(chat.model.config, text=short)
    with pytest.raises(PromptError, match="context holds 50"):
        list(chat.send("What is the code of walnut? " * 10))
    _lift_limit(chat.model, 500)
    assert list(chat.send("What is the code of walnut? " * 10))


@pytest.mark.slow
def test_the_whole_way_on_the_demo(tmp_path: Path) -> None:
    sizes = ("--lengths", "128,256", "--seeds", "1,2", "--depths", 3)
    found = benchmark("needle", *sizes, "--json", tmp_path / "a.json")
    assert found.returncode == 0, found.stderr
    assert subject.DEMO in found.stdout
    assert ["depth", "128", "tokens", "256", "tokens"] in map(str.split, found.stdout.splitlines())
    assert "256 tokens, seed 2: " in found.stderr
    whole = json.loads((tmp_path / "a.json").read_text())
    assert [cell["asked"] for cell in whole["cells"]] == [1, 1, 1, 2, 2, 2]
    assert sum(cell["right"] for cell in whole["cells"]) >= 7


def test_a_model_of_one_s_own(talkative: Path, tmp_path: Path) -> None:
    """Random weights know nothing."""
    sizes = ("--lengths", "60", "--depths", 2, "--seeds", 1)
    found = benchmark("needle", "--model", talkative, *sizes, "--json", tmp_path / "a.json")
    assert found.returncode == 0, found.stderr
    assert str(talkative) in found.stdout and "the code is in the answer" in found.stdout
    whole = json.loads((tmp_path / "a.json").read_text())
    assert [cell["right"] for cell in whole["cells"]] == [0, 0]


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused_in_a_line(tmp_path: Path) -> None:
    for arguments, message in (
        (("--lengths", "20"), "20 tokens cannot hold 9 facts"),
        (("--lengths", "far"), "--lengths far: write a number of tokens"),
        (("--seeds", "1,2"), "there are 3 lengths"),
        (("--model", tmp_path / "nowhere"), "nowhere does not exist"),
        (("--json", tmp_path / "absent" / "a.json"), "is not a folder; create it first"),
    ):
        found = benchmark("needle", *arguments)
        assert found.returncode == 2, found.stderr
        assert found.stderr.count("\n") == 1 and message in found.stderr
        assert found.stdout == ""
