"""Recipes: `schema` has all settings, `rules` says which contradict each other, `load` reads and checks a recipe."""
