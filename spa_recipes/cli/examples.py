"""The examples at the end of a command's help. A paragraph that begins with `\\b` keeps its lines as they are."""


def examples(*lines: str) -> str:
    """The end of a command's help: one example per line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


EVALUATE = (
    examples(
        "spa evaluate quickstart --benchmark alpaca_eval  # answers only: no key needed",
        "spa evaluate my-model --benchmark alpaca_eval --set benchmark.annotator=weighted_alpaca_eval_gpt4_turbo",
        "spa evaluate --annotations annotations.json",
        "spa evaluate my-dpo-model --benchmark pairwise --against my-sft-model --prompts prompts.jsonl \\",
        "  --set 'benchmark.judge={type: reward_model, model_name_or_path: my-reward-model}'",
        "spa evaluate my-run --benchmark lm_eval --against my-sft-model --set 'benchmark.tasks=[ifeval, gsm8k]'",
        "spa evaluate mt-bench.yaml --set seed=7",
    )
    + """

An annotator of AlpacaEval needs OPENAI_API_KEY. mt-bench.yaml is a job such as

\b
  model: {model_name_or_path: my-run, max_length: 4096}
  benchmark:                       # an entry of a recipe's evaluation.benchmarks
    type: mt_bench
    questions: question.jsonl
    judge_prompts: judge_prompts.jsonl
    reference_answers: gpt-4.jsonl
    endpoint: {base_url: https://api.openai.com/v1, model: gpt-4}
  backend: {type: transformers, batch_size: 16}
  seed: 42
  out: results/my-run-mt-bench     # overwrite: true replaces what is there
  storage: {runs_dir: runs}        # where the run is, if the model is one

`spa schema --job` prints all keys of a job.
"""
)

JUDGE = (
    "PAIRS is a JSONL, JSON, Parquet or CSV file, a save_to_disk folder or a Hub id. Its rows have the columns "
    "`prompt, chosen, rejected`, `prompt, response_a, response_b`, `prompt, responses` or those of another form.\n\n"
    + examples(
        "spa judge --policy runs/quickstart/final --reference my-sft-model --pairs pairs.jsonl --out labelled.jsonl",
        "spa judge --judge reward_model --set judge.model_name_or_path=my-reward-model --pairs p.jsonl --out l.jsonl",
        "spa judge --judge llm --set judge.model_name_or_path=my-model --pairs pairs.jsonl --out labelled.jsonl",
        "spa judge --judge llm --pairs pairs.jsonl --out labelled.jsonl \\",
        "  --set judge.endpoint='{base_url: http://localhost:8000/v1, model: big, api_key_env: null}'",
    )
    + "\n\nThe keys of --set are those of a recipe: `judge`, `model`, `compute`, `storage`; also `pairs`, "
    "a dataset, and `backend`, which is as sampling.backend."
)

CHAT = examples(
    "spa chat quickstart",
    "spa chat my-run --against my-sft-model --temperature 0",
    "echo 'why is the sky blue ?' | spa chat quickstart",
)

EXPORT = (
    examples(
        "spa export quickstart --format gguf",
        "spa export my-model --format gguf --out my-model.gguf && echo 'FROM ./my-model.gguf' > Modelfile",
        "ollama create my-model -f Modelfile && ollama run my-model",
    )
    + "\n\nIt needs the package gguf: pip install 'spa-recipes[gguf]'. llama.cpp's llama-quantize makes a smaller file "
    "of this one."
)

SAMPLE = (
    "PROMPTS is a file, folder or Hub id with prompts in any form that `spa data` knows; of pairs, their prompts.\n\n"
    + examples(
        "spa sample quickstart --prompts prompts.jsonl --n 4 --out answers.jsonl",
        "spa sample my-model --prompts prompts.csv --out answers.jsonl --set prompts.columns.prompt=question \\",
        "  --set sampling.temperature=1.0 --set sampling.max_tokens=512 --set sampling.backend.type=vllm",
    )
    + "\n\nThe keys of --set are those of a recipe: `model`, `sampling`, `compute`, `storage`, `seed`; also "
    "`prompts`, a dataset."
)

LABEL = (
    examples(
        "spa label --model my-model --prompts prompts.jsonl --out labels.jsonl",
        "spa init my.yaml --model my-model --pairs labels.jsonl --prompts prompts.jsonl",
        "spa label my-run  # the pairs that its judge doubts most",
        "spa label my-run --pick random --limit 200 --out judge-check.jsonl",
    )
    + "\n\nKeys on the page: 1 and 2 for the left and the right answer, T tie, S skip, U undo. Ties, skips and second "
    "looks stand in the file, too; data.pairs.source counts them and learns the labels alone."
)

SUBMIT = examples(
    "spa submit ultrafeedback_3p3_slurm --dry-run  # prints the script of the job",
    "spa submit my.yaml --set compute.executor.partition=gpu",
    "spa submit my.yaml --rehearse  # minutes, before a job of hours",
)
CANCEL = examples("spa cancel ultrafeedback_3p3_slurm")

SWEEP = (
    examples(
        "spa sweep my-sweep.yaml --plan  # how many runs and stages, and how many of them are shared",
        "spa sweep my-sweep.yaml",
    )
    + """

my-sweep.yaml is such as

\b
  name: my-sweep                   # its runs are my-sweep-dpo-1, my-sweep-dpo-2, ...
  recipe: my.yaml                  # beside this file, or the name of a shipped recipe
  seeds: [1, 2, 3, 4, 5]
  variants:
    - {name: dpo, policy: 0}       # another policy of the same runs
    - {name: spa, label: "SPA, n = 2"}
    - {name: more, label: "SPA, n = 4", set: {sampling.n: 4}}
  control: dpo                     # what the others are compared with
  metrics: [win_rate, length_controlled, tokens]
  hypotheses: [spa]                # tested with Holm's correction; state them before the runs

`spa schema --sweep` prints all keys of a sweep.
"""
)
