"""What `import mlx_llama4` hands on, and the ways to say which model is meant."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_llama4
from mlx_llama4 import Chat, ChatOptions, GenerationSettings, InputError, load
from mlx_llama4.cache.prompt_file import PromptFile
from mlx_llama4.convert import Recipe, convert
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.opening import load_model, open_folder
from mlx_llama4.quantization import Quantization
from tests.hub_server import Hub

NAMES = [
    "Chat",
    "ChatOptions",
    "CheckpointError",
    "ConfigError",
    "GenerationSettings",
    "HubError",
    "ImageError",
    "InputError",
    "KVQuantization",
    "Llama4Error",
    "OutputError",
    "PromptError",
    "Request",
    "RunError",
    "__version__",
    "generate",
    "generate_batch",
    "load",
    "make_sampler",
    "stream_generate",
]


def fresh(code: str) -> str:
    """What a Python of its own prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_public_names_are_pinned() -> None:
    assert mlx_llama4.__all__ == NAMES
    assert set(NAMES) <= set(dir(mlx_llama4))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlx_llama4.nothing


def test_no_public_name_becomes_a_module(demo_folder: Path, tmp_path: Path) -> None:
    """Importing a submodule sets an attribute of its package: `load` would turn into a module."""
    for module in pkgutil.walk_packages(mlx_llama4.__path__, "mlx_llama4."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert not {name.name for name in pkgutil.iter_modules(mlx_llama4.__path__)} & set(NAMES)
    for name in set(NAMES) - {"__version__"}:
        assert callable(getattr(mlx_llama4, name)), name
    assert mlx_llama4.__version__.count(".") == 2
    model, processor = mlx_llama4.load(demo_folder)
    prompt = processor.encode([{"role": "user", "content": "What is 7 plus 5?"}])
    steps = mlx_llama4.generate_batch(
        model,
        processor,
        [mlx_llama4.Request(prompt, mlx_llama4.GenerationSettings(max_tokens=20))],
    )
    assert "".join(step.text for _, step in steps) == "7 plus 5 is 12."
    options = mlx_llama4.ChatOptions(kv_quantization=mlx_llama4.KVQuantization(8))
    assert "".join(mlx_llama4.Chat.open(demo_folder, options).send("Hello")).startswith("Hello!")
    for name in NAMES:
        if name.endswith("Error"):
            assert issubclass(getattr(mlx_llama4, name), mlx_llama4.Llama4Error)
    assert convert is importlib.import_module("mlx_llama4.convert.run").convert
    mlx_llama4.convert.convert(
        CHECKPOINT, tmp_path / "again", mlx_llama4.convert.Recipe("bfloat16", None)
    )
    assert (tmp_path / "again" / "config.json").is_file()


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'mlx', 'mlx.core', 'numpy', 'tokenizers', 'PIL', 'jinja2', 'huggingface_hub'}"
    for code in (
        "import mlx_llama4, mlx_llama4.convert",
        "from mlx_llama4 import InputError, KVQuantization",
        "import mlx_llama4; dir(mlx_llama4); mlx_llama4.__version__",
    ):
        assert fresh(f"{code}; import sys; print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_all_names_come_with_a_star() -> None:
    found = fresh("from mlx_llama4 import *; print(load.__module__, Chat.__name__, __version__)")
    assert found == f"mlx_llama4.opening Chat {mlx_llama4.__version__}"


def test_a_folder_s_name_as_a_string(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_folder.parent)
    name = demo_folder.name
    chat = Chat.open(name)
    assert "".join(chat.send("What is 7 plus 5?")) == "7 plus 5 is 12."
    saved = str(tmp_path / "saved.safetensors")
    chat.save(saved)
    assert PromptFile(saved).tokens
    chat.reset()
    chat.load(saved)
    assert chat.messages[-1]["content"] == "7 plus 5 is 12."
    model, _ = load(name)
    assert model.config == open_folder(name).config == load_model(name).config
    monkeypatch.chdir(tmp_path)
    convert(str(CHECKPOINT), "converted", Recipe("bfloat16", Quantization(64, 8)))
    assert (tmp_path / "converted" / "model.safetensors").is_file()


def test_a_repository_s_name(hub: Hub, demo_folder: Path, tmp_path: Path) -> None:
    hub.repositories["owner/demo"] = demo_folder
    chat = Chat.open("owner/demo", ChatOptions(GenerationSettings(max_tokens=20)))
    assert "".join(chat.send("What is 7 plus 5?")) == "7 plus 5 is 12."
    assert load("owner/demo")[0].config == chat.model.config
    hub.repositories["owner/source"] = CHECKPOINT
    convert("owner/source", tmp_path / "out", Recipe("bfloat16", None))
    assert load(tmp_path / "out")[0].config.text == chat.model.config.text


@pytest.mark.parametrize("take", [Chat.open, load, load_model, open_folder])
@pytest.mark.parametrize("name", ["nowhere", Path("nowhere"), "no/such/folder"])
def test_a_name_that_means_nothing(take, name, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name} does not exist; give a model folder, or") as e:
        take(name)
    assert "\n" not in str(e.value)
