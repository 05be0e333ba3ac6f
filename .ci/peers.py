"""Run the tests that need mlx-vlm and matplotlib, in an environment of their own.

.venv/bin/python .ci/peers.py

The environment takes 1.2 GB and is made once for each Python, list of requirements and pins in
peers.txt; it is kept in ~/.cache/mlx-llama4 and serves every clone. Where it cannot be made, one
line says how many tests were not run, and that alone is no failure.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = Path(__file__).with_name("peers.txt")
MARKED = ["-m", "pytest", "-m", "peers"]


def main() -> int:
    wanted = requirements()
    folder = environment_folder(wanted)
    forget_unused(folder.parent)
    if failure(works(folder)):
        shutil.rmtree(folder, ignore_errors=True)
        reason = make_environment(folder, wanted)
        if reason:
            print(f"peers: {count_tests()} tests were not run, having no environment: {reason}")
            return 0
    os.utime(folder)
    # The environment holds everything but this clone, so that all clones can use it.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([folder / "bin/python", *MARKED], cwd=ROOT, env=environment).returncode


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["dev"], *extras["peers"]]


def environment_folder(wanted: list[str]) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = "\n".join([sys.version, platform.platform(), *wanted, PINS.read_text()])
    return caches / "mlx-llama4" / f"peers-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def forget_unused(caches: Path) -> None:
    """Remove environments that no run has used for a month."""
    for folder in caches.glob("peers-*"):
        if time.time() - folder.stat().st_mtime > 30 * 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)


def works(folder: Path) -> list[str | Path]:
    """The command that fails unless the environment is there and whole."""
    return [folder / "bin/python", "-c", "import matplotlib, mlx_vlm.utils"]


def failure(command: list[str | Path]) -> str | None:
    """Run a command; its last line if it failed."""
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    lines = run.stderr.strip().splitlines() or run.stdout.strip().splitlines()
    return (lines or [f"exit code {run.returncode}"])[-1] if run.returncode else None


def make_environment(folder: Path, wanted: list[str]) -> str | None:
    """Make it under another name, then rename it, so that a half-made one is never used.

    Returns why it could not be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    print(f"peers: making {folder}; this takes a few minutes", flush=True)
    pip = [made / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        reason = (
            failure([sys.executable, "-m", "venv", made])
            or failure([*pip, "--retries", "1", "--constraint", PINS, *wanted])
            or failure(works(made))
        )
        if reason is None and not folder.exists():
            made.rename(folder)
        return reason
    finally:
        shutil.rmtree(made, ignore_errors=True)


def count_tests() -> int:
    command = [sys.executable, *MARKED, "--collect-only"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return sum("::" in line for line in listed.stdout.splitlines())


if __name__ == "__main__":
    sys.exit(main())
