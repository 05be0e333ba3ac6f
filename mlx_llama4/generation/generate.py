"""Prompt → text, one token at a time, keeping the device one token ahead of the host."""

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
from mlx_llama4.prompt.messages import joined_texts, user_message, with_image_parts
from mlx_llama4.prompt.prompt import Prompt, check_length

if TYPE_CHECKING:
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.prompt.picture_file import ImageSource
    from mlx_llama4.prompt.processor import Processor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Step:
    """One generated token."""

    text: str  # what can be shown now; "" for an end token or inside a character
    token: int
    # Natural, and the model's own: before adjustments, grammar, temperature and filters.
    logprob: float
    # Set on the last step: "stop" for an end token or a stop string, "length" at max_tokens.
    finish_reason: FinishReason | None = None
    # As many (token, log-probability) as were asked for, the likeliest first.
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(repr=False)
class Statistics:
    """What a generation took. Rates are in tokens a second; None until they are known."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that the cache already held
    image_tiles: int = 0
    image_tokens: int = 0
    generated_tokens: int = 0
    time_to_first_token: float | None = None  # seconds
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    peak_memory_bytes: int = 0
    prefill_experts: StreamingStatistics | None = None  # None: all experts are in memory
    decode_experts: StreamingStatistics | None = None
    drafts: DraftStatistics | None = None  # None: drafting is off
    finish_reason: FinishReason | None = None
    steps: list[Step] = field(default_factory=list)  # kept only if logprobs were asked for
    # When the first token came. Not a field; callers may overwrite time_to_first_token.
    _first_at = 0.0

    def __repr__(self) -> str:
        if self.time_to_first_token is None:
            return "nothing generated yet"
        cached = f" ({self.cached_tokens:,} of them cached)" if self.cached_tokens else ""
        parts = [
            f"{self.prompt_tokens:,} tokens read{cached}{_rate(self.prefill_tokens_per_second)}",
            f"first token after {self.time_to_first_token:.2g} s",
            f"{self.generated_tokens:,} tokens written{_rate(self.decode_tokens_per_second)}",
        ]
        if self.finish_reason is not None:
            parts.append(self.finish_reason)
        return "; ".join(parts)

    def begin(self, model: Llama4, prompt: Prompt, cached: int) -> None:
        """Count the prompt's tokens and tiles. cached: prompt tokens that the cache holds."""
        self.prompt_tokens = len(prompt.ids)
        self.cached_tokens = cached
        self.image_tiles = prompt.num_tiles
        if model.config.vision is not None:
            self.image_tokens = prompt.num_tiles * model.config.vision.tokens_per_tile

    def count(self, seconds: float) -> None:
        """Count one more token, `seconds` after the start."""
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
    """What a generation needs from a processor: the bytes of each token, the tokens that end an
    answer, and the sampling defaults of the model's generation_config.json.
    """

    @property
    def end_tokens(self) -> Collection[int]: ...

    @property
    def defaults(self) -> GenerationConfig: ...

    def token_bytes(self, token: int, /) -> bytes: ...


class Wordless:
    """Stands in for a processor where only ids matter: no token has text or ends an answer."""

    end_tokens: frozenset[int] = frozenset()
    defaults = GenerationConfig(())

    def token_bytes(self, token: int, /) -> bytes:
        return b""


def _rate(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f", {tokens_per_second:.3g} tokens/s"


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

    Logits are adjusted first, then masked by the grammar, then sampled. Settings that are None take
    the processor's `defaults`.

    cache: may hold the prompt's beginning. It takes in the prompt and the tokens yielded, perhaps
        without the last one; its `offset` counts them. If a drafted answer ends early, it may hold
        more tokens than were yielded, and can be rewound to those.
    features: keeps the vision tower's output for pictures that come again.
    prefill_step: how many tokens of the prompt are processed at once.

    Raises PromptError if the prompt is empty or longer than the model's context, InputError for
    settings out of range.
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
    statistics.prefill_experts = experts.since(loaded) if experts and loaded else None
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
        statistics.decode_experts = experts.since(prefilled) if experts and prefilled else None
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
    """Answer one prompt, and return the whole answer.

    prompt: a question (the chat template gets `system`, then `images`, then the question), or a
        list of messages, or a Prompt, which is continued as is.
    max_tokens, temperature: override those of `settings`.
    verbose: print the answer while it is generated, and then the token counts and rates.

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
    messages = [with_image_parts(message) for message in prompt]
    for message in messages:
        check_message(message)
    return processor.encode(joined_texts(messages))


class StepWriter:
    """Tokens → steps: the text that can be shown, and whether the answer has ended."""

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
    """How many tokens to reserve in the caches at the start; they grow for longer answers."""
    return len(prompt.ids) + min(max_tokens, CACHE_BLOCK_TOKENS)
