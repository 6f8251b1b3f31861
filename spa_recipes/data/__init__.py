"""Data: from a user's dataset to token ids, and the files between stages.

- `files`, `hub`: raw rows of files, dataset folders and the Hub.
- `forms`: the forms that rows can have, one module per family; `sources`: rows of any form become canonical ones.
- `rows`: canonical rows and JSON Lines; `arrow`: many of them as a table; `split`: which stage gets which.
- `stage_rows` (JSON Lines) and `tables` (Parquet): the rows that stages hand to each other, a type for each file.
- `chat`: from messages to token ids; `questions`: what the llm judge is asked.
"""
