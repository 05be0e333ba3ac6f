"""Fixtures shared by all tests, and the device they run on.

pytest                 on the CPU, everywhere
pytest --device gpu    the same suite on the machine's GPU, with the GPU's tolerances
"""

import atexit
import os
import shutil
import tempfile
import warnings

# Reduced-precision matmuls would drown what the goldens are for.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import mlx.core as mx
import pytest

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.cli.talk.talk import Talk
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import proofs, tiny
from tests.golden.cases import MODELS
from tests.hub_server import hub  # noqa: F401  (a fixture)

# No test uses a clock: by default an example of 200 ms would fail.
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "gpu"), default="cpu")
    parser.addoption("--prove", choices=tuple(proofs.SUBJECTS), help="run a long proof alone")


def pytest_configure(config: pytest.Config) -> None:
    # What commands remember for the next run is not for the user who runs the tests.
    caches = tempfile.TemporaryDirectory(prefix="mlx-llama4-tests-")
    os.environ["XDG_CACHE_HOME"] = caches.name
    os.environ["XDG_STATE_HOME"] = f"{caches.name}/state"
    atexit.register(caches.cleanup)  # after what commands have registered
    mx.set_default_device(mx.gpu if config.getoption("--device") == "gpu" else mx.cpu)
    # A load on the CPU switches MLX's compiler off for the rest of its process; tests look at what
    # it traces.
    mx.disable_compile = lambda: None
    proofs.is_proving = config.getoption("--prove") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --prove, only the tests of that subject."""
    if (subject := config.getoption("--prove")) is None:
        return
    chosen = [item for item in items if (subject,) in (m.args for m in item.iter_markers("prove"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


PEER_EPSILON, TRUE_EPSILON = 1e-6, 1e-5  # of the peers' QK norm, and of config.json


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a golden model → its MLX folder in float32, converted by us from its checkpoint."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            case, root = MODELS[name], tmp_path_factory.mktemp(name)
            source = tiny.write_checkpoint(root / "source", case.config, case.weights())
            convert(source, root / "mlx", Recipe("float32", None))
            made[name] = root / "mlx"
        return made[name]

    return make


@pytest.fixture(scope="session")
def golden_model(golden_folder: Callable[[str], Path]) -> Callable[[str], Llama4]:
    """Name of a golden model → the model in float32."""
    loaded: dict[str, Llama4] = {}

    def get(name: str) -> Llama4:
        if name not in loaded:
            loaded[name] = load_model(golden_folder(name), mx.float32)
        return loaded[name]

    return get


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint, converted to 8 bits."""
    folder = tmp_path_factory.mktemp("demo") / "demo-8bit"
    convert(CHECKPOINT, folder, Recipe("bfloat16", Quantization(64, 8)))
    return folder


@pytest.fixture(scope="session")
def demo_chat(demo_folder: Path) -> Chat:
    """Not to be talked with: others take its model."""
    return Chat.open(demo_folder)


@pytest.fixture(scope="module")
def opened(demo_folder: Path) -> Chat:
    """A module's own, whose tests put it back before they talk with it."""
    return Chat.open(demo_folder)


@pytest.fixture
def talk(demo_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Nothing said yet; what it keeps goes to a folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    options = ChatOptions(GenerationSettings(max_tokens=60))
    chat = Chat(demo_chat.model, demo_chat.processor, options, demo_chat.folder)
    return Talk(chat)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[str, str]]:
    """What was shown since the last call: answers, and notes beside them."""

    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return read


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Scout-like checkpoint in bfloat16, in three shards, with a tokenizer."""
    case = MODELS["scout"]
    folder = tmp_path_factory.mktemp("source")
    config = case.config | {"image_token_index": 1018}  # the tokenizer's
    tiny.write_checkpoint(folder, config, case.weights(), "BF16", shards=3)
    (folder / "tokenizer.json").write_bytes((CHECKPOINT / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture
def right_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the peers' weightless norms use the config's epsilon."""
    rms_norm = mx.fast.rms_norm

    def patched(x: mx.array, weight: mx.array | None, eps: float, **stream: object) -> mx.array:
        return rms_norm(x, weight, TRUE_EPSILON if eps == PEER_EPSILON else eps, **stream)

    monkeypatch.setattr(mx.fast, "rms_norm", patched)


@pytest.fixture(scope="module")
def mlx_lm() -> Iterator[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlx_lm.utils as module
    yield module
