"""Runs an engine's command line, as `python -m PACKAGE …` does. sys.argv[2:]: its arguments."""

import runpy
import sys

MODULES = {"ours": "mlx_llama4", "mlx-lm": "mlx_lm", "mlx-vlm": "mlx_vlm"}

engine = sys.argv.pop(1)
runpy.run_module(MODULES[engine], run_name="__main__", alter_sys=True)
