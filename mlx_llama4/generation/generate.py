"""Prompt → text, one token at a time, with the device kept one token ahead of the host."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.config import GenerationConfig
from mlx_llama4.errors import PromptError
from mlx_llama4.generation.choice import Chooser, Chosen
from mlx_llama4.generation.decode import decode, decode_constrained
from mlx_llama4.generation.detokenizer import StreamingDetokenizer
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import PREFILL_SPAN, ignore_progress, prefill
from mlx_llama4.generation.settings import DEFAULTS, GenerationSettings
from mlx_llama4.generation.stop import StopStrings
from mlx_llama4.generation.verify import DraftStatistics, decode_drafted
from mlx_llama4.generation.wired import wired
from mlx_llama4.memory import CACHE_BLOCK_TOKENS
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.model.streaming import StreamingStatistics
from mlx_llama4.prompt.checks import check_message
from mlx_llama4.prompt.messages import joined_texts, user_message
from mlx_llama4.prompt.prompt import Prompt, check_length

if TYPE_CHECKING:
    from mlx_llama4.prompt.image import ImageSource, PromptImage
    from mlx_llama4.prompt.processor import Processor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Step:
    """One generated token. `text` is what can be shown now that it has come; `logprob` its natural
    log-probability under the model, before adjustments, grammar, temperature and filters;
    `likeliest` as many (token, log-probability) as were asked for, the likeliest first.
    `finish_reason` is set on the last step: "stop" for an end token, which has no text of its
    own, or a stop string, "length" for a full quota.
    """

    text: str
    token: int
    logprob: float
    finish_reason: FinishReason | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass
class Statistics:
    """What a generation took. Rates are tokens a second; None until there is one. `steps` are kept
    where log-probabilities were asked for.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the cache
    image_tiles: int = 0
    image_tokens: int = 0
    generated_tokens: int = 0
    time_to_first_token: float | None = None  # seconds
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    peak_memory_bytes: int = 0
    prefill_experts: StreamingStatistics | None = None  # None: all experts are in memory
    decode_experts: StreamingStatistics | None = None
    drafts: DraftStatistics | None = None  # None: nothing was to be drafted
    finish_reason: FinishReason | None = None
    steps: list[Step] = field(default_factory=list)
    _first_at = 0.0  # no field: when the first token came; callers may count its time otherwise

    def begin(self, model: Llama4, prompt: Prompt, cached: int) -> None:
        """cached: tokens of the prompt that the cache holds already."""
        self.prompt_tokens = len(prompt.ids)
        self.cached_tokens = cached
        self.image_tiles = prompt.num_tiles
        if model.config.vision is not None:
            self.image_tokens = prompt.num_tiles * model.config.vision.tokens_per_tile

    def count(self, seconds: float) -> None:
        """One more token, `seconds` after the start."""
        if self.time_to_first_token is None:
            self.time_to_first_token = self._first_at = seconds
            new = self.prompt_tokens - self.cached_tokens
            self.prefill_tokens_per_second = new / seconds
        else:
            decoding = seconds - self._first_at
            self.decode_tokens_per_second = self.generated_tokens / decoding
        self.generated_tokens += 1
        self.peak_memory_bytes = mx.get_peak_memory()


class TokenText(Protocol):
    """What a generation asks of a processor: a token's bytes, which tokens end an answer, and how
    the model's own generation_config.json says that tokens are chosen.
    """

    @property
    def end_tokens(self) -> Collection[int]: ...

    @property
    def defaults(self) -> GenerationConfig: ...

    def token_bytes(self, token: int, /) -> bytes: ...


class Wordless:
    """In a processor's place where only ids count: no token has a text, and none ends an answer."""

    end_tokens: frozenset[int] = frozenset()
    defaults = GenerationConfig(())

    def token_bytes(self, token: int, /) -> bytes:
        return b""


@wired
def stream_generate(
    model: Llama4,
    processor: TokenText,
    prompt: Prompt,
    settings: GenerationSettings = DEFAULTS,
    *,
    cache: Sequence[KVCache] | None = None,
    features: ImageFeatureCache | None = None,
    prefill_step: int = PREFILL_SPAN,
    statistics: Statistics | None = None,
    on_prefill: Callable[[int, int], None] = ignore_progress,
) -> Iterator[Step]:
    """Continue the prompt until an end token, a stop string or the settings' `max_tokens`.

    Logits are first adjusted, then what the grammar does not allow is left out, then the sampler
    chooses. What the settings leave open is as the processor's `defaults` say.

    `cache` may hold the prompt's beginning. It takes in the prompt and then the tokens yielded,
    the last one perhaps not: its `offset` tells. If a drafted answer ends early, it may hold some
    beyond, and can go back to what was yielded. `features` keeps what the vision tower makes of
    pictures. prefill_step: how many tokens of the prompt are worked through at once. Raises
    PromptError if the prompt is empty or longer than the model's context, InputError for settings
    out of range.
    """
    check_length(prompt, model.config)
    settings = settings.resolved(processor.defaults)
    settings.check()
    room_left = model.config.text.max_position_embeddings - len(prompt.ids)
    max_tokens = min(settings.max_tokens, room_left)
    cache = model.make_cache() if cache is None else cache
    statistics = Statistics() if statistics is None else statistics
    writer = StepWriter(processor, StopStrings(settings.stop), max_tokens)
    mx.reset_peak_memory()
    started_at = time.perf_counter()
    experts = model.expert_statistics
    loaded = experts and replace(experts)
    statistics.begin(model, prompt, cached=cache[0].offset)
    for layer in cache:
        layer.reserve(room(prompt, max_tokens))
    logits = prefill(
        model, prompt, cache, span=prefill_step, features=features, on_progress=on_prefill
    )
    prefilled = experts and replace(experts)
    statistics.prefill_experts = experts and experts.since(loaded)
    choose = Chooser(
        settings.make_sampler(), settings.make_adjustments(), settings.logprobs or 0, prompt.ids
    )
    if settings.draft is not None:
        statistics.drafts = DraftStatistics()
        mx.async_eval(logits)  # while the host looks through the prompt
        drafting = (settings.draft(prompt.ids), statistics.drafts)
        tokens = decode_drafted(model, logits, cache, choose, max_tokens, *drafting)
    elif settings.grammar is not None:
        matcher = settings.grammar.start()
        tokens = decode_constrained(model, logits, cache, choose, max_tokens, matcher)
    else:
        tokens = decode(model, logits, cache, choose, max_tokens)
    for chosen in tokens:
        statistics.count(time.perf_counter() - started_at)
        statistics.decode_experts = experts and experts.since(prefilled)
        step = writer.step(chosen)
        statistics.finish_reason = step.finish_reason
        if settings.logprobs is not None:
            statistics.steps.append(step)
        yield step
        if step.finish_reason is not None:
            return


def generate(
    model: Llama4,
    processor: "Processor",
    prompt: str | Sequence[Mapping[str, Any]] | Prompt,
    settings: GenerationSettings = DEFAULTS,
    *,
    images: "Sequence[ImageSource | PromptImage]" = (),
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    verbose: bool = False,
) -> str:
    """The whole answer to one prompt.

    prompt: a question, put to the model through its chat template after `images` and below
    `system`; or messages; or a Prompt, which is continued as it is. max_tokens, temperature: in
    place of the settings'. verbose: print the answer as it comes, and what it took.

    Raises PromptError for messages that the model cannot take, ImageError for a picture that cannot
    be read, InputError for settings out of range.
    """
    given = _as_prompt(processor, prompt, images, system)
    if max_tokens is not None:
        settings = replace(settings, max_tokens=max_tokens)
    if temperature is not None:
        settings = replace(settings, temperature=temperature)
    statistics = Statistics()
    texts: list[str] = []
    for step in stream_generate(model, processor, given, settings, statistics=statistics):
        texts.append(step.text)
        if verbose:
            print(step.text, end="", flush=True)
    if verbose:
        rates = (statistics.prefill_tokens_per_second, statistics.decode_tokens_per_second)
        read, written = ("" if rate is None else f", {rate:.1f} a second" for rate in rates)
        print(f"\n{statistics.prompt_tokens} tokens read{read}")
        print(f"{statistics.generated_tokens} tokens written{written}")
    return "".join(texts)


def _as_prompt(
    processor: "Processor",
    prompt: str | Sequence[Mapping[str, Any]] | Prompt,
    images: "Sequence[ImageSource | PromptImage]",
    system: str | None,
) -> Prompt:
    if isinstance(prompt, str):
        if not prompt.strip() and not images:
            raise PromptError("the question is empty")
        question = user_message(prompt, [processor.tile(image) for image in images])
        return processor.encode(
            [*([{"role": "system", "content": system}] if system else []), question]
        )
    if images or system:
        raise PromptError("images and system go with a question; put them into the messages")
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, list | tuple) or not all(isinstance(m, Mapping) for m in prompt):
        raise PromptError(f"a prompt is a text, messages or a Prompt, not {type(prompt).__name__}")
    if not prompt:
        raise PromptError("there are no messages")
    for message in prompt:
        check_message(message)
    return processor.encode(joined_texts(prompt))


class StepWriter:
    """Tokens → steps: text as it may be shown, and when there is an end."""

    def __init__(self, processor: TokenText, stops: StopStrings, max_tokens: int):
        self._detokenizer = StreamingDetokenizer(processor.token_bytes)
        self._end_tokens = processor.end_tokens
        self._stops = stops
        self._left = max_tokens

    def step(self, chosen: Chosen) -> Step:
        self._left -= 1
        ended = chosen.token in self._end_tokens
        text = "" if ended else self._stops.add(self._detokenizer.add(chosen.token))
        reason: FinishReason | None = None
        if ended or self._stops.found:
            reason = "stop"
        elif self._left == 0:
            reason = "length"
        if reason is not None:
            text += self._stops.rest()
        return Step(text, chosen.token, chosen.logprob, reason, chosen.likeliest)


def room(prompt: Prompt, max_tokens: int) -> int:
    """Tokens that caches are given room for at the start; long answers make them grow."""
    return len(prompt.ids) + min(max_tokens, CACHE_BLOCK_TOKENS)
