"""Answers by a JSON schema: valid whenever they end by themselves."""

import json
import random
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.config import GenerationConfig
from mlx_llama4.errors import InputError, RunError
from mlx_llama4.generation.generate import stream_generate
from mlx_llama4.generation.grammar import Grammar, GrammarMatcher, GrammarTokens
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests.proofs import scaled
from tests.schemas import Schema, random_schema
from tests.streamed import ONE_A_LAYER, load_streamed

CODE = {
    "type": "object",
    "properties": {"code": {"type": "integer", "minimum": 100, "maximum": 999}},
    "required": ["code"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokens(opened: Chat) -> GrammarTokens:
    return GrammarTokens(
        opened.processor.tokenizer, opened.processor.end_tokens, opened.model.config.text.vocab_size
    )


def ids_allowed(allowed: mx.array) -> set[int]:
    return set(np.flatnonzero(np.array(allowed)).tolist())


def answer(chat: Chat, grammar: Grammar, seed: int, max_tokens: int) -> str:
    settings = GenerationSettings(
        max_tokens=max_tokens, temperature=1.0, seed=seed, grammar=grammar
    )
    chat.options = ChatOptions(settings)
    chat.reset()
    return "".join(chat.send("Describe it as JSON."))


def ended_and_valid(
    chat: Chat, tokens: GrammarTokens, count: int, depth: int, max_tokens: int
) -> int:
    """How many of the answers to random schemas ended by themselves; all of these are valid."""
    ended = 0
    for seed in range(count):
        schema = random_schema(seed, depth)
        text = answer(chat, Grammar(schema, tokens), seed, max_tokens)
        if chat.statistics.finish_reason == "stop":
            ended += 1
            validate(text, schema)
        else:
            assert chat.statistics.finish_reason == "length"
            assert chat.statistics.generated_tokens == max_tokens
    return ended


def validate(text: str, schema: Schema) -> None:
    # As decimals: of 4.9999999999999999, a float would make 5.
    value = json.loads(text, parse_float=Decimal)
    jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)


def test_answers_that_end_validate(chat: Chat, tokens: GrammarTokens) -> None:
    assert ended_and_valid(chat, tokens, 12, depth=1, max_tokens=60) >= 6


@pytest.mark.slow
@pytest.mark.prove("schemas")
def test_200_answers_that_end_validate(chat: Chat, tokens: GrammarTokens) -> None:
    """Most of the others write a number's decimals, or a string, without end."""
    schemas = scaled(200, long=3000)
    ended = ended_and_valid(chat, tokens, schemas, depth=2, max_tokens=300)
    print(f"\n{schemas} schemas: {ended} answers ended by themselves, all of them valid")
    assert ended >= 0.85 * schemas


@pytest.mark.prove("schemas")
def test_whatever_is_chosen_of_what_is_allowed(chat: Chat, tokens: GrammarTokens) -> None:
    """By dice in the model's place, which like escapes, and ends more than a model does."""
    tokenizer = chat.processor.tokenizer
    spelled = {token: tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    closing = {token for token, text in spelled.items() if text in (b'"', b"}", b"]", b",")}
    escapes = {token for token, text in spelled.items() if b"\\" in text or text in (b"u", b"d")}
    for seed in range(scaled(100, long=5000)):
        dice, schema, said = random.Random(seed), random_schema(seed), []
        matcher = Grammar(schema, tokens).start()
        while len(said) < 1000:
            allowed = ids_allowed(matcher.allowed())
            may_end = bool(allowed & chat.processor.end_tokens)
            if allowed <= chat.processor.end_tokens or (may_end and dice.random() < 0.7):
                break
            liked = dice.choices([closing, escapes, set()], [35, 25, 40])[0]
            token = dice.choice(sorted(allowed & liked or allowed - chat.processor.end_tokens))
            matcher.accept(token)
            said.append(spelled[token])
        assert len(said) < 1000
        validate(b"".join(said).decode(), schema)


def test_the_model_still_has_its_say(chat: Chat, tokens: GrammarTokens) -> None:
    """Of what the schema allows, the likeliest: it knows the code."""
    chat.options.settings = GenerationSettings(
        grammar=Grammar(
            {"enum": ["The code of walnut is 408.", "The code of walnut is 407."]}, tokens
        )
    )
    question = "The code of walnut is 407.\nWhat is the code of walnut?"
    assert json.loads("".join(chat.send(question))).endswith("407.")


def test_only_the_tokenizer_s_own_bytes(chat: Chat, tokens: GrammarTokens) -> None:
    """At each step, what is allowed is what goes on a valid text; special tokens never are, but
    those that end, where it may.
    """
    tokenizer = chat.processor.tokenizer
    matcher = Grammar(CODE, tokens).start()
    text = b""
    for token in tokenizer.encode('{"code": 407}'):
        allowed = ids_allowed(matcher.allowed())
        assert token in allowed
        assert not allowed & set(tokenizer.special_ids.values())
        for other in allowed:
            whole = text + tokenizer.token_bytes(other)
            assert tokenizer.token_bytes(other) and whole.startswith(b"{")
        text += tokenizer.token_bytes(token)
        matcher.accept(token)
    assert ids_allowed(matcher.allowed()) == set(chat.processor.end_tokens)


def test_tokens_past_the_tokenizer_s_are_never_allowed(chat: Chat) -> None:
    padded = GrammarTokens(chat.processor.tokenizer, chat.processor.end_tokens, 1100)
    allowed = Grammar({"type": "string"}, padded).start().allowed()
    assert allowed.shape == (1100,)
    assert allowed[: chat.processor.tokenizer.vocab_size].any()
    assert not allowed[chat.processor.tokenizer.vocab_size :].any()


def test_characters_of_several_tokens(chat: Chat, tokens: GrammarTokens) -> None:
    chat.options.settings = GenerationSettings(
        grammar=Grammar({"const": {"llama 🦙": ["é", "\U0001f3fd"]}}, tokens)
    )
    text = "".join(chat.send("Hello"))
    assert json.loads(text) == {"llama 🦙": ["é", "\U0001f3fd"]}


def test_white_space_comes_to_an_end(tokens: GrammarTokens, chat: Chat) -> None:
    def goes_through(text: str) -> bool:
        matcher = Grammar(CODE, tokens).start()
        try:
            for token in chat.processor.tokenizer.encode(text):
                matcher.allowed()
                matcher.accept(token)
        except RunError:
            return False
        return True

    assert goes_through('{"code":407}')
    assert goes_through('{\n    "code": 407\n}')
    assert goes_through('{\n                "code": 407\n}')
    for runaway in ("{  ", "{\n\n", "{\n                 ", "{\t", '{"code": 407}\n', " {"):
        assert not goes_through(runaway)


def test_nothing_is_left_to_say(chat: Chat, tokens: GrammarTokens) -> None:
    brace = chat.processor.tokenizer.encode("{")
    forbidden = dict.fromkeys(ids_allowed(Grammar(CODE, tokens).start().allowed()), -100.0)
    assert brace[0] in forbidden
    settings = GenerationSettings(grammar=Grammar(CODE, tokens), logit_bias=forbidden)
    chat.options.settings = settings
    with pytest.raises(RunError, match="the logit bias forbids every token"):
        list(chat.send("Hello"))
    assert chat.messages == []


def test_too_complex_a_schema_is_an_error(chat: Chat, tokens: GrammarTokens) -> None:
    """Not an answer that ends early: a matcher that has failed allows end tokens."""
    from llguidance import LLMatcher, LLParserLimits

    pattern = {"type": "string", "pattern": "^(a|b)*a(a|b){9}$"}
    grammar = Grammar({"type": "object", "properties": {"a": pattern}}, tokens)
    for limits in ({"max_lexer_states": 2}, {"max_items_in_row": 1}):
        limited = LLParserLimits(precompute_large_lexemes=False, **limits)
        source = LLMatcher(tokens.wrapped, grammar._source, log_level=0, limits=limited)
        matcher = GrammarMatcher(source, tokens.wrapped.vocab_size)
        with pytest.raises(RunError, match=r"cannot follow the schema: .* (states|items)"):
            for token in chat.processor.tokenizer.encode('{"a": "abab'):
                matcher.allowed()
                matcher.accept(token)


def test_what_cannot_be_kept_to_is_refused(tokens: GrammarTokens) -> None:
    for schema in ({"type": "thing"}, {"uniqueItems": True}, True, None, {"$ref": "#/nowhere"}):
        with pytest.raises(InputError):
            Grammar(schema, tokens)


def test_turns_with_and_without(chat: Chat, tokens: GrammarTokens) -> None:
    """The cache goes on from an answer by a schema as from any other."""
    chat.options.settings = GenerationSettings(grammar=Grammar(CODE, tokens))
    "".join(chat.send("The code of walnut is 407."))
    held = len(chat.cache.ids)
    chat.options.settings = GenerationSettings()
    assert "".join(chat.send("What is 2 plus 3?")) == "2 plus 3 is 5."
    assert chat.statistics.cached_tokens == held


def test_streamed_tokens_are_shown_before_the_next_is_computed(demo_folder: Path) -> None:
    """One that ends the answer costs no read."""
    model = load_streamed(demo_folder, ONE_A_LAYER)
    tokenizer = Tokenizer.load(demo_folder)
    end = tokenizer.special_id("<|eot|>")
    grammar = Grammar({"const": 7}, GrammarTokens(tokenizer, {end}, 1019))
    steps = stream_generate(
        model,
        SimpleNamespace(
            token_bytes=tokenizer.token_bytes, end_tokens={end}, defaults=GenerationConfig(())
        ),
        Prompt(np.array(tokenizer.encode("Hello"), np.int32)),
        GenerationSettings(max_tokens=20, grammar=grammar),
    )
    assert next(steps).text == "7"
    before = model.expert_statistics.read_backs
    assert next(steps).finish_reason == "stop"
    assert model.expert_statistics.read_backs == before + 4  # of four MoE layers, for the 7
    assert next(steps, None) is None
    assert model.expert_statistics.read_backs == before + 4


def test_the_next_logits_are_under_way_when_a_token_is_shown(
    chat: Chat, tokens: GrammarTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    for name, target in (("async_eval", mx), ("item", mx.array)):
        call = getattr(target, name)
        monkeypatch.setattr(
            target, name, lambda *given, n=name, call=call: events.append(n) or call(*given)
        )
    tokenizer = chat.processor.tokenizer
    grammar = Grammar({"type": "string", "minLength": 100}, tokens)
    steps = stream_generate(
        chat.model,
        chat.processor,
        Prompt(np.array(tokenizer.encode("Hello"), np.int32)),
        GenerationSettings(max_tokens=3, grammar=grammar),
    )
    assert len(list(steps)) == 3
    assert events == ["item", "item", "async_eval"] * 2 + ["item", "item"]
