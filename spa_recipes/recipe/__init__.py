"""Recipes: `schema` says what one may hold, `load` reads and checks one, `starter` is the one to begin with."""
