"""The recipe that `spa init` writes."""

SCHEMA_LINES = (
    "# yaml-language-server: $schema=recipe.schema.json",
    "# (your editor completes and checks keys after `spa schema > recipe.schema.json`)",
)
"""The first lines of a recipe: where editors find the schema."""

_STARTER = """\
# A recipe for `spa`: align a chat model with few labelled pairs.
#
# `spa init FILE --model M --pairs P` writes one whose values fit your model and your data.
#
#   spa validate recipe.yaml    check it
#   spa plan recipe.yaml        see the stages, their sizes and what is there already
#   spa run recipe.yaml         run it; after a stop, the same command continues
#
# Values below are the defaults, which are the paper's (arXiv 2406.04412), unless a comment says otherwise.
# A key that you leave out has its default; `spa schema` prints all keys. Paths are relative to the current folder.

name: my-run                # yours: letters, digits, '.', '_' and '-'; the run goes to runs/my-run
seed: 42                    # of sampling, training order and ties

# The model to align: one that has been fine-tuned to follow instructions.
model:
  model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct # yours: Hub id or local folder
  revision: null            # branch, tag or commit on the Hub
  dtype: auto               # bfloat16 on a GPU that has it, else float32
  max_length: 2048          # tokens of prompt and response together
  max_prompt_length: 1024   # tokens of the prompt; a longer one loses its beginning
  # lora: {}                # train adapters instead of all weights (extra: lora)

# Your labelled pairs: JSONL, JSON, Parquet or CSV, a save_to_disk folder, or a Hub id. For example, one line each:
#   {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "No."}
# Rows are shuffled; the first ones are the seed labels, the next ones give their prompts, the last ones are held out.
data:
  pairs:
    type: dataset
    source: pairs.jsonl     # yours
  # prompts: {type: dataset, source: prompts.jsonl} # more prompts without labels; default: those of the pairs
  shuffle_seed: 42
  seed_labels: 300          # labels to learn from: a count, or a share such as 0.033; default 2000
  prompts_per_iteration: [1000, 2000] # fresh prompts, one entry per iteration; default [8000, 20000]
  heldout: 200              # pairs kept for evaluation; default 0

# DPO on the seed labels.
seed_training:
  beta: 0.1
  learning_rate: 1e-5       # for this small model; default 5e-7, the paper's for 7B; a LoRA needs 10 times more
  num_train_epochs: 3       # the authors' advice below about 2,000 labels; default 1
  global_batch_size: 32     # pairs per optimizer step over all devices
  per_device_train_batch_size: 1 # pairs per device and pass; raise it while memory lasts
  gradient_checkpointing: false # true: less memory, more time

# The model answers fresh prompts ...
sampling:
  n: 2                      # answers per prompt
  temperature: 0.7
  top_p: 1.0
  max_tokens: 300           # new tokens per answer
  backend: {type: transformers, batch_size: 64} # or {type: vllm} (extra: vllm)

# ... judges them by the reward that is implicit in it ...
judge:
  type: implicit_reward
  beta: 0.1
  reference: init           # compare with the model above, in every iteration

# ... and learns from the judged pairs.
refine:
  beta: 0.1
  learning_rate: 1e-5       # as above; default 5e-7
  num_train_epochs: 1
  global_batch_size: 32
  per_device_train_batch_size: 1
  gradient_checkpointing: false

# Labels that it doubts count less.
noise:
  enabled: true
  alpha: 0.1                # weight of the other answer in a doubted pair
  lambdas: [0.5, 0.25]      # de-coupled detection, one entry per iteration; 0 turns it off
  threshold: {type: percentile, k: 10, window: 512} # doubted: the lowest 10 % of the last 512 pairs
  warmup_ratio: 0.2         # share of the steps, from the first, without softening

evaluation:
  enabled: true             # measure every model on the held-out pairs
  max_prompts: 250          # held-out prompts that are answered

tracking:
  report_to: []             # wandb, tensorboard, mlflow, trackio

compute:
  executor: {type: local}   # or {type: accelerate, num_processes: 4}, one process per GPU
"""


def starter_recipe() -> str:
    """A commented recipe for the user's own pairs and a model from the Hub."""
    return "\n".join((*SCHEMA_LINES, _STARTER))
