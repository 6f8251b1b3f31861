"""`python -m spa_recipes.cli` is the `spa` command."""

from spa_recipes.cli.app import main

main()
