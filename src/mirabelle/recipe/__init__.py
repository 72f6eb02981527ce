"""Recipes: ordered lists of steps, the recipe file in TOML and its JSON Schema."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.recipe.file import RecipeFile, read_recipe
    from mirabelle.recipe.recipe import Recipe
    from mirabelle.recipe.schema import recipe_schema

__all__ = [
    "Recipe",
    "RecipeFile",
    "read_recipe",
    "recipe_schema",
]
__getattr__ = lazily(
    "mirabelle.recipe",
    {
        "file": ["RecipeFile", "read_recipe"],
        "recipe": ["Recipe"],
        "schema": ["recipe_schema"],
    },
)
