"""Writes the copy of a model that mlx-vlm's offload reads. sys.argv[2:]: the model, the copy."""

import sys

from mlx_vlm.moe_offload import repack

repack(*sys.argv[2:])
