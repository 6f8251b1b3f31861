"""The command line: `app` has the commands, `render` what they print."""
