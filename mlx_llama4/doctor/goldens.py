"""Check that models compute here what the reference computed, by comparing logits on each device.

The reference is transformers in float32 (tests/golden/README.md). The models are made in memory
from random numbers that are the same everywhere; only goldens/*.npz is read.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_llama4.doctor import cases, models
from mlx_llama4.doctor.unknown import reason
from mlx_llama4.model.llama4 import Llama4

FOLDER = Path(__file__).parent / "goldens"
# Largest allowed absolute difference of logits, whose standard deviation is 2. The reference's own
# noise in float32 (its cache against one pass) is 1e-5. A GPU sums in other orders and has less
# exact functions (exp, sin); reduced-precision matmuls are off. No Mac has confirmed them yet.
LIMITS = {
    ("CPU", "text"): 3e-5,
    ("CPU", "images"): 6e-5,
    ("GPU", "text"): 1e-3,
    ("GPU", "images"): 2e-3,
}
# For bfloat16 the median difference is compared, on any device: with 8 bits of mantissa, a near tie
# of two experts sometimes falls the other way and changes all of that token's logits. On MLX's CPU
# backend the median is 0.05 to 0.06; for unrelated logits it would be 2.
BFLOAT16_MEDIAN_LIMIT = 0.15
PREFILLED = 100  # tokens, before the others come one by one
ONE_BY_ONE = (PREFILLED, *[1] * (cases.TEXT_TOKENS - PREFILLED))
UNEQUAL = (31, 1, 1, 31, 86)


@dataclass(frozen=True)
class Check:
    """One comparison of logits."""

    name: str
    model: str
    inputs: str = "text"  # or one of cases.IMAGES
    # How many tokens to feed in each step; None: all at once.
    steps: tuple[int, ...] | None = None
    dtype: str = "float32"
    # In 4 bits, compared with the same weights unpacked on the CPU instead of the reference.
    packed: bool = False

    def limit(self, device: str) -> float:
        if self.dtype != "float32":
            return BFLOAT16_MEDIAN_LIMIT
        return LIMITS[device, "text" if self.inputs == "text" else "images"]


CHECKS = (
    Check("Scout-like: 150 tokens, 4 chunk borders", "scout"),
    Check("Scout-like: in unequal steps", "scout", steps=UNEQUAL),
    Check("Scout-like: 100 tokens, then one by one", "scout", steps=ONE_BY_ONE),
    Check("Scout-like: a picture of 2 × 2 tiles", "scout", "2x2"),
    Check("Scout-like: two pictures", "scout", "two images"),
    Check("Scout-like: RoPE scaled within the text", "strong_rope"),
    Check("Maverick-like: 150 tokens, 4 chunk borders", "maverick"),
    Check("Maverick-like: in unequal steps", "maverick", steps=UNEQUAL),
    Check("Maverick-like: 100 tokens, then one by one", "maverick", steps=ONE_BY_ONE),
    Check("Maverick-like: a picture of 2 × 2 tiles", "maverick", "2x2"),
    Check("wide heads: 150 tokens", "wide"),
    Check("wide heads: 100 tokens, then one by one", "wide", steps=ONE_BY_ONE),
    Check("wide heads: two pictures", "wide", "two images"),
    Check("wide heads: 4 bits", "wide", packed=True),
    Check("wide heads: 4 bits, then one by one", "wide", steps=ONE_BY_ONE, packed=True),
    Check("wide heads: bfloat16", "wide", dtype="bfloat16"),
    Check("wide heads: bfloat16, 4 bits", "wide", dtype="bfloat16", packed=True),
)


@dataclass(frozen=True)
class Result:
    """The outcome of a check."""

    name: str
    device: str
    dtype: str
    # Of logits: the largest, in bfloat16 the median; None if a problem prevented the comparison.
    difference: float | None
    limit: float
    # Whether the likeliest token is the same at every position, even where no logits are kept. Not
    # checked in bfloat16.
    same_winners: bool
    problem: str | None = None

    @property
    def passed(self) -> bool:
        # A NaN is within no limit.
        return self.difference is not None and self.difference <= self.limit and self.same_winners


def devices() -> tuple[str, ...]:
    """The devices to check: the default one, and the CPU."""
    return ("CPU",) if mx.default_device() == mx.cpu else ("GPU", "CPU")


def run(check: Check, device: str, folder: Path = FOLDER) -> Result:
    """Run a check; any error becomes part of its result. folder: of the goldens."""
    limit = check.limit(device)
    try:
        with computing_on(device):
            found = logits(_model(check), check)
        difference, same = _compare(check, found, folder)
    except Exception as error:  # a kernel that does not build, no memory, a damaged file
        return Result(check.name, device, check.dtype, None, limit, False, reason(error))
    return Result(check.name, device, check.dtype, difference, limit, same)


def logits(model: Llama4, check: Check) -> np.ndarray:
    """A model's logits for a check's inputs: float32 [L, vocabulary]."""
    if check.inputs == "text":
        inputs = mx.array(cases.text_ids(check.model))
    else:
        ids, pixels = cases.pictures(check.model, check.inputs)
        inputs = model.embed(ids, model.image_features(pixels))
    cache, parts, start = model.make_cache(), [], 0
    for size in check.steps or (inputs.shape[1],):
        parts.append(model(inputs[:, start : start + size], cache)[0])
        mx.eval(parts[-1])
        start += size
    return np.array(mx.concatenate(parts).astype(mx.float32))


def _model(check: Check) -> Llama4:
    make = models.packed if check.packed else models.floating
    return make(check.model, getattr(mx, check.dtype))


def _compare(check: Check, found: np.ndarray, folder: Path) -> tuple[float, bool]:
    """The difference from the expected logits, and whether the likeliest tokens are the same."""
    if check.packed:
        rows, expected = found, _unpacked_logits(check.model)
        winners = expected.argmax(-1)
    else:
        kept = np.load(folder / f"{check.model}.npz")
        expected, winners = kept[check.inputs], kept[f"{check.inputs} winners"]
        rows = found[cases.kept_positions(len(found))]
    differences = np.abs(rows - expected)
    if check.dtype != "float32":
        return float(np.median(differences)), True
    # Where two tokens were nearly even, either may win.
    behind = found.max(-1) - np.take_along_axis(found, winners[:, None].astype(int), -1)[:, 0]
    return float(differences.max()), bool((behind <= 2 * differences.max()).all())


@functools.cache
def _unpacked_logits(name: str) -> np.ndarray:
    with computing_on("CPU"):
        return logits(models.unpacked(name), Check("", name))


@contextlib.contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Have MLX compute on the CPU or the GPU within this context.

    On the CPU, compilation is off: MLX would need a C++ compiler, which may be missing.
    """
    before, wanted = mx.default_device(), mx.Device(mx.cpu if device == "CPU" else mx.gpu)
    if wanted == before:
        yield
        return
    mx.set_default_device(wanted)
    if device == "CPU":
        mx.disable_compile()
    try:
        yield
    finally:
        mx.set_default_device(before)
        if device == "CPU":
            mx.enable_compile()
