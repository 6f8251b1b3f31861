"""What each kind of stage does. Imported by the worker only.

Every module has one `run(context) -> Result`, reads the inputs its spec names, and writes below `context.draft`.
"""
