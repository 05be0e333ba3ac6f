"""The command line, as a user meets it: in processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.stream import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from tests import tiny

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "MLX_LLAMA4_MODEL"}


def run(*arguments: object, text: str | None = None, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mlx_llama4", *map(str, arguments)],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT | extra,
        check=False,
    )


def refused(*arguments: object, code: int = 2, text: str | None = None) -> str:
    """The one line that a command says when it cannot do what is asked."""
    result = run(*arguments, text=text)
    assert result.returncode == code, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the demo's tokenizer: talks nonsense and does not stop."""
    root = tmp_path_factory.mktemp("talkative")
    config = tiny.config("scout", vocab_size=1019)
    config["image_token_index"] = 1018
    source = tiny.write_checkpoint(root / "source", config, tiny.tensors(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, source)
    (source / "generation_config.json").write_text('{"eos_token_id": 1001}')
    convert(source, root / "mlx", Recipe("float32", None))
    return root / "mlx"


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("convert", "ask", "chat", "inspect", "demo"):
        assert command in result.stdout
        assert "Example:" in run(command, "--help").stdout


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
        f"for command in (['ask', 'Hello'], ['chat']):\n"
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
    result = run("ask", question, *images, MLX_LLAMA4_MODEL=str(demo_folder))
    assert result.stdout == "The triangle is in the second image.\n"


def test_ask_reads_standard_input(demo_folder: Path) -> None:
    result = run("ask", "--model", demo_folder, text="What is 7 plus 5?")
    assert result.stdout == "7 plus 5 is 12.\n"


def test_ask_json(demo_folder: Path) -> None:
    wide = PICTURES / "wide.png"
    result = run("ask", "What shape is red?", "-m", demo_folder, "-i", wide, "--json")
    answer = json.loads(result.stdout)
    assert answer["text"] == "The square is red."
    assert (answer["prompt_tokens"], answer["image_tiles"], answer["image_tokens"]) == (40, 3, 12)
    assert answer["generated_tokens"] == 6
    assert answer["finish_reason"] == "stop"
    for name in ("time_to_first_token", "prefill_tokens_per_second", "decode_tokens_per_second"):
        assert answer[name] > 0
    assert answer["peak_memory_bytes"] > 10**6


def test_ask_samples_as_told(talkative: Path) -> None:
    def words(*options: object) -> str:
        return run("ask", "Hello", "-m", talkative, "--max-tokens", 30, *options).stdout

    assert words() == words("--temperature", 0)
    assert words("--temperature", 1, "--seed", 3) == words("--temperature", 1, "--seed", 3)
    assert words("--temperature", 1, "--seed", 3) != words("--temperature", 1, "--seed", 4)
    assert words("--temperature", 1, "--top-k", 1) == words()


def test_ask_says_when_the_quota_cut_the_answer(talkative: Path) -> None:
    result = run("ask", "Hello", "-m", talkative, "--max-tokens", 5)
    assert (result.returncode, result.stderr) == (0, "(stopped after 5 tokens)\n")


def test_chat(demo_folder: Path) -> None:
    lines = (
        f"My name is Ada.\n/image {PICTURES / 'star.png'}\nWhat is in the image?\n"
        "What is my name?\n/reset\nWhat is my name?\n"
        "/nonsense\n/image\n/image gone.png\n/quit\nno\n"
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
    assert notes[0] == f"[{PICTURES / 'star.png'}: 56×56 pixels, 1 tile]"
    assert notes[1:] == [
        "[conversation forgotten]",
        "error: unknown command /nonsense; /help lists them",
        "error: give the path of a picture: /image PATH",
        "error: gone.png does not exist",
    ]


def test_inspect(demo_folder: Path) -> None:
    result = run("inspect", demo_folder)
    assert result.returncode == 0
    for part in ("3,118,528", "quantized: 8 bits", "complete: 249 tensors in 1 file"):
        assert part in result.stdout
    found = json.loads(run("inspect", CHECKPOINT, "--json").stdout)
    assert (found["complete"], found["parameters"]) == (True, 3118528)


def test_inspect_names_what_is_missing(demo_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 7
    for key in ("no_rope_layers", "moe_layers", "layer_types"):
        config["text_config"][key] = None
    config["text_config"]["no_rope_layer_interval"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    result = run("inspect", folder)
    assert result.returncode == 1
    assert "missing: 9 tensors" in result.stdout
    assert "language_model.model.layers.6.self_attn.q_proj.weight" in result.stdout


def test_convert(tmp_path: Path) -> None:
    result = run("convert", CHECKPOINT, tmp_path / "out", "--bits", 8, "--group-size", 32)
    assert result.returncode == 0
    assert "from 6.24 MB" in result.stderr
    assert run("ask", "Hello", "-m", tmp_path / "out").stdout == "Hello! How can I help you?\n"
    plain = run("convert", CHECKPOINT, tmp_path / "plain", "--dtype", "float32")
    assert "12.5 MB from 6.24 MB" in plain.stderr
    default = run("convert", CHECKPOINT, tmp_path / "default")
    assert default.returncode == 0
    assert "4 bits" in run("inspect", tmp_path / "default").stdout


class TestRefusals:
    """Everything a user may get wrong: one line, exit code 2, before any weight is read."""

    def test_folders(self, tmp_path: Path, demo_folder: Path) -> None:
        for command in (("ask", "x", "-m"), ("chat", "-m"), ("inspect",)):
            assert "does not exist" in refused(*command, tmp_path / "nowhere")
            assert "no config.json" in refused(*command, tmp_path)
            assert "is a file" in refused(*command, demo_folder / "config.json")
        assert "does not exist" in refused("convert", tmp_path / "nowhere", tmp_path / "out")
        (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
        for command in (("ask", "x", "-m"), ("chat", "-m"), ("inspect",)):
            assert "only Llama 4 runs here" in refused(*command, tmp_path)
        assert "only Llama 4 runs here" in refused("convert", tmp_path, tmp_path / "out")

    def test_unconverted_checkpoint(self) -> None:
        assert "mlx-llama4 convert" in refused("ask", "x", "-m", CHECKPOINT)

    def test_damaged_weights(self, demo_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(demo_folder, tmp_path / "model")
        weights = folder / "model.safetensors"
        os.truncate(weights, weights.stat().st_size - 1000)
        for command in (("ask", "x", "-m"), ("inspect",)):
            assert "model.safetensors is truncated" in refused(*command, folder)
        weights.unlink()
        assert "1 of 1 shards missing (model.safetensors)" in refused("inspect", folder)
        (folder / "model.safetensors.index.json").unlink()
        assert "holds no model*.safetensors" in refused("ask", "x", "-m", folder)

    def test_images(self, demo_folder: Path, tmp_path: Path) -> None:
        notes, empty, cut = (tmp_path / name for name in ("notes.png", "empty.png", "cut.png"))
        notes.write_text("some text")
        empty.touch()
        Image.effect_noise((200, 200), 50).save(cut)
        os.truncate(cut, 900)
        for path, message in (
            (notes, "is not a picture in a known format"),
            (empty, "is empty (0 bytes)"),
            (cut, "is damaged"),
            (tmp_path, "is a folder"),
            (tmp_path / "gone.jpg", "does not exist"),
        ):
            said = refused("ask", "x", "-m", demo_folder, "-i", path)
            assert said.startswith(f"error: {path} {message}")

    def test_prompts(self, demo_folder: Path, tmp_path: Path) -> None:
        assert "the question is empty" in refused("ask", "", "-m", demo_folder)
        assert "the question is empty" in refused("ask", "-m", demo_folder, text=" \n")
        folder = shutil.copytree(demo_folder, tmp_path / "short")
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = 20
        (folder / "config.json").write_text(json.dumps(config))
        said = refused("ask", "What is 7 plus 5? " * 9, "-m", folder)
        assert "tokens; this model's context holds 20, answer included" in said

    def test_images_without_a_vision_tower(self, tmp_path: Path) -> None:
        config = tiny.config("scout", vocab_size=1019)
        config["vision_config"] = None
        source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config))
        shutil.copy(CHECKPOINT / "tokenizer.json", source)
        convert(source, tmp_path / "mlx", Recipe("float32", None))
        said = refused("ask", "x", "-m", tmp_path / "mlx", "-i", PICTURES / "star.png")
        assert "no vision tower" in said

    def test_options(self, demo_folder: Path, tmp_path: Path) -> None:
        assert "top-p 3.0" in refused("ask", "x", "-m", demo_folder, "--top-p", 3)
        assert "temperature -1.0" in refused("ask", "x", "-m", demo_folder, "--temperature", -1)
        out = tmp_path / "out"
        assert "--bits 3" in refused("convert", CHECKPOINT, out, "--bits", 3)
        assert "--group-size 7" in refused("convert", CHECKPOINT, out, "--group-size", 7)
        assert run("ask", "x").returncode == 2
        assert run("dance").returncode == 2
        assert run("convert", CHECKPOINT, out, "--dtype", "int8").returncode == 2

    def test_destinations(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "already exists" in refused("convert", CHECKPOINT, tmp_path)
        assert "cannot write to" in refused("convert", CHECKPOINT, tmp_path / "file" / "out")


def interrupt_after_some_text(*arguments: object) -> tuple[int, str, str]:
    """Send Ctrl-C once some of the answer is out; exit code, output and errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_llama4", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    first = os.read(process.stdout.fileno(), 10)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    return process.returncode, (first + rest).decode(errors="replace"), errors.decode()


def test_ctrl_c_while_answering(talkative: Path) -> None:
    endless = ("--max-tokens", 100000)
    code, output, errors = interrupt_after_some_text("ask", "Hello", "-m", talkative, *endless)
    assert (code, errors) == (130, "interrupted\n")
    assert output.strip()
    assert output.endswith("\n")


def test_ctrl_c_keeps_the_json_whole(talkative: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_llama4", "ask", "Hello", "-m", str(talkative), "--json",
         "--max-tokens", "100000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=4)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(output)["finish_reason"] == "interrupted"
    assert len(json.loads(output)["text"]) > 100


def test_reader_that_goes_away(talkative: Path) -> None:
    """`mlx-llama4 ask … | head -c 10`"""
    command = f"{sys.executable} -m mlx_llama4 ask Hello -m {talkative} --max-tokens 300"
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -c 10"], capture_output=True, text=True, check=False
    )
    assert result.stderr == ""


def test_unexpected_failures_are_one_line_too(demo_folder: Path) -> None:
    code = (
        "import mlx_llama4.chat\n"
        "def broken(*args, **kwargs): raise RuntimeError('the sky fell')\n"
        "mlx_llama4.chat.Chat.send = broken\n"
        "from mlx_llama4.cli.main import app\n"
        f"app(['ask', 'x', '-m', {str(demo_folder)!r}])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "error: unexpected RuntimeError: the sky fell"
    assert "Traceback" not in result.stderr
    debug = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"MLX_LLAMA4_DEBUG": "1"},
        check=False,
    )
    assert "Traceback" in debug.stderr


def test_example(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "image_qa.py"

    def example(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "an orange square, a purple cross and a black triangle" in example().stdout
    missing = example("x", "--image", tmp_path / "gone.png")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"error: {tmp_path / 'gone.png'} does not exist\n"
