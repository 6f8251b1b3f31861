"""The command line: `app` has the commands; the other modules say what they print, a module per command."""

import gc

# Imports make objects that stay: to look for garbage among them finds nothing. This line runs before all other imports.
gc.set_threshold(50_000)
