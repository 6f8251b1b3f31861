"""The command line: `app` has the commands; the other modules say what they print, a module per command."""
