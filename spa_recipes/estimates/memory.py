"""Memory of one device while a stage works: what stays there, and what a step needs besides.

All of it is counted from the code that runs, tensor by tensor; tests compare it with trainings that were measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from spa_recipes.estimates.shape import Shape, shape_of
from spa_recipes.models.dtype import weight_bytes
from spa_recipes.plan import Stage
from spa_recipes.recipe.schema import LmEval, Recipe, RefineTraining, Sampling, Training, VllmBackend

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

Sharding = Literal["none", "fsdp2", "zero2", "zero3"]
"""How a training is shared out over processes."""

FLOAT32 = 4
NF4 = 0.516
"""Bytes per weight in 4 bits, with its scales, which are in 8 bits."""
LOGITS_CHUNK = 512
"""Tokens whose logits exist at one time."""
BUCKET = 500_000_000
"""Numbers that DeepSpeed sums over processes at one time."""
MOST_GATHERED = 1_000_000_000
"""Weights that DeepSpeed ZeRO-3 keeps gathered at most."""
PROCESS = 1_000_000_000
"""Bytes of a process with its libraries."""
VLLM_OWN = 2_000_000_000
"""Bytes of vLLM beside weights and cache: its graphs and buffers. Assumed."""


class Memory(NamedTuple):
    """Bytes on one device at the moment that needs most.

    Attributes:
        weights, gradients, optimizer: of what is trained, or the weights of what is read.
        reference: a live model beside the policy, and the update between both.
        copies: weights that exist twice for a while: cast for products, gathered, or on their way between processes.
        activations: what the backward pass needs, or a pass without one holds, for the longest rows that there may be.
        logits: of a chunk of tokens, with what is computed from them.
        cache: keys and values of the texts that are sampled.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    copies: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0

    @property
    def held(self) -> int:
        """What is there through the whole stage, however short the rows are."""
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def least(self) -> Memory:
        """What no setting of batches makes smaller: what is held, and a cache."""
        return self._replace(copies=0, activations=0, logits=0)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def training_memory(
    stage: Stage, recipe: AnyRecipe, *, sharding: Sharding = "none", processes: int = 1
) -> Memory | None:
    """Memory of each process's device in a training stage; None where the size of the model is not known.

    Args:
        sharding: how the training is shared out over the processes.
        processes: that train together.
    """
    shape = shape_of(recipe)
    if shape is None:
        return None
    training: Training = stage.settings["training"]
    each = weight_bytes(recipe.model.dtype)
    state = _sharded(_state(stage, recipe, shape, each), sharding, processes, shape, each)
    at_once = training.per_device_train_batch_size * processes
    if sharding == "none" and processes > 1 and training.global_batch_size > at_once:
        # torch's DistributedDataParallel sums them in buckets; those of earlier micro-batches are elsewhere.
        state = state._replace(copies=state.copies + state.gradients)
    sequences = training.per_device_train_batch_size * sequences_of_row(stage, recipe)
    tokens = sequences * recipe.model.max_length
    step = _step(stage, recipe, shape, tokens, each, sharding)
    whole = Memory(reference=_whole_reference(stage, recipe, each * shape.parameters, sharding))
    return Memory(*(sum(parts) for parts in zip(state, whole, step, strict=True)))


def sequences_of_row(stage: Stage, recipe: AnyRecipe) -> int:
    """Sequences that a row of a training has: a text, the two of a pair, or all answers to a prompt."""
    if stage.kind == "sft":
        return 1
    training = stage.settings["training"]
    if isinstance(training, RefineTraining) and training.loss == "sppo" and isinstance(recipe, Recipe):
        return recipe.sampling.n
    return 2


def _whole_reference(stage: Stage, recipe: AnyRecipe, weights: int, sharding: Sharding) -> int:
    """What the detector's derivatives need on each device of a training that is shared out.

    The update, and where weights are shared out a whole reference beside them; with LoRA the update is thin.
    """
    if sharding == "none" or "p_detect" not in stage.settings:
        return 0
    return weights * ((sharding != "zero2") + (recipe.model.lora is None))


def _state(stage: Stage, recipe: AnyRecipe, shape: Shape, each: int) -> Memory:
    """Policy, gradients, optimizer and live reference on a single device."""
    lora, size = recipe.model.lora, shape.parameters
    if lora is None:
        weights, trained, optimizer, reference = FLOAT32 * size, size, 8 * size, 0
        if stage.settings.get("lambda", 0) or "p_detect" in stage.settings:
            reference = each * size
        return Memory(weights, FLOAT32 * trained, optimizer, reference)
    trained = shape.adapter_parameters(lora)
    base = each * size
    if lora.load_in_4bit:
        base = int(NF4 * shape.layers * shape.layer_parameters) + each * shape.embedding_parameters
    return Memory(base + FLOAT32 * trained, FLOAT32 * trained, 8 * trained)


def _sharded(state: Memory, sharding: Sharding, processes: int, shape: Shape, each: int) -> Memory:
    """What of it each process has, and the copies that it works with."""
    half = each < FLOAT32
    trains_all = state.gradients == state.weights
    if sharding == "none":
        casts = each * shape.parameters if half and trains_all else 0  # autocast's, until the end of a forward pass
        update = each * shape.parameters if state.reference and half else 0  # which the detector differentiates along
        return state._replace(reference=state.reference + update, copies=casts)
    shares = Memory(*(_share(part, processes) for part in state))
    layer, outer = shape.layer_parameters, shape.embedding_parameters
    if sharding == "fsdp2":
        # Two layers at a time (one is fetched ahead), each as it arrives and as it is used; the gradients of one.
        copies = each * (4 * layer + 2 * outer) + FLOAT32 * (2 * layer + outer if trains_all else 0)
        return shares._replace(copies=copies)
    if not trains_all:
        trained = state.gradients // FLOAT32
        frozen = state.weights - FLOAT32 * trained
        own = frozen if sharding == "zero2" else _share(frozen, processes)
        return shares._replace(weights=own + _share(FLOAT32 * trained, processes))
    weights = each * shape.parameters if half else state.weights
    masters = FLOAT32 * shape.parameters
    gradients, optimizer = (_share(part, processes) for part in (weights, masters + state.optimizer))
    if sharding == "zero2":
        return Memory(weights, gradients, optimizer, state.reference, copies=2 * each * min(BUCKET, shape.parameters))
    copies = each * min(MOST_GATHERED, shape.parameters)
    return Memory(_share(weights, processes), gradients, optimizer, _share(state.reference, processes), copies)


def _share(size: int, processes: int) -> int:
    return -(-size // processes)


def _step(stage: Stage, recipe: AnyRecipe, shape: Shape, tokens: int, each: int, sharding: Sharding) -> Memory:
    """What a step needs besides: activations of `tokens` tokens, and logits."""
    trains_all, half = recipe.model.lora is None, each < FLOAT32
    layer = tokens * _saved_by_a_layer(recipe, shape, each)
    gradient = 8 * tokens * shape.inner  # of the widest activation, and of what it is made from
    last = 16 * tokens * shape.width  # of the last norm, and the gradient that comes back to it
    logits = 0
    if stage.kind != "reward_model":
        chunk = min(LOGITS_CHUNK, tokens) * shape.words
        logits = chunk * (2 * FLOAT32 + (2 * each if half else 0)) * (2 if stage.settings.get("lambda", 0) else 1)
        logits += shape.words * shape.width * ((each if half else 0) + (FLOAT32 if trains_all else 0))
    if not stage.settings["training"].gradient_checkpointing:
        return Memory(activations=shape.layers * layer + last + max(0, gradient - logits), logits=logits)
    residual = FLOAT32 if trains_all and sharding == "none" else each
    kept = shape.layers * tokens * shape.width * residual
    return Memory(activations=kept + max(last, layer + gradient - logits), logits=logits)


def _saved_by_a_layer(recipe: AnyRecipe, shape: Shape, each: int) -> int:
    """Bytes that a layer keeps of each token for the backward pass.

    Of a Llama's layer: two norms, queries, keys, values and what attention gives, and four states of the feed-forward.
    Autocast casts the input of each product anew; adapters keep their inputs, frozen products keep none.
    """
    width, inner = shape.width, shape.inner
    attention = 2 * shape.query + 2 * shape.key
    lora = recipe.model.lora
    little = 8 + 4 * shape.heads  # factors of the norms, and of attention's softmax
    if lora is not None:
        little += 7 * each * lora.lora_r
    if each == FLOAT32:
        return FLOAT32 * ((6 if lora is None else 4) * width + attention + 4 * inner) + little
    if lora is None:
        return FLOAT32 * 4 * width + each * (5 * width + attention + 4 * inner) + little
    return FLOAT32 * 2 * width + each * (5 * width + shape.query + attention + 4 * inner) + little


def host_memory(stage: Stage, recipe: AnyRecipe, *, sharding: Sharding = "none", processes: int = 1) -> int | None:
    """Memory of the machine while a training stage loads and saves, for weights that are on the CPU then.

    Every process loads the policy in float32 and the live reference. At the end the first one has the trained weights
    and, where they are rounded or adapters are added, those of the start in float32, and makes the rounded ones.
    """
    shape = shape_of(recipe)
    if shape is None:
        return None
    each, size = weight_bytes(recipe.model.dtype), shape.parameters
    state = _state(stage, recipe, shape, each)
    loaded = processes * (state.weights + state.reference)
    is_rounded, lora = each < FLOAT32, recipe.model.lora is not None
    gathered = FLOAT32 * size if sharding != "none" and not lora else 0
    saved = gathered + (FLOAT32 * size if is_rounded or lora else 0) + (each * size if is_rounded else 0)
    return max(loaded, saved) + processes * PROCESS


def reading_memory(stage: Stage, recipe: AnyRecipe) -> Memory | None:
    """Memory of each process's device in a stage that scores or samples; None where the size is not known.

    Of a stage that does both, one after the other, it is what the greater needs.
    """
    shape = shape_of(recipe)
    if shape is None:
        return None
    each = weight_bytes(recipe.model.dtype)
    found = []
    if isinstance(sampling := stage.settings.get("sampling"), Sampling):
        found.append(_sampling(sampling, stage, recipe, shape, each))
    if isinstance(benchmark := stage.settings.get("benchmark"), LmEval):
        found.append(_requests(benchmark, stage, shape, each))
    elif stage.kind not in ("generate", "verdicts", "endpoint_verdicts", "answers"):
        found.append(_scoring(stage, recipe, shape, each))
    return max(found, key=lambda memory: memory.total, default=None)


def _scoring(stage: Stage, recipe: AnyRecipe, shape: Shape, each: int) -> Memory:
    """A pass over `compute.score_tokens_per_batch` tokens; log-ratios may read the policy's update, too."""
    tokens = max(recipe.compute.score_tokens_per_batch, recipe.model.max_length)
    both = 2 if "method" in stage.settings and not _is_thin(stage) else 1
    states = each * (3 * shape.width + 2 * shape.inner) * tokens
    chunk = min(LOGITS_CHUNK, tokens) * shape.words * (2 * FLOAT32 + each)
    if stage.kind == "reward":
        chunk = 0
    weights = each * shape.parameters
    return Memory(weights, reference=(both - 1) * weights, activations=both * states, logits=both * chunk)


def _requests(benchmark: LmEval, stage: Stage, shape: Shape, each: int) -> Memory:
    """A batch of lm-eval's requests: the logits of all their tokens, once as the model gives them and as log-probs."""
    tokens = benchmark.batch_size * stage.settings["model"].max_length
    states = each * (3 * shape.width + 2 * shape.inner) * tokens
    return Memory(each * shape.parameters, activations=states, logits=2 * each * shape.words * tokens)


def _is_thin(stage: Stage) -> bool:
    """Whether the update that log-ratios are read along is an adapter."""
    roles = ("adapter",) if stage.kind == "log_ratios" else ("stack", "reward_stack")
    return any(role in stage.inputs for role in roles)


def _sampling(sampling: Sampling, stage: Stage, recipe: AnyRecipe, shape: Shape, each: int) -> Memory:
    """A batch of texts with their keys and values; vLLM needs room for one text, and uses all that it may for more."""
    weights, of_token = each * shape.parameters, 2 * each * shape.layers * shape.key
    backend = sampling.backend
    model = stage.settings["model"]
    if isinstance(backend, VllmBackend):
        longest = backend.max_model_len or model.max_length
        parts = (weights, of_token * longest)
        weights, cache = (_share(part, backend.tensor_parallel_size) for part in parts)
        return Memory(weights, activations=VLLM_OWN, cache=cache)
    rows = backend.batch_size
    longest = min(model.max_length, model.max_prompt_length + sampling.max_tokens)
    prefill = each * (3 * shape.width + 2 * shape.inner) * rows * model.max_prompt_length
    logits = 3 * FLOAT32 * rows * shape.words
    cache = of_token * rows * longest
    return Memory(weights, activations=prefill, logits=logits, cache=cache + 2 * cache // shape.layers)
