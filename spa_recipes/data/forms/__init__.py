"""The forms in which preference data comes, and their translation to canonical rows. Standard library only.

Each family has a module: `pairs` (labelled pairs), `candidates` (answers without labels, for `spa judge`), `prompts`
and `conversations` (for sft). A row of labelled pairs gives one pair. `form` says how a form is told, `messages` how
texts and message lists are read.

A form is told by its columns and the kinds of their values. All rows of a dataset must have the form of the first
ones; what differs, or is malformed, is a `BadRowError`.
"""
