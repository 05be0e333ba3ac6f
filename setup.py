"""Restores the link mlx_llama4/convert -> ../convert; pyproject.toml says the rest.

An sdist does not hold the link, and a zip that pip unpacked holds a text file in its place.
"""

from pathlib import Path

from setuptools import setup

link = Path("mlx_llama4", "convert")
if not link.is_dir():
    link.unlink(missing_ok=True)
    link.symlink_to(Path("..", "convert"))

setup()
