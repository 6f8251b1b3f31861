"""A task of lm-eval in files of its own."""

import json
from pathlib import Path


def write_task(folder: Path, **more: str) -> Path:
    """The task `pick`: eight questions with two answers each; `more` are further lines of its file."""
    folder.mkdir(parents=True)
    rows = [{"question": f"question {i} :", "choices": ["roses", "tools"], "answer": i % 2} for i in range(8)]
    (folder / "pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        "task: pick",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {folder / 'pick.jsonl'}}}}}",
        "test_split: test",
        "output_type: multiple_choice",
        'doc_to_text: "{{question}}"',
        'doc_to_choice: "{{choices}}"',
        'doc_to_target: "{{answer}}"',
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
        "metadata: {version: 1}",
        *(f"{key}: {value}" for key, value in more.items()),
    ]
    (folder / "pick.yaml").write_text("\n".join(lines) + "\n")
    return folder
