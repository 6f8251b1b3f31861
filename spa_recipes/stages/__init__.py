"""One module for each kind of stage. Only the worker imports them.

Every module has one `run(context) -> Result`, reads the inputs its spec names, and writes below `context.draft`.
"""
