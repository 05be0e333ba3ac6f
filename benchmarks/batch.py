"""`python -m benchmarks batch`: several prompts together, beside one after the other.

A fresh process loads a model and answers the same prompts both ways, in turns as to which is
first. Whether each row's tokens are those of its own run is checked in the same processes.
"""

import json as json_module
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.presets import Preset, preset_config, preset_folder, unpacked_dtype
from benchmarks.harness.process import run_measured
from benchmarks.harness.ratios import ratio_of_medians
from benchmarks.harness.report import Metric, Report, show_bytes, show_ratio
from benchmarks.harness.rounds import Figures, Runs, run_rounds
from benchmarks.prefill import IDS
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import RunError

# Tokens of prompt and answer: `tiny` has chunks of 256, one row goes over a border while it is
# decoded and one while its prompt is read.
TEXTS = ((3, 40), (40, 24), (90, 48), (20, 16), (250, 32), (290, 20))
# Pictures, each in a prompt of its own, and tokens of their answers.
PICTURES = (("star.png", 28), ("wide.png", 36))

# Each engine's own ways from ids to tokens, yielded as they come. A row is (what `prompt_of` makes,
# tokens to come).
WAYS = {
    OURS: """
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.generation.batch import Request, generate_batch
from mlx_llama4.generation.generate import generate
from mlx_llama4.opening import load
from mlx_llama4.prompt.messages import user_message
from mlx_llama4.prompt.prompt import Prompt
model, processor = load(folder)
text = dict(token_bytes=processor.tokenizer.token_bytes, end_tokens=())
def prompt_of(given):
    if isinstance(given, str):
        picture = processor.tile(PICTURES / given)
        return processor.encode([user_message("Describe the image.", [picture])])
    return Prompt(np.array(given, np.int32))
def alone(prompt, count):
    return (step.token for step in generate(model, prompt, max_tokens=count, **text))
def batch(requests):
    return ((number, step.token) for number, step in generate_batch(model, requests, **text))
def together(rows):
    return batch(Request(*row) for row in rows)
def joining(rows):
    # Half of them at once, then one after each step.
    def arriving():
        for number, row in enumerate(rows):
            if number >= len(rows) // 2:
                yield None
            yield Request(*row)
    return batch(arriving())
""",
    "mlx-lm": """
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model
model, _ = load_model(folder)
prompt_of = list
def alone(prompt, count):
    return (int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count))
def together(rows):
    batch = BatchGenerator(model)
    prompts, counts = zip(*rows)
    numbers = batch.insert(list(prompts), max_tokens=list(counts))
    while True:
        for response in batch.next()[1]:
            yield numbers.index(response.uid), response.token
""",
    "mlx-vlm": """
from types import SimpleNamespace
from mlx_vlm.generate import BatchGenerator, generate_step
from mlx_vlm.utils import load_model
model = load_model(folder)
prompt_of = list
class Endless:
    # Stands for its stopping criteria: no answer ends before its time.
    def add_eos_token_ids(self, ids):
        pass
    def __call__(self, token):
        return False
processor = SimpleNamespace(tokenizer=SimpleNamespace(stopping_criteria=Endless()))
def alone(prompt, count):
    ids = mx.array(prompt)[None]
    steps = generate_step(ids, model, None, None, max_tokens=count, temperature=0)
    return (int(token) for token, _ in steps)
def together(rows):
    # As its batch_generate has it, where all is of one size.
    size = dict(prefill_batch_size=len(rows), completion_batch_size=len(rows))
    batch = BatchGenerator(model.language_model, processor, compute_logprobs=False, **size)
    prompts, counts = zip(*rows)
    embedded = [
        {"inputs_embeds": model.get_input_embeddings(mx.array(ids)[None], None).inputs_embeds}
        for ids in prompts
    ]
    numbers = batch.insert(list(prompts), list(counts), prompt_kwargs=embedded)
    while True:
        for response in batch.next()[1]:
            yield numbers.index(response.uid), int(response.token)
""",
}
IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.batch",
    "mlx-lm": "mlx_lm.utils, mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}
MEASURE = """\
import json, sys, time
from pathlib import Path
import mlx.core as mx, numpy as np
folder, first = Path(sys.argv[1]), sys.argv[2] == "1"
texts, pictures = json.loads(sys.argv[3])
%s
def one_by_one(rows):
    for number, row in enumerate(rows):
        for token in alone(*row):
            yield number, token
def clocks():
    return np.array([time.perf_counter(), time.process_time()])
def answers_of(way, rows):
    # And the time of tokens that are no row's first: what comes before that reads prompts.
    answers, left, decoding = [[] for _ in rows], sum(count for _, count in rows), np.zeros(2)
    before = clocks()
    for number, token in way(rows):
        now = clocks()
        if answers[number]:
            decoding += now - before
        before = now
        answers[number].append(token)
        left -= 1
        if not left:
            return answers, decoding
def measured(way, rows):
    answers_of(way, [(prompt, 2) for prompt, _ in rows[:2]])  # first steps take longer
    mx.clear_cache()
    weights = mx.get_active_memory()
    mx.reset_peak_memory()
    start = clocks()
    answers, decoding = answers_of(way, rows)
    (seconds, cpu_seconds), (decode_seconds, decode_cpu_seconds) = clocks() - start, decoding
    return answers, {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "decode_seconds": decode_seconds,
        "decode_cpu_seconds": decode_cpu_seconds,
        "peak_bytes": mx.get_peak_memory() - weights,
    }
def compared(together, rows):
    rows = [(prompt_of(given), count) for given, count in rows]
    found = {}
    for way in sorted((one_by_one, together), key=lambda way: way is not together or not first):
        try:
            found[way] = measured(way, rows)
        except Exception as failure:  # of a peer, which may not be able to
            if way is one_by_one:
                raise
            found[way] = None, {"failure": f"{type(failure).__name__}: {failure}"}
    answers, own = found[together][0] or [[]] * len(rows), found[one_by_one][0]
    return {
        "together": found[together][1],
        "alone": found[one_by_one][1],
        "rows_right": sum(a == b for a, b in zip(answers, own)),
    }
found = {"text": compared(together, texts)}
if pictures:
    found["pictures"] = compared(joining, texts + pictures)
print(json.dumps(found))
"""


@terminal.reports_errors
def batch(
    preset: Annotated[
        str, typer.Option(metavar="NAME", help=f"The model: {', '.join(Preset)}.")
    ] = Preset.tiny.value,
    rounds: options.Rounds = 5,
    warm_up: options.WarmUp = False,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
) -> None:
    """Prompts of several lengths answered together and one by one: tokens a second, peak memory.

    \b
    Example:
      python -m benchmarks batch --preset small --rounds 7 --json batch.json
    """
    outputs = options.Outputs(json, None)
    engines = choose_engines(only, python or (), prelude or ())
    preset_config(preset)  # before engines are looked for
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = preset_folder(preset, folder)
        report = _compare(model, idle, rounds, warm_up, folder)
    outputs.publish(report)


def answer_both_ways(
    engine: Engine, model: Path, together_first: bool, folder: Path
) -> dict[str, Any]:
    """In a process of its own. Raises RunError if it fails, or if ours cannot do both."""
    ids = np.random.default_rng(0).integers(0, IDS, sum(length for length, _ in TEXTS)).tolist()
    texts = [([ids.pop() for _ in range(length)], count) for length, count in TEXTS]
    given = json_module.dumps((texts, PICTURES if engine.name == OURS else ()))
    command = engine.command(MEASURE % WAYS[engine.name], model, int(together_first), given)
    found = json_module.loads(run_measured(command, folder).output.splitlines()[-1])
    failures = [
        load["together"]["failure"] for load in found.values() if "failure" in load["together"]
    ]
    if failures and engine.name == OURS:
        raise RunError(failures[0])
    return found


def _compare(
    model: Path, idle: Mapping[Engine, Idle], rounds: int, warm_up: bool, folder: Path
) -> Report:
    begun = dict.fromkeys(idle, 0)
    unable: dict[str, str] = {}

    def run_once(engine: Engine) -> Figures:
        begun[engine] += 1
        found = answer_both_ways(engine, model, begun[engine] % 2 == 0, folder)
        if "failure" in found["text"]["together"]:
            unable[engine.name] = found["text"]["together"]["failure"]
        return figures_of(found)

    runs = run_rounds(list(idle), run_once, rounds, warm_up, terminal.note)
    return Report(
        subject="batch: prompts together, beside one after the other",
        setup=_setup(model.name, rounds, warm_up) | findings(runs, unable),
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=METRICS,
        runs=runs,
    )


def figures_of(found: Mapping[str, Any]) -> Figures:
    """Of one process, by load ("text", "pictures") and way; 0 for what an engine cannot do."""
    figures: dict[str, float] = {}
    for load, result in found.items():
        tokens, rows = sum(LOADS[load]), len(LOADS[load])
        figures[f"{load}_rows_right"] = result["rows_right"]
        for way in ("alone", "together"):
            took, name = result[way], f"{load}_{way}"
            able = "seconds" in took
            figures[f"{name}_tokens_a_second"] = tokens / took["seconds"] if able else 0.0
            figures[f"{name}_decode_tokens_a_second"] = (
                (tokens - rows) / took["decode_seconds"] if able else 0.0
            )
            # For MLX's CPU backend on a machine that is not quiet; in JSON alone.
            for key in ("cpu_seconds", "decode_cpu_seconds", "peak_bytes"):
                figures[f"{name}_{key}"] = took.get(key, 0.0)
    return figures


def findings(runs: Runs, unable: Mapping[str, str]) -> dict[str, str]:
    """What a table of medians beside ours has no room for."""
    lines = {}
    for engine, rounds in runs.figures.items():
        loads = {"text": "", "pictures": ", with pictures"}
        for load in [load for load in loads if f"{load}_rows_right" in rounds[0]]:
            label = f"{engine}{loads[load]}"
            if engine in unable:
                lines[label] = f"cannot do it together: {unable[engine]}"
                continue
            gain = _gain(rounds, load, "tokens_a_second")
            # Where rows join, tokens of others come right behind a prompt.
            decode = _gain(rounds, load, "decode_tokens_a_second")
            of_decode = f", of decode alone {decode}" if load == "text" else ""
            right = min(each[f"{load}_rows_right"] for each in rounds)
            lines[label] = (
                f"tokens a second, together / one by one: {gain}{of_decode}; "
                f"{right:.0f} of {len(LOADS[load])} rows have the tokens of their own run"
            )
    return lines


def _gain(rounds: Sequence[Figures], load: str, rate: str) -> str:
    together, alone = (
        [figures[f"{load}_{way}_{rate}"] for figures in rounds] for way in ("together", "alone")
    )
    return show_ratio(ratio_of_medians(together, alone))


def _setup(preset: str, rounds: int, warm_up: bool) -> dict[str, str]:
    lengths = ", ".join(f"{length} + {count}" for length, count in TEXTS)
    first = "after a warm-up" if warm_up else "no warm-up"
    return {
        "model": f"preset {preset}, 4 bits, {unpacked_dtype()}",
        "prompts": f"of text, and their answers: {lengths} tokens; all at once, greedy",
        "with pictures": f"ours alone: the same and {len(PICTURES)} with a picture each; half join "
        "at once, the others one a step",
        "tokens a second": "of all answers, prompts read within the time; decode alone: of "
        "all tokens but the first of each",
        "peak memory": "MLX's own count, above the weights",
        "rounds": f"{rounds}, {first}; a fresh process for each, both ways in it, taking turns",
    }


def _show_rate(rate: float) -> str:
    return f"{rate:.1f}" if rate else "–"


def _show_peak(count: float) -> str:
    return show_bytes(count) if count else "–"


LOADS = {
    "text": tuple(count for _, count in TEXTS),
    "pictures": tuple(count for _, count in (*TEXTS, *PICTURES)),
}
METRICS = (
    Metric("text_alone_tokens_a_second", "one by one, tokens a second", _show_rate),
    Metric("text_together_tokens_a_second", "together, tokens a second", _show_rate),
    Metric("text_alone_decode_tokens_a_second", "one by one, decode alone", _show_rate),
    Metric("text_together_decode_tokens_a_second", "together, decode alone", _show_rate),
    Metric("text_alone_peak_bytes", "one by one, peak memory", _show_peak),
    Metric("text_together_peak_bytes", "together, peak memory", _show_peak),
)
