"""`mlx-llama4 ask`: one question, one answer or several."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.model_name import open_model
from mlx_llama4.cli.talk.draft_setting import Draft, Drafts, drafter
from mlx_llama4.errors import InputError, PromptError

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat, ChatOptions
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.planning.admission import Task
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.prompt.processor import Processor


@terminal.reports_errors
def ask(
    context: typer.Context,
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="QUESTION",
            help="Asked about the text that is piped in, if any. Without it, or if it is -, that "
            "text is the question.",
            show_default=False,
        ),
    ] = None,
    *,
    model: options.Model = None,
    revision: options.Revision = None,
    image: options.Images = None,
    no_fetch: options.NoFetch = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print each answer, with statistics, as a line of JSON."),
    ] = False,
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema",
            metavar="FILE",
            help="Answer with JSON that follows this schema, a file or the schema itself. "
            "Exit code 1 if it is cut short.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int,
        typer.Option("--n", metavar="N", min=1, help="Number of answers, with seeds S, S + 1, …"),
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="K",
            min=0,
            help="With --json: also each token's log-probability, and the K likeliest tokens.",
            show_default=False,
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the text as is, without the chat template."),
    ] = False,
    system: options.System = None,
    max_tokens: options.MaxTokens = 4096,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    logit_bias: options.LogitBias = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    cache: options.Cache = None,
    prefill_step: options.PrefillStep = None,
    kv_bits: options.KVBits = None,
    kv_group_size: options.KVGroupSize = None,
    kv_quantize_after: options.KVQuantizeAfter = None,
    draft: Drafts = Draft.off,
    experts: options.ExpertPlace = options.Where.auto,
    expert_memory: options.ExpertMemory = None,
    page_cache: options.PageCache = True,
    trace: options.Trace = None,
    force: options.Force = False,
) -> None:
    """Ask one question, with any number of pictures.

    \b
    Examples:
      mlx-llama4 ask "What is this?" --model scout-4bit --image photo.jpg
      cat report.txt | mlx-llama4 ask "Summarise this." --model scout-4bit
      mlx-llama4 ask "What was bought?" -m scout-4bit -i "receipts/*.png" --json-schema receipt.json
    """
    from mlx_llama4.cli.ask_input import find_pictures, read_question, tiled
    from mlx_llama4.cli.ask_output import Form, answer_all
    from mlx_llama4.cli.sampling import parse_logit_biases, parse_stops
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.prompt.raw_template import raw_template

    _refuse_contradictions(
        (
            bool(context.args),
            f"{' '.join(context.args)!r} is too much: put one question in quotes, and a pattern of "
            'pictures too (-i "scans/*.png"), or -i before each picture',
        ),
        (raw and bool(image), "--image is for conversations; leave it out, or --raw"),
        (raw and bool(system), "--system is for conversations; leave it out, or --raw"),
        (raw and cache is not None, "--cache is for conversations; leave it out, or --raw"),
        (bool(json_schema and stop), "--stop would cut what --json-schema makes; leave out one"),
        (
            bool(json_schema and draft != Draft.off),
            "--draft guesses at tokens that --json-schema might not allow; leave out one",
        ),
        (logprobs is not None and not as_json, "--logprobs are shown in JSON; add --json"),
    )
    terminal.import_mlx()
    text, paths = read_question(question, raw, image or []), find_pictures(image or [])
    if not text.strip() and not paths:
        raise PromptError("the question is empty")
    schema = None if json_schema is None else _read_schema(json_schema)
    caching = options.Caching(prefill_step, kv_bits, kv_group_size, kv_quantize_after)
    placing = options.expert_options(experts, expert_memory, page_cache)
    folder = open_model(model, revision)
    settings = GenerationSettings(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        logit_bias=parse_logit_biases(folder, logit_bias),
        stop=parse_stops(stop),
        logprobs=logprobs,
        draft=drafter(draft),
    )
    chat_options = options.chat_options(folder, system, settings, caching)
    chat_options.prefix_bytes = 0  # nothing comes after it
    if n > 1 and not chat_options.settings.is_random:
        raise InputError(f"--n {n}: at temperature 0 all answers are the same; add --temperature 1")
    held = options.open_cache(cache, folder, chat_options).tokens if cache is not None else 0
    processor = folder.processor
    if raw:
        processor = processor.with_template(raw_template(processor.tokenizer))
    images = tiled(processor, paths, no_fetch=no_fetch)
    task = _check(folder, processor, text, images, chat_options, held)
    placement = options.place_model(folder, task, placing, force=force)
    with options.loaded_chat(folder, chat_options, placement, trace) as chat:
        chat.processor = processor
        if cache is not None:
            chat.load(cache)
            options.warn_without_checksums(cache)
        if schema is not None:
            _constrain(chat, schema)
        answer_all(chat, text, images, Form(n, as_json, whole=schema is not None))


def _refuse_contradictions(*contradictions: tuple[bool, str]) -> None:
    """Raise an error for the first contradiction: (whether it applies, what to say)."""
    for is_there, message in contradictions:
        if is_there:
            raise InputError(message)


def _read_schema(given: str) -> Any:
    from mlx_llama4.generation.grammar import read_schema

    return read_schema(given, terminal.note)


def _check(
    folder: "ModelFolder",
    processor: "Processor",
    text: str,
    images: list["PromptImage"],
    chat_options: "ChatOptions",
    held: int,
) -> "Task":
    """Estimate the task. Refuses a prompt that the model cannot take.

    held: tokens of the prompt cache from which the question continues.
    """
    from mlx_llama4.chat.conversation import opening_messages
    from mlx_llama4.planning.admission import Task
    from mlx_llama4.prompt.messages import user_message
    from mlx_llama4.prompt.prompt import check_length

    messages = [*opening_messages(chat_options.system), user_message(text, images)]
    prompt = processor.encode(messages)
    check_length(prompt, folder.config)
    return Task(
        context=held + len(prompt.ids) + chat_options.settings.max_tokens,
        prompt=len(prompt.ids),
        tiles=tuple(image.num_tiles for image in images),
        kv=chat_options.kv_quantization,
        span=chat_options.prefill_step,
    )


def _constrain(chat: "Chat", schema: Any) -> None:
    """Have answers keep to a JSON schema."""
    from mlx_llama4.generation.grammar import Grammar, GrammarTokens

    vocabulary = chat.model.config.text.vocab_size
    tokens = GrammarTokens(chat.processor.tokenizer, chat.processor.end_tokens, vocabulary)
    grammar = Grammar(schema, tokens)
    chat.options.settings = replace(chat.options.settings, grammar=grammar)
