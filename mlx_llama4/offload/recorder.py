"""Records which experts a model's tokens choose, while it runs; trace.py says how it is written.

Each MoE layer's choice is read back, so that the host can no longer be a token ahead of the
device. That costs where experts stay in memory; where they are streamed it is done anyway.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_llama4.errors import OutputError, RunError
from mlx_llama4.files.safetensors_file import check_place
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.trace import TraceHeader


class RoutingRecorder:
    """A file that a model's choices go to, from `attach` until the end of the `with` block.

    Made before the model is loaded, so that a bad place is refused first. Raises OutputError if
    the file is there already or cannot be made; if it cannot be written later, the model's call
    raises RunError.
    """

    def __init__(self, path: Path):
        self.path = path
        self._step, self._last_layer = -1, -1
        self._replaced: list[tuple[nn.Module, nn.Module]] = []  # feed-forwards and their experts
        check_place(path)
        try:
            # Unbuffered, so that what an end by force leaves can be read.
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
        """Record every forward pass of `model` from now on. name: what the file calls it."""
        text = model.config.text
        moe = [number for number, kind in enumerate(text.layers) if kind.feed_forward == "moe"]
        header = TraceHeader(name, text.num_local_experts, text.num_experts_per_tok, tuple(moe))
        self._write(header.as_json())
        for number in moe:
            feed_forward = model.language_model.model.layers[number].feed_forward
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
    """Stands where a layer's experts stood, and tells which of them were chosen."""

    def __init__(
        self, experts: nn.Module, layer: int, record: Callable[[int, Sequence[int]], None]
    ):
        super().__init__()
        self.experts = experts
        self._layer = layer
        self._record = record

    def __call__(self, x: mx.array, chosen: mx.array, meanwhile: mx.array) -> mx.array:
        """As the experts' own."""
        output = self.experts(x, chosen, meanwhile)
        # Afterwards: experts that are streamed know by their own wait for it what is computed.
        self._record(self._layer, chosen.tolist())
        return output
