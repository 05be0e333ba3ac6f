"""Records which experts a model's tokens choose while it runs; trace.py describes the file.

Each MoE layer's choice is read back, so the host can no longer be a token ahead of the device. That
costs time where all experts are in memory; streamed experts need the read-back anyway.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_llama4.errors import OutputError, RunError
from mlx_llama4.files.safetensors_file import check_place
from mlx_llama4.model.expert_linear import RoutedExperts
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.model.moe import MixtureOfExperts
from mlx_llama4.offload.trace import TraceHeader


class RoutingRecorder:
    """Writes a model's choices to a file, from `attach` until the end of the `with` block.

    Make it before loading the model, so that a bad path is refused first. Raises OutputError if the
    file exists or cannot be created. If it cannot be written later, the model's call raises
    RunError.
    """

    def __init__(self, path: Path):
        self.path = path
        self._step, self._last_layer = -1, -1
        self._replaced: list[tuple[MixtureOfExperts, RoutedExperts]] = []
        check_place(path)
        try:
            # Unbuffered, so that a killed process leaves whole lines.
            self._file = path.open("xb", buffering=0)
        except FileExistsError:
            raise OutputError(f"{path} is there already; give another name") from None
        except OSError as failure:
            raise OutputError(f"cannot write {path}: {failure.strerror or failure}") from None

    def __enter__(self) -> "RoutingRecorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for feed_forward, experts in self._replaced:
            feed_forward.experts = experts
        self._file.close()
        if not self._replaced:
            self.path.unlink(missing_ok=True)

    def attach(self, model: Llama4, name: str) -> None:
        """Records every forward pass of `model` from now on. name: what the file calls it."""
        text = model.config.text
        layers = enumerate(model.language_model.model.layers)
        found = ((number, layer.feed_forward) for number, layer in layers)
        moe = {number: one for number, one in found if isinstance(one, MixtureOfExperts)}
        header = TraceHeader(name, text.num_local_experts, text.num_experts_per_tok, tuple(moe))
        self._write(header.as_json())
        for number, feed_forward in moe.items():
            self._replaced.append((feed_forward, feed_forward.experts))
            feed_forward.experts = _RecordedExperts(feed_forward.experts, number, self._record)

    def _record(self, layer: int, experts: Sequence[int]) -> None:
        if self._step < 0 or layer <= self._last_layer:
            self._step += 1
        self._last_layer = layer
        self._write({"step": self._step, "layer": layer, "experts": experts})

    def _write(self, value: Any) -> None:
        line = f"{json.dumps(value, separators=(',', ':'))}\n".encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as failure:
            raise RunError(f"cannot write {self.path}: {failure.strerror or failure}") from None


class _RecordedExperts(nn.Module):
    """Takes the place of a layer's experts, and reports which were chosen."""

    def __init__(
        self, experts: RoutedExperts, layer: int, record: Callable[[int, Sequence[int]], None]
    ):
        super().__init__()
        self.experts = experts
        self._layer = layer
        self._record = record

    def __call__(self, x: mx.array, chosen: mx.array, meanwhile: mx.array) -> mx.array:
        """As `Experts.__call__`."""
        output = self.experts(x, chosen, meanwhile)
        # After the experts: streamed ones read the choice back themselves, at the right moment.
        self._record(self._layer, np.array(chosen).tolist())
        return output
