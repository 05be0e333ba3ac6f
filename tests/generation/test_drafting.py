"""Tokens guessed ahead and verified several at once: they are the tokens without that."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache as memoized
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import NOTES
from mlx_llama4.errors import InputError
from mlx_llama4.generation.choice import Chooser
from mlx_llama4.generation.decode import decode
from mlx_llama4.generation.drafting import Drafter, MakeDrafter, NgramDrafter
from mlx_llama4.generation.generate import Statistics, Step, stream_generate
from mlx_llama4.generation.sampler import make_sampler
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.generation.verify import DraftStatistics, decode_drafted
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.quantization import KVQuantization
from tests import tiny
from tests.prompts import Letters, words
from tests.proofs import scaled
from tests.small_model import PACKED_ERROR, model_of
from tests.streamed import ONE_A_LAYER, folder, load_streamed

FEW = 40  # different tokens, so that runs of three come again


def repetitive(seed: int, length: int = 60) -> Prompt:
    """Passages that come again, some of them changed."""
    random = np.random.default_rng(seed)
    passage = random.integers(0, FEW, length // 4)
    ids = np.concatenate([passage, passage, random.permutation(passage), passage])
    return Prompt(ids.astype(np.int32))


@dataclass
class Knowing:
    """Drafts so many of the very tokens that come, then others; all by how many were said."""

    tokens: Sequence[int]
    right: Sequence[int]
    others: Sequence[Sequence[int]] = ((0,),)
    said: int = 0

    def take(self, token: int) -> None:
        self.said += 1

    def propose(self, most: int) -> Sequence[int]:
        known = self.tokens[self.said : self.said + self.right[self.said % len(self.right)]]
        return [*known, *self.others[self.said % len(self.others)]][:most]


@memoized
def two_layers() -> Llama4:
    """A chunked and a global one, with experts: no more than the many tokens here need."""
    overrides = {"attention_chunk_size": 16, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}
    config = tiny.config("scout", **overrides)
    with tempfile.TemporaryDirectory() as root:
        source = tiny.write_checkpoint(Path(root) / "source", config, tiny.tensors(config))
        convert(source, Path(root) / "mlx", Recipe("float32", None))
        return load_model(Path(root) / "mlx", mx.float32)


def told(
    prompt: Prompt,
    model: Llama4 | None = None,
    end_tokens: Collection[int] = (),
    cache: Sequence[KVCache] | None = None,
    **arguments: object,
) -> tuple[list, Statistics]:
    """Of each step (token, text, why it was the last); statistics."""
    statistics = Statistics()
    settings = GenerationSettings(**{"max_tokens": 60} | arguments)
    steps = stream_generate(
        model or two_layers(),
        Letters(end_tokens),
        prompt,
        settings,
        cache=cache,
        statistics=statistics,
    )
    return [(step.token, step.text, step.finish_reason) for step in steps], statistics


@pytest.mark.slow
@pytest.mark.prove("drafts")
def test_500_tokens_after_20_prompts() -> None:
    """Greedy, float32, a chunk border after each 16 tokens; some drafts hold and some do not."""
    drafts = []
    for seed in range(scaled(20, long=300)):
        prompt = repetitive(seed)
        plain, _ = told(prompt, max_tokens=500)
        drafted, statistics = told(prompt, max_tokens=500, draft=NgramDrafter)
        assert drafted == plain and len(plain) == 500
        drafts.append(statistics.drafts)
    assert all(one.accepted > 100 for one in drafts)
    refused = [one.drafted - one.accepted for one in drafts]
    accepted = sum(one.accepted for one in drafts)
    print(f"\n{len(drafts)} prompts: {accepted} drafted tokens accepted, {sum(refused)} refused")
    assert sum(refused) > 100 and np.count_nonzero(refused) > 5


def test_a_draft_follows_the_longest_match() -> None:
    #              the latest of two      longer
    ids = np.array([9, 1, 2, 3, 50, 4, 1, 2, 3, 60, 5, 9, 1, 2, 3], np.int32)
    assert NgramDrafter(ids).propose(2) == [50, 4]
    assert NgramDrafter(ids[1:-4]).propose(2) == []
    shorter = NgramDrafter(ids[1:11])
    for token in (1, 2, 3):
        assert shorter.propose(3) == []
        shorter.take(token)
    assert shorter.propose(3) == [60, 5, 1]


def test_a_draft_goes_on_with_what_repeats() -> None:
    assert NgramDrafter(np.array([7, 1, 2, 1, 2, 1, 2], np.int32)).propose(5) == [1, 2, 1, 2]
    assert NgramDrafter(words(1, 2).prompt.ids).propose(5) == []
    assert len(NgramDrafter(np.zeros(9, np.int32)).propose(500)) == 8
    assert len(NgramDrafter(np.zeros(99, np.int32)).propose(500)) == 16


def test_tokens_told_one_by_one_are_found_as_if_they_were_the_prompt() -> None:
    ids = np.random.default_rng(0).integers(0, 4, 300).astype(np.int32)
    growing = NgramDrafter(ids[:0])
    for end, token in enumerate(ids.tolist(), start=1):
        growing.take(token)
        assert growing.propose(16) == NgramDrafter(ids[:end]).propose(16)


# Ways to choose a token; each draws, so that one draw too many would show in all that come after.
WAYS = (
    GenerationSettings(temperature=1.0),
    GenerationSettings(temperature=0.7, top_p=0.9, repetition_penalty=1.3),
    GenerationSettings(temperature=1.5, top_k=20, min_p=0.02, logit_bias={7: 3.0, 9: -100.0}),
    GenerationSettings(repetition_penalty=1.2),
)
PACKINGS = (None, KVQuantization(8, 32), KVQuantization(8, 32, after=25))
TOKENS = st.integers(0, tiny.VOCABULARY - 1)


@pytest.mark.slow
@pytest.mark.prove("drafts")
@given(
    way=st.sampled_from(WAYS),
    packing=st.sampled_from(PACKINGS),
    length=st.integers(1, 40),
    drafts=st.lists(st.lists(TOKENS, max_size=20), min_size=1, max_size=8),
    right=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    seed=st.integers(0, 5),
    taken=st.integers(1, 45),
)
@settings(
    max_examples=scaled(25, long=500),
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
)
def test_whatever_is_drafted(
    way: GenerationSettings,
    packing: KVQuantization | None,
    length: int,
    drafts: list[list[int]],
    right: list[int],
    seed: int,
    taken: int,
) -> None:
    """The same tokens as without, by the same seed, and the cache can be gone on with.

    What is drafted: a few of the very tokens that come, then any; cut off wherever a caller stops.
    """
    model, prompt, way = model_of("dense"), words(seed, length).prompt, replace(way, seed=seed)
    way = replace(way, max_tokens=40, logprobs=3)

    def run(draft: MakeDrafter | None, layers: list[KVCache]) -> Iterator[Step]:
        settings = replace(way, draft=draft)
        return stream_generate(model, Letters(), prompt, settings, cache=layers)

    plain = list(run(None, model.make_cache(packing)))
    tokens = [step.token for step in plain]

    def adversary(_: np.ndarray) -> Drafter:
        return Knowing(tokens, right, drafts)

    cache = PromptCache(model.make_cache(packing))
    steps = list(islice(run(adversary, cache.layers), taken))
    for step, expected in zip(steps, plain, strict=False):
        assert (step.token, step.finish_reason) == (expected.token, expected.finish_reason)
        assert step.text == expected.text
        assert abs(step.logprob - expected.logprob) < PACKED_ERROR
        assert [one[0] for one in step.likeliest] == [one[0] for one in expected.likeliest]
    assert len(steps) == min(taken, 40)
    said = np.array([*prompt.ids, *tokens[: len(steps)]], np.int32)
    cache.record(said, ())
    assert len(said) - 1 <= len(cache.ids) <= len(said)
    rest = [*said[len(cache.ids) :].tolist(), 3]
    logits = model(mx.array([rest]), cache.layers, last_only=True)
    whole = model(mx.array([[*said.tolist(), 3]]), model.make_cache(packing), last_only=True)
    assert np.abs(np.array(logits) - np.array(whole)).max() < PACKED_ERROR


@pytest.mark.parametrize("way", WAYS[1:3])
def test_the_same_seed_gives_the_same_tokens(way: GenerationSettings) -> None:
    def run(draft: MakeDrafter | None) -> tuple[list, Statistics]:
        return told(repetitive(4), **vars(replace(way, seed=4, max_tokens=60, draft=draft)))

    plain, _ = run(None)
    tokens = [token for token, _, _ in plain]
    drafted, statistics = run(lambda ids: Knowing(tokens, (3, 0, 6)))
    assert drafted == plain
    assert 10 < statistics.drafts.accepted < statistics.drafts.drafted - 5


def test_streamed_experts(tmp_path: Path) -> None:
    """A pass over several tokens takes more experts than there is room for."""
    model = load_streamed(folder(tmp_path, "maverick", None), ONE_A_LAYER)
    plain, _ = told(repetitive(2), model, max_tokens=30)
    tokens = [token for token, _, _ in plain]
    drafted, statistics = told(
        repetitive(2), model, max_tokens=30, draft=lambda ids: Knowing(tokens, (4, 1))
    )
    assert drafted == plain
    assert 5 < statistics.drafts.accepted < statistics.drafts.drafted
    assert statistics.decode_experts.misses > 0


def test_no_drafts_where_a_grammar_says_what_comes() -> None:
    with pytest.raises(InputError, match="cannot be drafted where a grammar"):
        told(repetitive(0), draft=NgramDrafter, grammar=object())


def test_an_answer_that_ends_within_a_draft() -> None:
    plain, _ = told(repetitive(4), max_tokens=13)
    tokens = [token for token, _, _ in plain]
    for end in tokens[1:5]:
        cache = PromptCache(two_layers().make_cache())
        drafted, statistics = told(
            repetitive(4),
            cache=cache.layers,
            end_tokens={end},
            draft=lambda ids: Knowing(tokens, (12,)),
        )
        assert drafted == told(repetitive(4), end_tokens={end})[0]
        assert statistics.drafts.accepted == 3  # up to the border
        ids = np.array([*repetitive(4).ids, *tokens[: len(drafted)]])
        cache.record(ids, ())
        assert len(cache.ids) == len(ids)


def test_a_conversation(demo_chat: Chat, tmp_path: Path) -> None:
    """Turns, one cut off, retried, taken back, saved and gone on with: as without drafts."""
    both, packing = [], KVQuantization(8, 32, after=150)
    for draft in (None, NgramDrafter):
        settings = GenerationSettings(max_tokens=40, draft=draft)
        options = ChatOptions(settings, kv_quantization=packing)
        chat = Chat(demo_chat.model, demo_chat.processor, options)
        chat.folder = demo_chat.folder
        found = []
        for text in (NOTES + "What is the code of walnut?", "Hello", "Hello"):
            found.append("".join(chat.send(text)))
        accepted = chat.statistics.drafts and chat.statistics.drafts.accepted
        pieces = chat.send("Hello")
        found.append(next(pieces) + next(pieces))
        pieces.close()
        found.append("".join(chat.retry("What is 2 plus 3?")))
        chat.rewind(2)
        found.append("".join(chat.send("Hello")))
        chat.save(tmp_path / "saved")
        chat.load(tmp_path / "saved")
        found.append("".join(chat.send("Hello")))
        both.append((found, chat.messages, chat.cache.ids.tolist()))
    assert both[0] == both[1]
    assert accepted > 3


@dataclass
class TableCache:
    """For a model that looks at no token but the last."""

    offset: int = 1

    def reversible(self, length: int) -> int:
        return length

    def rewind(self, position: int) -> None:
        self.offset = position


class Table:
    """A model of which the distribution after each token is known: logits [V, V]."""

    expert_statistics = None

    def __init__(self, logits: np.ndarray):
        self.logits = mx.array(logits)

    def __call__(self, ids: mx.array, cache: list[TableCache]) -> mx.array:
        cache[0].offset += ids.shape[1]
        return self.logits[ids]


@pytest.mark.slow
@pytest.mark.prove("draws")
@pytest.mark.parametrize("kind", ["unlikeliest", "likeliest", "right", "wrong"])
def test_distribution(kind: str) -> None:
    """Each token is a draw from what the model says after the one before, whatever is drafted:
    chi-square over all pairs of tokens. Seeds are fixed; p was 0.030, 0.699, 0.885 and 0.865.

    "right" knows what will be drawn, from a run without drafts; "wrong" drafts something else.
    """
    first = sum(map(ord, kind))
    found = [p_of_draws(kind, seed) for seed in range(first, first + scaled(1, long=100))]
    print(f"\n{kind}: {len(found)} runs, p = {min(found):.5f} at least, {np.mean(found):.3f} mean")
    assert min(found) > 0.001 / len(found)
    # Uniform between 0 and 1, so the mean of many is near a half: within four deviations.
    assert abs(np.mean(found) - 0.5) < 4 / np.sqrt(12 * len(found))


def p_of_draws(kind: str, seed: int) -> float:
    """How likely draws at least as far from the model's distribution are, if they are right."""
    size, count, temperature = 7, 2500, 0.8
    table = np.random.default_rng(1).standard_normal((size, size)).astype(np.float32)
    following = {
        "unlikeliest": table.argmin(axis=1),
        "likeliest": table.argmax(axis=1),
    }

    def run(drafter: Drafter | None) -> tuple[list[int], DraftStatistics]:
        choose, statistics = Chooser(make_sampler(temperature, seed=seed)), DraftStatistics()
        start, caches = mx.array(table[:1]), [TableCache()]
        if drafter is None:
            chosen = decode(Table(table), start, caches, choose, count)
        else:
            chosen = decode_drafted(Table(table), start, caches, choose, count, drafter, statistics)
        return [one.token for one in chosen], statistics

    class Following(Knowing):
        """The token that follows the last one, by a table."""

        def take(self, token: int) -> None:
            super().take(token)
            first = int(following[kind][token])
            self.others = ((first, int(following[kind][first]), first),)

    if kind in following:
        drafter = Following((), (0,))
    else:
        drafter = Knowing(
            [(token + (kind == "wrong")) % size for token in run(None)[0]], (3,), ((),)
        )
    tokens, statistics = run(drafter)
    if kind == "right":
        assert statistics.accepted == statistics.drafted > count / 2
    if kind == "wrong":
        assert statistics.accepted == 0 < statistics.drafted
    observed = np.zeros((size, size))
    np.add.at(observed, (tokens[:-1], tokens[1:]), 1)
    shares = np.exp(table / temperature)
    expected = observed.sum(axis=1, keepdims=True) * shares / shares.sum(axis=1, keepdims=True)
    squares = (observed - expected) ** 2 / expected
    return chi_square_p(float(squares.sum()), size * (size - 1))


def chi_square_p(value: float, degrees: int) -> float:
    """The chance of a larger value; for an even number of degrees of freedom."""
    terms = np.cumsum([0.0, *(np.log(value / 2 / k) for k in range(1, degrees // 2))])
    return float(np.exp(terms - value / 2).sum())
