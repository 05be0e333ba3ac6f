"""What is built: an sdist with all that the clone holds, and a wheel with the package alone."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mlx_llama4 import __version__

ROOT = Path(__file__).parents[1]
LINK = Path("mlx_llama4", "convert")

pytestmark = pytest.mark.slow


def files(folder: Path) -> set[str]:
    """Every file in `folder`, by its path there; links to folders are not followed."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder) for path in found}
    return {str(name) for name in names if not name.is_relative_to(LINK)}


def build(source: Path, *kind: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", *kind, "--outdir", source / "out"]
    subprocess.run([*command, source], check=True, capture_output=True)
    return source / "out"


def wheel_files(out: Path) -> set[str]:
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def copy_clone(to: Path) -> Path:
    """The working tree as git would have it, without what dots hide."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    return shutil.copytree(ROOT, to, symlinks=True, ignore=ignored)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it: what the sdist lacks is missed there too."""
    return build(copy_clone(tmp_path_factory.mktemp("package") / "clone"))


def test_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    kept = files(built.parent)
    packaged = {name for name in kept if name.startswith("mlx_llama4/")}
    packaged |= {f"mlx_llama4/{name}" for name in kept if name.startswith("convert/")}
    assert wheel_files(built) == packaged
    assert f"{LINK}/write.py" in packaged


def test_sdist_holds_all_but_the_link(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    made = ("out/", "mlx_llama4.egg-info/")
    assert {name for name in files(built.parent) if not name.startswith(made)} <= held
    assert not any(name.startswith(f"{LINK}/") for name in held)


def test_zip_without_links_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    """pip unpacks a link in a zip as a text file."""
    clone = copy_clone(tmp_path / "clone")
    (clone / LINK).unlink()
    (clone / LINK).write_text("../convert")
    assert wheel_files(build(clone, "--wheel")) == wheel_files(built)


def test_metadata(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == __version__
    # No address exists yet; one that is not ours must not be on a package index.
    assert "Project-URL" not in metadata and "Home-page" not in metadata
    versions = [
        match[1]
        for line in metadata.get_all("Classifier", [])
        if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
