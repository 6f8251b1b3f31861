"""Labels by people (`spa label`): pairs of answers, a session with a person, its file, and the page that shows it.

Importing this loads no heavy library.
"""
