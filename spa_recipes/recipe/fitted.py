"""The recipe that `spa init --model M --pairs P` writes: values that fit a model, data and a machine, with reasons.

Pure functions of what was seen. How it is seen is in `spa_recipes.cli.init`.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from spa_recipes.errors import DataError
from spa_recipes.recipe.starter import SCHEMA_LINES

PAPERS_RATE, PAPERS_SIZE = 5e-7, 7.24e9
"""The paper's learning rate, and the number of parameters of its model."""
RATES_EXPONENT = 0.75
"""How the rate grows for a smaller model: 1e-5 for 135 million parameters, where a training was tried."""
LORA_FACTOR = 10
"""Adapters take steps so many times larger than all weights do."""
FEW_LABELS = 2000
"""Below so many labels the authors advise more epochs."""
LEAST_PAIRS = 12
TRAINED_BYTES = 20
"""Per parameter, of a training of all weights: float32 weight, gradient and two moments, and the reference."""
SHARE = 0.8
"""Of the memory that is counted on."""
MODELS_ANSWER = 512
"""Tokens for an answer of a model, which writes more than people do: it learns little from answers that are cut."""
TOKENS_AT_ONCE = 4096
"""Tokens of the pairs in one pass of a training, with room for activations."""


class Machine(NamedTuple):
    """GPUs and memory, in bytes: of each GPU, or of the machine where there is none."""

    gpus: int
    memory: int | None
    has_vllm: bool = False


class Unlabelled(NamedTuple):
    """Prompts without labels: where they are, as a recipe says it, and how many differ from those of the pairs."""

    source: str
    rows: int


class Seen(NamedTuple):
    """What was seen of a model and of pairs.

    Attributes:
        name: of the run.
        parameters, context: of the model; None where its configuration does not say.
        template: the text of its chat template; empty where it has none.
        pairs: where they are, as a recipe says it; form: how they are read; rows: usable ones.
        unlabelled: prompts of the user's beside the pairs; None where there are none.
        prompts, answers: lengths in tokens, rising.
    """

    name: str
    model: str
    parameters: int | None
    context: int | None
    template: str
    pairs: str
    form: str
    rows: int
    prompts: Sequence[int]
    answers: Sequence[int]
    machine: Machine
    unlabelled: Unlabelled | None = None


class Parts(NamedTuple):
    """How the rows are shared out."""

    seed: int
    prompts: list[int]
    heldout: int


class Lengths(NamedTuple):
    """Tokens of a prompt, of a sampled answer, and of both together."""

    prompt: int
    answer: int
    both: int


def parts_of(rows: int, unlabelled: int | None = None) -> Parts:
    """A fifth of the rows to measure with, half of the others as labels, and the rest as fresh prompts.

    With so many prompts beside them, all of the others are labels, and those prompts are the fresh ones.

    Raises:
        DataError: there are too few.
    """
    if rows < LEAST_PAIRS:
        raise DataError(
            f"{rows} usable pairs are too few to train and to measure with", fix=f"give {LEAST_PAIRS} or more"
        )
    heldout = min(250, max(4, rows // 5))
    if unlabelled is None:
        seed = min(FEW_LABELS, (rows - heldout) // 2)
        left = rows - heldout - seed
    else:
        seed, left = rows - heldout, unlabelled
    prompts = [left] if left < 400 else [min(8000, left * 2 // 7), min(20000, left * 5 // 7)]
    return Parts(seed, prompts, heldout)


def lengths_of(seen: Seen) -> Lengths:
    """Room for nearly every row and for what models write, within the context; prompts then get at most half of it."""
    prompt = _up(_quantile(seen.prompts, 0.99), 32)
    answer = max(MODELS_ANSWER, _up(_quantile(seen.answers, 0.95), 32))
    longest = max(answer, _up(seen.answers[-1], 32))
    context = seen.context or 4096
    if prompt + longest <= context:
        return Lengths(prompt, answer, prompt + longest)
    prompt = min(prompt, context // 2)
    return Lengths(prompt, min(answer, context - prompt), context)


def rate_of(parameters: int | None, *, lora: bool) -> float:
    """A learning rate to start with, of one digit: the paper's for its size, more for smaller models and adapters."""
    rate = PAPERS_RATE * (PAPERS_SIZE / (parameters or PAPERS_SIZE)) ** RATES_EXPONENT * (LORA_FACTOR if lora else 1)
    return float(f"{rate:.0e}")


def fitted_recipe(seen: Seen) -> str:
    """The recipe as text.

    Raises:
        DataError: there are too few pairs.
    """
    more = seen.unlabelled
    parts, lengths = parts_of(seen.rows, more and more.rows), lengths_of(seen)
    size = seen.parameters
    machine = seen.machine
    lora = bool(size and machine.memory and size * TRAINED_BYTES > SHARE * machine.memory)
    in_4bit = bool(lora and size and machine.gpus and machine.memory and size * 2 * 2 > SHARE * machine.memory)
    batch = _batch(parts.seed)
    processes = min(batch, _down(max(1, machine.gpus)))
    epochs = 3 if parts.seed < FEW_LABELS else 1
    at_once = max(1, min(batch // processes, _down(TOKENS_AT_ONCE // (2 * lengths.both))))
    rate = rate_of(size, lora=lora)
    steps = math.ceil(parts.seed / batch) * epochs
    advice = f"; more than one is the authors' advice below {FEW_LABELS:,} labels" if epochs > 1 else ""
    low, high = _even(parts.heldout)
    training = _training(rate, batch, at_once, big=(size or 0) > 1e9)
    iterations = len(parts.prompts)
    words = [
        *SCHEMA_LINES,
        f"# Written by `spa init` for {seen.rows:,} pairs ({seen.form}) and a model of {_size(size)}.",
        "# Each value has its reason behind it; a key that is not here has its default (`spa schema` prints all).",
        "",
        f"name: {seen.name}",
        "",
        "model:",
        f"  model_name_or_path: {json.dumps(seen.model, ensure_ascii=False)}",
        _row("  max_length", lengths.both, _both_words(seen, lengths)),
        _row(
            "  max_prompt_length",
            lengths.prompt,
            f"99 % of your prompts have at most {_quantile(seen.prompts, 0.99)} tokens",
        ),
        *_precision(machine),
        *_template(seen.template),
        *_lora(lora, in_4bit, size, machine),
        "",
        "data:",
        f"  pairs: {_dataset(seen.pairs)}",
        *_split(parts, more),
        _row("  heldout", parts.heldout, f"to measure with; a win rate of 50 % is then {low:.0%} to {high:.0%}"),
        "",
        "seed_training:",
        _row("  learning_rate", _number(rate), _rate_words(size, lora=lora)),
        _row("  num_train_epochs", epochs, f"{steps} optimizer steps{advice}"),
        *training,
        "",
        "sampling:",
        _row("  max_tokens", lengths.answer, _answer_words(seen, lengths)),
        _backend(machine, lengths),
        "",
        "refine:",
        _row("  learning_rate", _number(rate), "as above"),
        *training,
        *_noise(parts, iterations, batch),
        "",
        "evaluation:",
        _row("  max_prompts", parts.heldout, "all held-out prompts"),
        "",
        "compute:",
        _executor(machine.gpus, processes),
        "",
    ]
    return "\n".join(words)


def _row(key: str, value: object, why: str) -> str:
    return f"{f'{key}: {value}':<34} # {why}"


def _dataset(source: str) -> str:
    return f"{{type: dataset, source: {json.dumps(source, ensure_ascii=False)}}}"


def _split(parts: Parts, more: Unlabelled | None) -> list[str]:
    if more is None:
        return [
            _row("  seed_labels", parts.seed, "half of what is not held out: labels to learn from"),
            _row(
                "  prompts_per_iteration", parts.prompts, "the prompts of the rest; put more prompts into data.prompts"
            ),
        ]
    used = sum(parts.prompts)
    which = "all of your prompts" if used == more.rows else f"{used:,} of your {more.rows:,} prompts"
    return [
        f"  prompts: {_dataset(more.source)}",
        _row("  seed_labels", parts.seed, "all that is not held out: labels to learn from"),
        _row("  prompts_per_iteration", parts.prompts, f"{which} that no pair has"),
    ]


def _training(rate: float, batch: int, at_once: int, *, big: bool) -> list[str]:
    rows = [
        _row("  global_batch_size", batch, "pairs per optimizer step: so few that there are steps to learn in"),
        _row("  per_device_train_batch_size", at_once, f"pairs in memory at once: about {TOKENS_AT_ONCE:,} tokens"),
        _row("  logging_steps", 1, "so that the report has curves"),
    ]
    if big:
        rows.append(_row("  gradient_checkpointing", "true", "less memory, a third more time"))
    return rows


def _batch(labels: int) -> int:
    """A power of two that leaves about eight steps in an epoch, from 4 to the paper's 32."""
    return max(4, min(32, _down(labels // 8)))


def _both_words(seen: Seen, lengths: Lengths) -> str:
    limit = f"; the model has positions for {seen.context:,}" if seen.context else ""
    if seen.context == lengths.both:
        return f"all that the model has positions for; your longest answer has {seen.answers[-1]} tokens"
    if seen.answers[-1] <= lengths.answer:
        return f"prompt and an answer that the model writes (sampling.max_tokens){limit}"
    return f"prompt and your longest answer, {seen.answers[-1]} tokens{limit}"


def _answer_words(seen: Seen, lengths: Lengths) -> str:
    if lengths.answer < MODELS_ANSWER:
        return "what the model's positions leave beside a prompt; what is longer is cut"
    if lengths.answer > MODELS_ANSWER:
        return "as long as 95 % of your answers; what is longer is cut"
    usual = _quantile(seen.answers, 0.95)
    return f"95 % of your answers have at most {usual}, but a model writes more; what is longer is cut"


def _precision(machine: Machine) -> list[str]:
    return [] if machine.gpus else [_row("  dtype", "float32", "no GPU here, and bfloat16 rounds")]


def _template(template: str) -> list[str]:
    if not template:
        why = "the model has none, so it is a base model perhaps: then fine-tune it first (section sft)"
        return [_row("  chat_template", "zephyr.jinja", why)]
    if "enable_thinking" in template:
        why = "no think block, which takes the tokens of the answer"
        return [_row("  chat_template_kwargs", "{enable_thinking: false}", why)]
    return []


def _lora(lora: bool, in_4bit: bool, size: int | None, machine: Machine) -> list[str]:
    if not lora or size is None or machine.memory is None:
        return []
    room = f"all weights need {size * TRAINED_BYTES / 1e9:.0f} GB of {machine.memory / 1e9:.0f} GB"
    value = "{load_in_4bit: true}" if in_4bit else "{}"
    return [_row("  lora", value, f"train adapters: {room}")]


def _rate_words(size: int | None, *, lora: bool) -> str:
    adapters = f", {LORA_FACTOR} times more for adapters" if lora else ""
    if size is None:
        return f"the paper's for 7B; a smaller model needs more{adapters}"
    return f"for {_size(size)}{adapters} (the paper's 5e-7 is for 7B); `spa report` shows if it learns"


def _backend(machine: Machine, lengths: Lengths) -> str:
    if machine.gpus and machine.has_vllm:
        value = f"{{type: vllm, data_parallel_size: {machine.gpus}}}"
        return _row("  backend", value, f"vLLM is installed, and there are {machine.gpus} GPUs")
    size = 64 if machine.gpus else max(4, min(32, _down(16384 // lengths.both)))
    why = "answers at a time; vLLM (extra: vllm) is faster" if machine.gpus else "answers at a time on a CPU"
    return _row("  backend", f"{{type: transformers, batch_size: {size}}}", why)


def _noise(parts: Parts, iterations: int, batch: int) -> list[str]:
    if min(parts.prompts) >= 512 and iterations == 2:
        return []
    window = max(batch, min(512, _down(min(parts.prompts))))
    least = max(2, min(32, min(parts.prompts) // 4))
    return [
        "",
        "noise:",
        _row("  lambdas", [0.5, 0.25][:iterations], "the paper's, one for each iteration"),
        _row(
            "  threshold",
            f"{{type: percentile, window: {window}, min_pairs: {least}}}",
            "the default window is for more pairs than you have",
        ),
    ]


def _executor(gpus: int, processes: int) -> str:
    if processes > 1:
        rest = "one process for each GPU" if processes == gpus else f"of {gpus} GPUs, so many split a batch evenly"
        return _row("  executor", f"{{type: accelerate, num_processes: {processes}}}", rest)
    if gpus:
        return _row("  executor", "{type: local}", "one GPU")
    return _row("  executor", "{type: fork}", "no GPU here: stages share one import of the libraries")


def _even(n: int) -> tuple[float, float]:
    """About the 95 % interval of a win rate of 50 % over n prompts."""
    reach = 0.98 / math.sqrt(n + 3.84)
    return 0.5 - reach, 0.5 + reach


def _size(parameters: int | None) -> str:
    if parameters is None:
        return "unknown size"
    return f"{parameters / 1e9:.1f}B parameters" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M parameters"


def _quantile(rising: Sequence[int], share: float) -> int:
    return rising[min(len(rising) - 1, int(share * len(rising)))]


def _number(rate: float) -> str:
    """A small number as people and YAML write it: `1e-5`."""
    return f"{rate:.0e}".replace("e-0", "e-")


def _up(number: int, step: int) -> int:
    """The next multiple of a step."""
    return max(step, math.ceil(number / step) * step)


def _down(number: int) -> int:
    """The largest power of two that is not larger; 1 for what is less."""
    return 1 << max(0, number.bit_length() - 1) if number > 0 else 1
