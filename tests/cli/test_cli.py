"""The command line, as a user meets it: each command in a process of its own, too."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mlx_llama4
from mlx_llama4.cli import options
from mlx_llama4.config import load_generation_config
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.generation.settings import GenerationSettings
from tests import tiny
from tests.commands import run, run_here


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("convert", "ask", "chat", "cache", "plan", "inspect", "demo"):
        assert command in result.stdout
        assert "Example" in run_here(command, "--help").stdout


def test_version() -> None:
    assert run("--version").stdout == f"{mlx_llama4.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """What makes it answer at once."""
    code = (
        "import sys\n"
        "from mlx_llama4.cli.main import app\n"
        "heavy = {'mlx', 'mlx.core', 'numpy', 'tokenizers', 'PIL', 'jinja2', 'rich.progress',"
        " 'transformers', 'mlx_lm', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_ask_and_chat_import_neither_mlx_lm_nor_transformers(demo_folder: Path) -> None:
    code = (
        "import sys\n"
        "from mlx_llama4.cli.main import app\n"
        f"for command in (['chat'], ['ask', 'Hello']):  # chat first: ask reads all there is\n"
        f"    app([*command, '--model', {str(demo_folder)!r}], standalone_mode=False)\n"
        "print(sorted({'transformers', 'mlx_lm', 'torch', 'huggingface_hub'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], input="Hello\n", capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert result.stdout.count("Hello! How can I help you?") == 2


def test_demo() -> None:
    result = run("demo")
    assert result.returncode == 0, result
    assert "All 8 answers are right." in result.stdout
    assert result.stdout.count("✓") == 8
    assert result.stderr == ""
    assert "mlx-llama4 demo -o demo-8bit\n  mlx-llama4 chat --model demo-8bit\n" in result.stdout


def test_demo_kept(tmp_path: Path) -> None:
    folder = tmp_path / "my demo"
    result = run("demo", "-o", folder)
    assert result.returncode == 0, result
    assert f"  mlx-llama4 chat --model '{folder}'\n" in result.stdout
    assert "mlx-llama4 demo -o" not in result.stdout
    assert run_here("ask", "What is 7 plus 5?", "--model", folder).stdout == "7 plus 5 is 12.\n"
    result = run("demo", "-o", folder)
    assert result.returncode == 2
    assert "already exists" in result.stderr


def test_demo_says_when_it_is_wrong(tmp_path: Path) -> None:
    """A check that can fail: with another expectation it does."""
    code = (
        "import dataclasses\n"
        "from mlx_llama4.demo import questions as q\n"
        "q.QUESTIONS = (dataclasses.replace(q.QUESTIONS[0], expected='a blue moon'),)\n"
        "from mlx_llama4.cli.main import app\n"
        "app(['demo'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "✗" in result.stdout
    assert "1 of 1 answers are wrong" in result.stderr


def test_ask(demo_folder: Path) -> None:
    star = PICTURES / "star.png"
    result = run("ask", "What is in the image?", "--model", demo_folder, "--image", star)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "From left to right: a red star.\n"


def test_ask_about_two_images_with_the_model_from_the_environment(demo_folder: Path) -> None:
    images = ("-i", PICTURES / "first.png", "-i", PICTURES / "second.png")
    question = "Which image has a triangle?"
    result = run_here("ask", question, *images, MLX_LLAMA4_MODEL=str(demo_folder))
    assert result.stdout == "The triangle is in the second image.\n"


def test_ask_reads_standard_input(demo_folder: Path) -> None:
    result = run("ask", "--model", demo_folder, text="What is 7 plus 5?")
    assert result.stdout == "7 plus 5 is 12.\n"


def test_ask_json(demo_folder: Path) -> None:
    wide = PICTURES / "wide.png"
    result = run_here("ask", "What shape is red?", "-m", demo_folder, "-i", wide, "--json")
    answer = json.loads(result.stdout)
    assert answer["text"] == "The square is red."
    assert (answer["prompt_tokens"], answer["image_tiles"], answer["image_tokens"]) == (40, 3, 12)
    assert answer["generated_tokens"] == 6
    assert answer["finish_reason"] == "stop"
    for name in ("time_to_first_token", "prefill_tokens_per_second", "decode_tokens_per_second"):
        assert answer[name] > 0
    assert answer["peak_memory_bytes"] > 10**6


def test_sampling_defaults_are_the_model_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("scout")))
    path = tmp_path / "generation_config.json"
    made: dict[str, object] = {}
    monkeypatch.setattr(
        "mlx_llama4.generation.settings.make_sampler", lambda **given: made.update(given)
    )
    untold = GenerationSettings(max_tokens=5)
    caching = options.Caching(2048, None, None, None)
    told = GenerationSettings(temperature=0.1, top_p=0.2, top_k=3, seed=4, min_p=0.5)
    for do_sample, temperature in ((True, 0.6), (False, 0.0)):
        stored = {"do_sample": do_sample, "temperature": 0.6, "top_p": 0.9, "top_k": 7}
        path.write_text(json.dumps(stored))
        folder = SimpleNamespace(defaults=load_generation_config(tmp_path))
        options.chat_options(folder, None, untold, caching)
        assert made == {
            "temperature": temperature,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.0,
            "seed": None,
        }
        options.chat_options(folder, None, told, caching)
        assert made == {"temperature": 0.1, "top_p": 0.2, "top_k": 3, "min_p": 0.5, "seed": 4}


def test_ask_says_when_the_quota_cut_the_answer(talkative: Path) -> None:
    result = run_here("ask", "Hello", "-m", talkative, "--max-tokens", 5)
    assert (result.returncode, result.stderr) == (0, "(stopped after 5 tokens)\n")


def test_chat(demo_folder: Path) -> None:
    lines = (
        f"My name is Ada.\n/image {PICTURES / 'star.png'}\nWhat is in the image?\n"
        "What is my name?\n/reset\nWhat is my name?\n"
        "/zzzzzz\n/image gone.png\n/image it's.png\n/image a\\\n/quit\nno\n"
    )
    result = run("chat", "--model", demo_folder, text=lines)
    assert result.returncode == 0
    answers = result.stdout.splitlines()
    assert answers[:3] == [
        "Nice to meet you, Ada!",
        "From left to right: a red star.",
        "Your name is Ada.",
    ]
    assert len(answers) == 4 and "Ada" not in answers[3]
    notes = result.stderr.splitlines()
    assert notes[0] == "[star.png: 56×56 pixels, 1 tile, 7 tokens]"
    assert notes[1:] == [
        "[conversation forgotten]",
        "error: unknown command /zzzzzz; /help lists them",
        "error: gone.png does not exist",
        "error: it's.png does not exist",
        "error: a\\ does not exist",
    ]


def test_inspect(demo_folder: Path) -> None:
    result = run_here("inspect", demo_folder)
    assert result.returncode == 0
    for part in ("3,857,344", "quantized: 8 bits", "complete: 305 tensors in 1 file"):
        assert part in result.stdout
    found = json.loads(run_here("inspect", CHECKPOINT, "--json").stdout)
    assert (found["complete"], found["parameters"]) == (True, 3857344)


def test_inspect_names_what_is_missing(demo_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 9
    for key in ("no_rope_layers", "moe_layers", "layer_types"):
        config["text_config"][key] = None
    config["text_config"]["no_rope_layer_interval"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    result = run_here("inspect", folder)
    assert result.returncode == 1
    assert "missing: 9 tensors" in result.stdout
    assert "language_model.model.layers.8.self_attn.q_proj.weight" in result.stdout


def test_convert(tmp_path: Path) -> None:
    result = run("convert", CHECKPOINT, tmp_path / "out", "--bits", 8, "--group-size", 32)
    assert result.returncode == 0
    assert "from 7.71 MB" in result.stderr
    assert run_here("ask", "Hello", "-m", tmp_path / "out").stdout == "Hello! How can I help you?\n"
    plain = run_here("convert", CHECKPOINT, tmp_path / "plain", "--dtype", "float32")
    assert "15.4 MB from 7.71 MB" in plain.stderr
    default = run_here("convert", CHECKPOINT, tmp_path / "default")
    assert default.returncode == 0
    assert "4 bits" in run_here("inspect", tmp_path / "default").stdout


def test_example(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "image_qa.py"

    def example(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "an orange square, a purple cross and a black triangle" in example().stdout
    missing = example("x", "--image", tmp_path / "gone.png")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"error: {tmp_path / 'gone.png'} does not exist\n"
