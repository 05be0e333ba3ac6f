"""Decides how many bits each tensor gets.

A rule names modules by a pattern and wins over everything else; the last rule that matches wins.
Next come the bits chosen to fit a size. Last comes the recipe's own division: low bits for routed
experts, high bits for the rest. Routed experts are nine tenths of the bytes, and few tokens use any
one of them; attention and the shared expert work on every token. The experts of the first and last
layer get high bits too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mlx_llama4.errors import InputError
from mlx_llama4.quantization import (
    AFFINE_BITS,
    UNPACKED_BITS,
    Quantization,
    listed,
    packing,
    packing_name,
)
from mlx_llama4.tensors import (
    QUANTIZED_PARTS,
    UNPACKED_PARTS,
    TensorSpec,
    in_whole_groups,
    is_matrix,
)


@dataclass(frozen=True)
class Rule:
    """Modules whose path matches `pattern`, as the shell matches names, and their packing."""

    pattern: str
    quantization: Quantization | None

    def matches(self, module: str) -> bool:
        return fnmatchcase(module, self.pattern)


@dataclass(frozen=True)
class Recipe:
    """What the options of a conversion ask for."""

    dtype: str  # of unpacked tensors, and of scales
    quantization: Quantization | None  # None packs nothing
    # In a mixed recipe, of everything but the routed experts between the first and last layer.
    high: Quantization | None = None
    keeps: bool = False  # tensors that the source has packed stay as they are, others unpacked
    rules: tuple[Rule, ...] = ()
    chosen: Mapping[str, Quantization | None] = field(default_factory=dict)  # module → packing
    search: bool = False  # look for the scales with the least error, in affine mode

    @property
    def packs_affine(self) -> bool:
        """Does it pack anything in affine mode itself, rather than keep the source's packing?"""
        packings = (self.quantization, self.high, *(rule.quantization for rule in self.rules))
        return any(one is not None and one.mode == "affine" for one in packings)

    def of(
        self, name: str, spec: TensorSpec, stored: Quantization | None = None
    ) -> Quantization | None:
        """How tensor `name` is packed; None if it is not, as when its rows do not divide into whole
        groups. stored: how the source packs it.
        """
        if not is_matrix(name, spec):
            return None
        if spec.part in UNPACKED_PARTS:
            return stored if self.keeps else None
        wanted = self._wanted(name.removesuffix(".weight"), spec, stored)
        return in_whole_groups(wanted, spec)

    def _wanted(
        self, module: str, spec: TensorSpec, stored: Quantization | None
    ) -> Quantization | None:
        for rule in reversed(self.rules):
            if rule.matches(module):
                return rule.quantization
        if self.keeps:
            return stored
        if spec.part not in QUANTIZED_PARTS:
            return None
        if module in self.chosen:
            return self.chosen[module]
        is_low = spec.part == "routed experts" and not spec.is_edge
        return self.quantization if is_low or self.high is None else self.high


def describe(recipe: Recipe) -> str:
    """The recipe in words."""
    if recipe.keeps:
        words = "as the source is packed"
    elif recipe.chosen:
        words = "bits chosen by module to fit a size"
    elif recipe.quantization is None:
        words = f"{recipe.dtype}, nothing packed"
    elif recipe.high is not None:
        low, high = packing_name(recipe.quantization), packing_name(recipe.high)
        words = f"routed experts in {low}, the rest in {high}"
    else:
        words = packing_name(recipe.quantization)
    rules = "".join(f"; {rule.pattern}: {packing_name(rule.quantization)}" for rule in recipe.rules)
    return f"{words}{rules}{'; scales searched' if recipe.search else ''}"


def choose_recipe(
    *,
    dtype: str | None,
    bits: int | None,
    group_size: int | None,
    mode: str | None,
    mixed: str | None,
    rules: tuple[Rule, ...],
    search: bool,
    source_dtype: str,
    source_is_packed: bool,
) -> Recipe:
    """The recipe that the options of `convert` ask for; None: not given. Raises InputError.

    Without options a packed source stays as it is packed, and others get 4 bits. `dtype` alone
    unpacks everything.
    """
    kind = dtype or source_dtype
    if bits == UNPACKED_BITS and (mode, group_size) != (None, None):
        raise InputError("--bits 16 packs nothing; leave out --mode and --group-size")
    if mixed is not None:
        if bits is not None or mode not in (None, "affine"):
            raise InputError("--recipe says the bits; leave out --bits and --mode")
        low, high = (packing(one, group_size, None) for one in parse_mixed(mixed))
        return Recipe(kind, low, high, rules=rules, search=search)
    packs = (bits, mode, group_size) != (None, None, None)
    if bits == UNPACKED_BITS or (dtype is not None and not packs):
        return Recipe(kind, None, rules=rules, search=search)
    if not packs and source_is_packed:
        return Recipe(kind, None, keeps=True, rules=rules, search=search)
    return Recipe(kind, packing(bits, group_size, mode), rules=rules, search=search)


def parse_rule(text: str) -> Rule:
    """Reads `PATTERN=BITS[:GROUP[:MODE]]`; 16 bits leave a module unpacked. Raises InputError."""
    match = re.fullmatch(r"(.+)=(\d+)(?::(\d+))?(?::(\w+))?", text)
    if match is None:
        raise InputError(
            f"--rule {text!r} is not of the form PATTERN=BITS[:GROUP[:MODE]], such as "
            "'*.experts.down_proj=6:64'"
        )
    pattern, bits, group_size, mode = match.groups()
    if int(bits) == UNPACKED_BITS and group_size is None and mode is None:
        return Rule(pattern, None)
    try:
        size = int(group_size) if group_size else None
        return Rule(pattern, packing(int(bits), size, mode))
    except InputError as error:
        raise InputError(f"--rule {text!r}: {error}") from None


def parse_mixed(name: str) -> tuple[int, int]:
    """`mixed-LOW-HIGH`, such as mixed-3-6 → bits of routed experts and of the rest."""
    match = re.fullmatch(r"mixed-(\d)-(\d)", name)
    low, high = map(int, match.groups()) if match else (0, 0)
    if low not in AFFINE_BITS or high not in AFFINE_BITS or low >= high:
        raise InputError(
            f"recipe {name!r} is unknown; use mixed-LOW-HIGH with two of "
            f"{listed(AFFINE_BITS)} bits, such as mixed-3-6"
        )
    return low, high


def check_rules(recipe: Recipe, specs: Mapping[str, TensorSpec]) -> None:
    """Raises InputError for a rule that matches no module that can be packed."""
    modules = [
        name.removesuffix(".weight")
        for name, spec in specs.items()
        if is_matrix(name, spec) and spec.part not in UNPACKED_PARTS
    ]
    for rule in recipe.rules:
        if not any(map(rule.matches, modules)):
            raise InputError(
                f"--rule {rule.pattern!r} matches no module that can be packed; modules are "
                f"called like {modules[len(modules) // 2]}"
            )
