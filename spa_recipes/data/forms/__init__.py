"""The forms in which preference data comes, and their translation to canonical rows. Standard library only.

A form is told by its columns and the kinds of their values. All rows of a dataset must have the form of the first
ones; what differs, or is malformed, is a `BadRowError`.
"""
