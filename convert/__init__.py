"""Making a model folder from a checkpoint: recipes, plan, packing, writing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.run import convert

__all__ = ["Recipe", "convert"]


def __getattr__(name: str) -> Any:
    # When first asked for, so that what needs only a recipe does not import MLX.
    if name == "Recipe":
        from mlx_llama4.convert.recipes import Recipe

        return Recipe
    if name == "convert":
        from mlx_llama4.convert.run import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
