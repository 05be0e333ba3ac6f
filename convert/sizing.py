"""Chooses bits for each module so that the model fits a size with the least measured error.

The measure is how much a token is disturbed on its way through the model. Each matrix that it
passes adds its relative squared error, whatever the matrix's size; a token passes only the routed
experts chosen for it. So bytes are best spent where a few of them serve every token, and the routed
experts get what is left. No rule says so; the search finds it.
"""

import itertools
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.checkpoint.sources import dense, num_rows, row_bytes
from mlx_llama4.convert.pack import measured_errors, relative_error
from mlx_llama4.convert.plan import make_plan
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.errors import InputError
from mlx_llama4.quantization import AFFINE_BITS, Quantization
from mlx_llama4.tensors import QUANTIZED_PARTS
from mlx_llama4.units import human_bytes

SAMPLED_ROWS = 512
SAMPLED_BYTES = 2**24  # read for the sample; an expert is read whole


@dataclass(frozen=True)
class Choice:
    """One way to pack a module."""

    packing: Quantization | None
    nbytes: int
    error: float  # relative, squared, of a sample


def fit_to_size(
    source: Source,
    recipe: Recipe,
    target_bytes: int,
) -> Recipe:
    """The recipe with `chosen` filled in, for at most `target_bytes` of tensors.

    recipe: its dtype, group size and rules are used. Raises InputError if even the fewest bits are
    too many.
    """
    source.matching.check(source.folder)
    plain = replace(recipe, quantization=None, high=None)
    group_size = recipe.quantization.group_size if recipe.quantization else 64
    candidates = [Quantization(group_size, bits) for bits in AFFINE_BITS]
    plans = [(one, make_plan(source, replace(recipe, quantization=one))) for one in candidates]
    unpacked = make_plan(source, plain)
    ladders: dict[str, list[Choice]] = {}
    fixed = 0
    for name, spec in unpacked.specs.items():
        free = spec.part in QUANTIZED_PARTS and plans[0][1].packings[name] == candidates[0]
        if not free or any(rule.matches(name.removesuffix(".weight")) for rule in recipe.rules):
            fixed += sum(part.nbytes for part in plans[0][1].parts[name].values())
            continue
        errors = _sampled_errors(source, name, recipe, candidates)
        choices = [
            Choice(packing, sum(part.nbytes for part in plan.parts[name].values()), error)
            for (packing, plan), error in zip(plans, errors, strict=True)
        ]
        whole = sum(part.nbytes for part in unpacked.parts[name].values())
        ladders[name.removesuffix(".weight")] = [*choices, Choice(None, whole, 0.0)]
    chosen = choose(ladders, target_bytes - fixed)
    if chosen is None:
        least = fixed + sum(ladder[0].nbytes for ladder in ladders.values())
        raise InputError(
            f"--target-size {human_bytes(target_bytes)} is too small: with {AFFINE_BITS[0]} bits "
            f"throughout the model takes {human_bytes(least)}"
        )
    return replace(recipe, chosen={module: one.packing for module, one in chosen.items()})


def choose(ladders: dict[str, list[Choice]], budget: int) -> dict[str, Choice] | None:
    """One choice for each module, with the least total error within `budget` bytes; None if even
    the first choices do not fit.

    ladders: module → choices by rising bytes. It climbs the steps of each ladder's lower convex
    hull, always the step that gains most per byte. As long as every step fits, the result is
    optimal for the bytes spent. Once a step is too large, smaller ones fill the room, and the total
    is off the optimum by less than the gain of that step.
    """
    chosen = {module: ladder[0] for module, ladder in ladders.items()}
    left = budget - sum(choice.nbytes for choice in chosen.values())
    if left < 0:
        return None
    steps = []
    for order, (module, ladder) in enumerate(ladders.items()):
        hull = _hull(ladder)
        for below, above in itertools.pairwise(hull):
            gain = (below.error - above.error) / (above.nbytes - below.nbytes)
            steps.append((-gain, order, above.nbytes, module, above))
    stopped: set[str] = set()
    for _, _, _, module, above in sorted(steps, key=lambda step: step[:3]):
        cost = above.nbytes - chosen[module].nbytes
        if module in stopped or cost > left:
            stopped.add(module)  # no higher step without this one
            continue
        chosen[module] = above
        left -= cost
    return chosen


def _hull(ladder: list[Choice]) -> list[Choice]:
    """The choices on the lower convex hull of error over bytes."""
    hull: list[Choice] = []
    for choice in ladder:
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(below: Choice, above: Choice) -> float:
    return (below.error - above.error) / (above.nbytes - below.nbytes)


def _sampled_errors(
    source: Source, name: str, recipe: Recipe, candidates: list[Quantization]
) -> list[float]:
    """Each candidate's relative squared error on some rows from the middle of the tensor."""
    rows_of = source.matching.sources[name]
    rows = num_rows(rows_of)
    count = max(1, min(rows, SAMPLED_BYTES // max(row_bytes(rows_of), 1)))
    start = (rows - count) // 2
    data = rows_of.read(source.checkpoint, start, start + count, recipe.dtype)
    decoded = rows_of.decode(data, start, start + count)[rows_of.targets.index(name)]
    values = dense(decoded)
    flat = values.reshape(-1, values.shape[-1])
    sample = flat[:: max(1, len(flat) // SAMPLED_ROWS)].astype(getattr(mx, recipe.dtype))
    return [relative_error(measured_errors(sample, one, recipe.search)) ** 2 for one in candidates]
