"""The settings of a recipe. Defaults are the paper's (arXiv 2406.04412) unless a description says otherwise.

Validation accepts or refuses a value and never changes it. The marks `RUNTIME`, `LOCATION` and `REVISION` tell
`spa_recipes.plan.keys` which fields a stage's key leaves out.
"""

# No `from __future__ import annotations`: pydantic would compile each annotation from its text at every start.

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from spa_recipes.recipe import document_rules, loss_rules, member_rules, rules

RUNTIME: dict[str, Any] = {"runtime": True}
"""Marks a field that changes how or where the work is done, but not its result."""
LOCATION: dict[str, Any] = {"input": True, "location": True}
"""Marks a field that names a file, a folder or a Hub id. Its content is an input of a stage: the key holds that."""
REVISION: dict[str, Any] = {"input": True}
"""Marks a field that says which version of a `LOCATION` is meant."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
MAX_SKIPPED = 0.05
"""Share of a dataset's rows that may give nothing before somebody has to look."""
SAVE_STEPS = 200
"""Optimizer steps between the checkpoints of a small model."""
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""numpy accepts no larger seed."""

SANDBOX_MODEL = "sandbox"


class Section(BaseModel):
    """A part of a recipe or job. It refuses unknown keys, is frozen, and never converts a value to another type.

    A default that is a section is made by `model_construct`: a call would build its validator at each start.
    `RULES` say which of its values contradict each other. A `Document` checks them for all sections at once.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )
    RULES: ClassVar[rules.Rules] = ()


class Document(Section):
    """A section that is complete in itself: a plan is made from it.

    Raises:
        pydantic.ValidationError: values have a wrong shape; or their shape is right and they break rules, which a
            `rules.ConflictError` in its `ctx` lists.
    """

    def model_post_init(self, _context: Any) -> None:
        if conflicts := [*rules.conflicts_of(self)]:
            raise rules.ConflictError(conflicts)


def _by_type(default: str) -> Discriminator:
    """Choose a section by its `type`. A section without one has the type `default`."""

    def choice(value: Any) -> str | None:
        if isinstance(value, dict):
            kind = value.get("type", default)
            return kind if isinstance(kind, str) else ""
        return getattr(value, "type", None)

    return Discriminator(choice)


class Lora(Section):
    """Train low-rank adapters instead of all weights. A stage merges them into the weights when it saves its model."""

    RULES: ClassVar[rules.Rules] = (rules.lora_leaves_the_head,)

    lora_r: PositiveInt = Field(16, description="Rank of the adapters.")
    lora_alpha: PositiveInt = Field(32, description="Scale of the adapters.")
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Dropout on the adapters' input.")
    lora_target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="Modules that get an adapter. lm_head cannot have one."
    )
    load_in_4bit: bool = Field(
        False,
        description="QLoRA: keep the frozen weights in 4 bits (NF4). They are those of pi_init in every iteration; the "
        "adapters of the iterations stack on them. Needs bitsandbytes.",
    )


TemplateVariables = dict[str, bool | int | float | str | None]


class ModelSource(Section):
    """Which model, and how it is loaded."""

    RULES: ClassVar[rules.Rules] = (rules.template_variables_are_free,)

    model_name_or_path: str = Field(
        min_length=1,
        description="Hub id or local folder. `sandbox` is the sandbox's tiny Llama with fresh weights.",
        json_schema_extra=LOCATION,
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.", json_schema_extra=REVISION)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the computation and of saved models. auto: bfloat16 on a GPU that has it, else "
        "float32. Weights are in float32 while they are trained.",
    )
    attn_implementation: str | None = Field(None, description="Passed to transformers, e.g. flash_attention_2.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    chat_template: str | None = Field(
        None,
        description="File with a Jinja chat template, for a model without one.",
        json_schema_extra=LOCATION,
    )
    chat_template_kwargs: TemplateVariables = Field(
        {}, description="Variables for the chat template, e.g. {enable_thinking: false}."
    )

    @property
    def is_sandbox(self) -> bool:
        """Whether this is the sandbox's tiny Llama, with fresh weights."""
        return self.model_name_or_path == SANDBOX_MODEL


class Model(ModelSource):
    """The model to align: the SFT model, or the base model when the recipe has an `sft` section."""

    RULES: ClassVar[rules.Rules] = (*ModelSource.RULES, rules.prompt_fits, rules.rounding_has_an_effect)

    max_length: PositiveInt = Field(2048, description="Tokens of prompt and response together.")
    max_prompt_length: PositiveInt = Field(
        1024, description="Tokens of the prompt. A longer prompt loses its beginning."
    )
    lora: Lora | None = Field(None, description="LoRA settings; null trains all weights.")
    save_rounding: Literal["stochastic", "nearest"] | None = Field(
        None,
        description="How trained weights, which are in float32, are rounded to `dtype` when a model is saved. "
        "stochastic: up or down by chance, so that the mean is the trained weight and what was learned is kept. "
        "nearest: as other tools do; an update below half a unit in the last place of its weight is lost. null: "
        "stochastic, or nothing to round in float32.",
    )
    num_parameters: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Number of parameters, e.g. 7.24e9. `spa plan` uses it for its estimates while the model is not on "
        "this disk.",
        json_schema_extra=RUNTIME,
    )

    @property
    def in_4bit(self) -> bool:
        """Whether adapters are trained on weights in 4 bits (QLoRA)."""
        return self.lora is not None and self.lora.load_in_4bit


class Columns(Section):
    """Names of columns, for a dataset whose columns are not detected correctly."""

    prompt: str | None = Field(None, description="Column of the prompt.")
    chosen: str | None = Field(
        None,
        description="Column of the preferred response; of the first where `label` is set, of all where `scores` is.",
    )
    rejected: str | None = Field(
        None, description="Column of the dispreferred response; of the second one where `label` is set."
    )
    system: str | None = Field(None, description="Column of a text for the system message.")
    label: str | None = Field(None, description="Column that says which of two responses is better, or if one is good.")
    positive: bool | float | str | None = Field(
        None,
        description="Value of the label that says that the first response is the better one, or that a response is "
        "good; of a scale, the end that says so. Its middle is a tie.",
    )
    scores: str | None = Field(None, description="Column of a list with the scores of the responses; high is good.")
    margin: str | None = Field(None, description="Column of a number that is kept beside the pair.")
    weight: str | None = Field(None, description="Column of a number that is kept beside the pair; nothing uses it.")
    id: str | None = Field(None, description="Column of a name that is kept beside the pair.")
    ignore: list[str] = Field([], description="Columns that are left out although they may be a part of the prompt.")


Place = Annotated[str, Field(min_length=1)]


class DatasetSource(Section):
    """A dataset on this disk or on the Hub."""

    type: Literal["dataset"] = "dataset"
    source: Place | Annotated[list[Place], Field(min_length=1)] = Field(
        description="A JSONL, JSON, Parquet, CSV or TSV file (also .gz or .zst), a dataset folder, or a Hub id; or a "
        "list of files and folders, which are read one after another.",
        json_schema_extra=LOCATION,
    )
    config_name: str | None = Field(None, description="Configuration of a Hub dataset.")
    split: str | None = Field(
        None, description="Split; null: the only one, or the first of train_prefs, train_sft and train."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.", json_schema_extra=REVISION)
    columns: Columns = Field(Columns.model_construct(), description="Overrides the detected columns.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="Stop at a malformed row, or count and skip it.")
    max_rows: PositiveInt | None = Field(None, description="Use the first so many usable rows only; null: all.")
    max_skipped: Fraction | None = Field(
        None,
        description="Stop when a larger share of the rows gives nothing; null: that of `data`, or 0.05.",
        json_schema_extra=RUNTIME,
    )

    @property
    def name(self) -> str:
        """What the rows are called in messages: the source, or the sources of a list."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    @property
    def parts(self) -> "list[DatasetSource]":
        """The sources of a list, each by itself; the source alone where it is none."""
        names = [self.source] if isinstance(self.source, str) else self.source
        return [self.model_copy(update={"source": name}) for name in names]


class SandboxSource(Section):
    """Rows of the sandbox world, generated when a run needs them."""

    type: Literal["sandbox"]
    rows: PositiveInt = Field(9000, description="Rows to generate.")
    seed: Seed = Field(0, description="Seed of the rows. Different uses of the sandbox never share a random stream.")


Source = Annotated[
    Annotated[DatasetSource, Tag("dataset")] | Annotated[SandboxSource, Tag("sandbox")],
    _by_type("dataset"),
]


class AddedLabels(DatasetSource):
    """Labels that came in the middle of a run. They move no row that was shared out before."""

    after: Annotated[int, Field(ge=0)] = Field(
        description="Iteration after which they came. Labels that join the seed labels are trained on in every "
        "iteration from the next one on; 0: in all."
    )
    join: Literal["seed", "heldout"] = Field(
        "seed",
        description="seed: among the judged pairs of the iterations to come, each once, or with `refine.seed_replay` "
        "before the other seed labels. heldout: they are measured on, and every evaluation is made again.",
    )

    @property
    def dataset(self) -> DatasetSource:
        """The rows by themselves."""
        names = DatasetSource.model_fields
        return DatasetSource.model_construct(**{name: getattr(self, name) for name in names})


class Data(Section):
    """Labelled pairs, and how their rows are divided.

    Rows are shuffled with `shuffle_seed`. The first rows are the seed labels, the next rows give their prompts to
    iteration 1, 2, ..., and the last rows are held out. A row is dropped if its prompt is held out or is already in an
    earlier part.
    """

    pairs: Source = Field(description="Labelled preference pairs.")
    prompts: Source | None = Field(None, description="Prompts for the iterations; null: the prompts of `pairs`.")
    shuffle_seed: Seed = Field(42, description="Seed of the shuffle (the authors' 42).")
    seed_labels: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        2000, description="Labelled pairs of the seed stage: a count, or a fraction such as 0.033; 0 for no labels."
    )
    prompts_per_iteration: list[PositiveInt] = Field(
        [8000, 20000], description="Number of fresh prompts for each iteration; one entry per iteration."
    )
    heldout: Annotated[int, Field(ge=0)] = Field(0, description="Labelled pairs held out for evaluation.")
    added: list[AddedLabels] = Field(
        [],
        description="Labels that came in the middle of the run. `spa resume` adds those of `spa label RUN`.",
        json_schema_extra=RUNTIME,  # each is a stage of its own, whose key holds what matters
    )
    max_skipped: Fraction = Field(
        MAX_SKIPPED,
        description="Stop when a larger share of the rows of a dataset gives nothing: malformed ones that are skipped, "
        "ties, and rows without a label.",
        json_schema_extra=RUNTIME,
    )


class Training(Section):
    """Settings of one training stage. Their names are TRL's."""

    RULES: ClassVar[rules.Rules] = (rules.batch_splits,)

    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-7, description="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Shape of the learning rate over the steps."
    )
    warmup_ratio: Fraction = Field(0.1, description="Share of the steps during which the learning rate rises.")
    num_train_epochs: PositiveInt = Field(1, description="Passes over the data.")
    global_batch_size: PositiveInt = Field(
        32, description="Rows per optimizer step over all devices. It determines the gradient accumulation."
    )
    per_device_train_batch_size: PositiveInt = Field(
        1, description="Rows per device and forward pass.", json_schema_extra=RUNTIME
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW weight decay.")
    adam_epsilon: Annotated[float, Field(gt=0)] = Field(1e-8, description="AdamW epsilon.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to this norm.")
    gradient_checkpointing: bool = Field(
        False, description="Use less memory and more time in the backward pass.", json_schema_extra=RUNTIME
    )
    logging_steps: PositiveInt = Field(10, description="Optimizer steps between log lines.", json_schema_extra=RUNTIME)
    save_steps: PositiveInt | None = Field(
        None,
        description="Optimizer steps between checkpoints of a running stage; null: 200, or where a checkpoint takes "
        "more than 20 GB, one in the middle of the stage.",
        json_schema_extra=RUNTIME,
    )


class SupervisedTraining(Training):
    """Settings of supervised fine-tuning, without its data."""

    dropout: bool = Field(
        False, description="Train with the dropout that the model's config.json names. All other trainings go without."
    )


class SftTraining(SupervisedTraining):
    """Supervised fine-tuning of the base model. Its result is pi_init."""

    data: Source = Field(description="Conversations (`messages`, or `prompt` and `completion`).")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-5, description="Peak learning rate. The default is not from the paper."
    )


class PreferenceTraining(Training):
    """DPO on seed labels or on judged pairs."""

    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="DPO temperature.")


class Members(Section):
    """Seed policies beside pi_0, trained from pi_init on parts of the seed labels. They judge, and are not refined.

    Each costs its training, and one pass over the answers of every iteration. The peer's chain (`judge.peers`) starts
    from the first one; where nothing else reads members, the others are not trained.
    """

    RULES: ClassVar[rules.Rules] = (rules.one_member_shares_nothing,)

    count: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="M, the number of members. 1: pi_0 alone, trained on all seed labels."
    )
    share: Literal["disjoint", "bootstrap"] = Field(
        "disjoint",
        description="The labels of a member. disjoint: every M-th one, so that no two members share a label; their "
        "agreement tells how reliable the judge is. bootstrap: as many as there are, drawn with replacement.",
    )


class SeedTraining(PreferenceTraining):
    """DPO on the seed labels: makes pi_0, and the members beside it."""

    members: Members = Field(
        Members.model_construct(), description="Further seed policies that judge, and tell how reliable the judge is."
    )


class TokenCredit(Section):
    """Weights of single tokens in the margin of a pair, by their implicit rewards.

    r_t = beta*[log pi_{i-1}(y_t) - log pi_init(y_t)] sums up to the reward of a response. A token of the preferred
    response counts 1 + a*rhat_t times, one of the other response 1 - a*rhat_t times.
    """

    type: Literal["tgdpo"] = Field(description="TGDPO (arXiv 2506.14574).")
    a: Annotated[float, Field(ge=0)] = Field(0.5, description="How much tokens differ. 0 is plain DPO.")
    normalise: Literal["none", "max", "sd"] = Field(
        "max",
        description="rhat_t. none: r_t itself. max: r_t over the largest |r_t| of its response, so that no weight is "
        "negative for a up to 1. sd: r_t over the standard deviation of all r_t of the iteration's pairs.",
    )


class RefineTraining(PreferenceTraining):
    """DPO on the judged pairs, which seed pairs may be mixed into."""

    RULES: ClassVar[rules.Rules] = (
        *PreferenceTraining.RULES,
        rules.distilled_pairs_are_judged,
        rules.sppo_reads_answers,
        rules.token_credit_is_of_margins,
    )

    seed_replay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="Share of labelled seed pairs in every batch. The paper uses 0, DICE uses 0.5."
    )
    loss: Literal["sigmoid", "ipo", "distill", "sppo"] = Field(
        "sigmoid",
        description="Loss of a pair with the margin m, which is beta times the difference of its log-ratios. sigmoid: "
        "-log sigmoid(m), as in the paper. ipo: (m/beta - 1/(2*beta))^2, with sums over tokens where TRL takes means. "
        "distill: (m - (r_w - r_l))^2, with the judge's rewards r, which judge.beta scales. sppo: of all n responses, "
        "the mean of (log pi_theta/pi_{i-1} - (P_k - 1/2)/beta)^2, with the mean probability P_k that response k beats "
        "the others by the judge.",
    )
    divergence: Literal["reverse_kl", "chi_squared"] = Field(
        "reverse_kl",
        description="What keeps the policy near its reference. reverse_kl: that of DPO, as in the paper. chi_squared: "
        "log z becomes z + log z in the margin, with z = pi_theta/pi_ref of a response, and the margin is clipped to "
        "+-2 (chi-squared PO).",
    )
    reference_mix: Fraction = Field(
        0.0,
        description="kappa: the log-probs of the training's reference are (1 - kappa)*log pi_{i-1} + kappa*log "
        "pi_init. 0 is the paper's pi_{i-1}, 1 is pi_init. Without de-coupled detection only (lambda = 0).",
    )
    sft_weight: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="Weight of -log pi_theta(y_w|x) / |y_w| in the loss of a pair, which keeps the preferred response "
        "likely. The paper uses 0.",
    )
    token_credit: TokenCredit | None = Field(
        None,
        description="Weigh the tokens of a pair by their rewards; null: all count alike, as in the paper.",
    )


class TransformersBackend(Section):
    """Sampling with transformers. A batch has prompts of equal length, and finished rows leave it."""

    type: Literal["transformers"] = "transformers"
    batch_size: PositiveInt = Field(64, description="Sequences decoded together.", json_schema_extra=RUNTIME)
    shard_size: PositiveInt = Field(
        512,
        description="Prompts per file on disk. An interrupted stage loses no more than these.",
        json_schema_extra=RUNTIME,
    )


class VllmBackend(Section):
    """Sampling with vLLM (extra `vllm`)."""

    type: Literal["vllm"]
    tensor_parallel_size: PositiveInt = Field(
        1, description="GPUs that share one copy of the model.", json_schema_extra=RUNTIME
    )
    data_parallel_size: PositiveInt | Literal["auto"] = Field(
        1,
        description="Copies of the model, each on its own GPUs; auto: as many as all GPUs have room for.",
        json_schema_extra=RUNTIME,
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Share of each GPU's memory that vLLM may use.", json_schema_extra=RUNTIME
    )
    max_model_len: PositiveInt | None = Field(
        None, description="Longest sequence in tokens; null: model.max_length.", json_schema_extra=RUNTIME
    )
    enforce_eager: bool = Field(False, description="Do not use CUDA graphs.", json_schema_extra=RUNTIME)
    lora: Literal["merged", "adapter"] = Field(
        "merged",
        description="How to sample when model.lora is set. merged: from the merged weights, as they are saved. "
        "adapter: from the weights before the training, with the adapter applied separately; in float32 only, where "
        "both are the same model.",
    )
    shard_size: PositiveInt = Field(
        512,
        description="Prompts per file on disk. An interrupted stage loses no more than these.",
        json_schema_extra=RUNTIME,
    )


Backend = Annotated[
    Annotated[TransformersBackend, Tag("transformers")] | Annotated[VllmBackend, Tag("vllm")],
    _by_type("transformers"),
]


class Sampling(Section):
    """How responses are sampled for judging and for evaluation."""

    n: PositiveInt = Field(2, description="Responses per prompt. Of two or more, the best and the worst make a pair.")
    temperature: Annotated[float, Field(ge=0)] = Field(0.7, description="Sampling temperature; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Nucleus sampling: probability mass to sample from."
    )
    max_tokens: PositiveInt = Field(300, description="New tokens per response.")
    max_empty: Fraction = Field(
        0.1,
        description="Stop when a larger share of the responses is empty, that is, has no text but white space. 1 never "
        "stops. An empty response is never part of a pair.",
        json_schema_extra=RUNTIME,
    )
    max_identical: Fraction = Field(
        0.5,
        description="Stop when a larger share of the prompts has n identical responses, which make no pair. 1 never "
        "stops.",
        json_schema_extra=RUNTIME,
    )
    max_cut: Fraction = Field(
        1.0,
        description="Stop when a larger share of the responses is cut at max_tokens. 1 never stops. It is the default "
        "because the paper's limit of 300 tokens cuts many responses.",
        json_schema_extra=RUNTIME,
    )
    check_logps: Annotated[int, Field(ge=0)] = Field(
        32,
        description="Number of responses whose log-probs are computed a second time, and compared with those that "
        "sampling kept for the judge. The report shows the differences. 0 compares none.",
        json_schema_extra=RUNTIME,
    )
    backend: Backend = Field(TransformersBackend.model_construct(), description="Engine that samples.")


class FreeSampling(Sampling):
    """How `spa sample` samples. What makes no pair is counted, and stops nothing."""

    max_empty: Fraction = Field(
        1.0, description="Stop when a larger share of the responses is empty. 1 never stops.", json_schema_extra=RUNTIME
    )
    max_identical: Fraction = Field(
        1.0,
        description="Stop when a larger share of the prompts has n identical responses. 1 never stops.",
        json_schema_extra=RUNTIME,
    )
    check_logps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Number of responses whose log-probs are computed a second time and compared. 0 compares none.",
        json_schema_extra=RUNTIME,
    )


class Endpoint(Section):
    """A server with OpenAI's chat completions API: a provider's, or your own, such as `vllm serve`."""

    RULES: ClassVar[rules.Rules] = (rules.base_url_is_the_base, rules.key_goes_where_it_may)

    base_url: str = Field(
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$", description="Address of the API, e.g. https://api.openai.com/v1."
    )
    model: str = Field(min_length=1, description="Name of the model on the server.")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the API key; null sends no key. The key is never stored. "
        "spa asks you before it sends a key to another server than its own service's.",
    )
    reasoning_model: bool = Field(
        False,
        description="true sends max_completion_tokens instead of max_tokens, and sends no temperature. OpenAI's "
        "reasoning models need this.",
    )
    max_concurrency: PositiveInt = Field(
        8, description="Number of requests that wait for an answer at the same time.", json_schema_extra=RUNTIME
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0, description="Longest time for one answer, up to its last byte.", json_schema_extra=RUNTIME
    )
    max_retries: Annotated[int, Field(ge=0)] = Field(
        6,
        description="How often a request is repeated after a lost connection, too many requests (429) or a server "
        "error (5xx). The pauses grow.",
        json_schema_extra=RUNTIME,
    )


Method = Literal["auto", "difference", "tangent"]
"""How the log-ratio of two models is computed."""


class Peers(Section):
    """Co-teaching: a second chain of policies, the peer, goes through the same iterations on answers of its own.

    Its pi_0 is the first of `seed_training.members`. In iteration t each chain learns from those 1 - f_t of its pairs
    whose labels have the smallest loss under the other chain's policy. The peer costs as much as all iterations but the
    last, in which nobody reads what it would learn, and each chain costs a pass more over the other's answers.
    """

    forget_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.2, description="f: share of its pairs that a chain does not learn from in the end."
    )
    num_gradual: PositiveInt = Field(
        2, description="T_k: iterations over which the share rises linearly, f_t = f*min(t/T_k, 1)."
    )

    def forget_rate_in(self, iteration: int) -> float:
        """f_t of an iteration t, counted from 1 (arXiv 1804.06872, where 1 - f_t is R(T))."""
        return self.forget_rate * min(iteration / self.num_gradual, 1.0)


class ImplicitRewardJudge(Section):
    """r(x, y) = beta * [log pi_{i-1}(y|x) - log pi_ref(y|x)]: the policy judges its own answers."""

    type: Literal["implicit_reward"] = "implicit_reward"
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="Scale of the reward. It does not change which response is preferred."
    )
    reference: str = Field(
        "init",
        min_length=1,
        description="Reference model of the judge: init (pi_init, as in the paper), base (the model before `sft`), "
        "previous (pi_{i-2}, which is pi_init in the first iteration), a folder or a Hub id.",
        json_schema_extra=LOCATION,
    )
    policy: str = Field(
        "previous",
        min_length=1,
        description="Model that judges: previous (pi_{i-1}, as in the paper), seed (pi_0 in every iteration), mean "
        "(the mean of both rewards), members (the mean of the rewards of `seed_training.members`, in every iteration), "
        "a folder or a Hub id. It reads the policy's token ids.",
        json_schema_extra=LOCATION,
    )
    uncertainty_penalty: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="k: with policy members, the reward is the mean of the members' rewards minus k times their "
        "standard deviation. 1 with two members is the smaller of the two rewards.",
    )
    consistency: bool = Field(
        False,
        description="Weigh each label by c and its flip by 1 - c, with c = (1 + tau)/2 and Kendall's tau between the "
        "rankings of the answers by pi_{i-2} and by pi_{i-1}, averaged over the prompts (CREAM). Costs a pass per "
        "iteration from the second one on; in the first, c is 1.",
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the pairs that is kept: those with the largest margins. The paper keeps all."
    )
    peers: Peers | None = Field(
        None,
        description="Co-teaching (arXiv 1804.06872): two chains of policies, each of which chooses the pairs that the "
        "other one learns from. Needs `seed_training.members`. null: one chain, as in the paper.",
    )
    method: Method = Field(
        "auto",
        description="How log pi_{i-1}(y|x) - log pi_ref(y|x) is computed, here and in the evaluation. difference: two "
        "log-probs are subtracted. tangent: the log-prob is differentiated along the difference of the weights, which "
        "half precision does not spoil. auto: difference in float32; in half precision, 16 pairs are measured against "
        "float32, and the fastest way whose error is below a tenth of the median margin is taken.",
    )
    recompute_policy_logps: bool = Field(
        False,
        description="Compute the policy's log-probs again instead of using those that sampling kept. In half precision "
        "kept ones are never used.",
    )
    length_penalty: Annotated[float, Field(ge=0)] | Literal["balanced"] = Field(
        0.0,
        description="a in r - a*|y|, where |y| is the number of response tokens. balanced: the a for which chosen and "
        "rejected responses have the same mean length (DICE). The paper uses 0.",
    )
    min_margin_in_noise: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Drop a pair whose margin is smaller than this many standard errors of it, e.g. 2. The standard "
        "error is what the precision of the computation does to a margin. null keeps all pairs.",
    )


class RewardModelJudge(Section):
    """A sequence-classification model with one output labels the pairs. The paper compares its method with this."""

    RULES: ClassVar[rules.Rules] = (rules.reward_model_is_trained_or_given,)

    type: Literal["reward_model"]
    model_name_or_path: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub id; null: a model that the run trains on the seed labels, starting from pi_init.",
        json_schema_extra=LOCATION,
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.", json_schema_extra=REVISION)
    training: Training | None = Field(
        None, description="Settings for training it; null: those of `seed_training`, without beta."
    )


class LlmJudge(Section):
    """A language model is asked which of two responses is better, once in each order. Its verdicts are not sampled.

    The reward of a response is the share of its comparisons that it won; a tie counts as one half. The margin of a
    pair is therefore between 0 and 1, and its p_chosen, the sigmoid of the margin, is between 0.5 and 0.73. It does
    not say how certain the judge is. With `mode: single` the reward is the score of the response alone, in points.
    """

    RULES: ClassVar[rules.Rules] = (
        rules.llm_judge_is_one_model,
        rules.template_variables_are_free,
        rules.only_scores_are_sampled,
    )

    type: Literal["llm"]
    mode: Literal["pairs", "single"] = Field(
        "pairs",
        description="pairs: which of two responses is better. single: how good is a response alone, in points. Points "
        "are few, so many responses are equal, and a seeded rule decides between equal ones.",
    )
    samples: PositiveInt = Field(
        1,
        description="mode single: replies to each question, whose mean is the reward; more than one are sampled at "
        "temperature 1.",
    )
    model_name_or_path: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub id of the judge; null: the policy pi_{i-1} judges its own responses.",
        json_schema_extra=LOCATION,
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.", json_schema_extra=REVISION)
    chat_template: str | None = Field(
        None,
        description="File with a Jinja chat template, for a judge without one.",
        json_schema_extra=LOCATION,
    )
    chat_template_kwargs: TemplateVariables = Field(
        {},
        description="Variables for the judge's chat template, e.g. {enable_thinking: false}; the policy has those of "
        "`model`.",
    )
    endpoint: Endpoint | None = Field(None, description="Server to ask instead of a model on this machine.")
    prompt: str | None = Field(
        None,
        min_length=1,
        description="File with a Jinja template of the question; null: the package's file "
        "spa_recipes/data/question.jinja, or score.jinja for mode single. That file lists the variables and says how "
        "a verdict or score is read.",
        json_schema_extra=LOCATION,
    )
    max_tokens: PositiveInt = Field(512, description="New tokens per verdict, including its reasons.")
    max_length: PositiveInt | None = Field(
        None,
        description="Tokens of question and verdict together; null: model.max_length. A question that is too long is "
        "not asked. It counts as a tie, and towards max_unparsed.",
    )
    max_unparsed: Fraction = Field(
        0.5,
        description="Stop when a larger share of the questions has no verdict. A missing verdict counts as a tie. 1 "
        "never stops.",
        json_schema_extra=RUNTIME,
    )


class GoldJudge(Section):
    """The sandbox's gold reward labels the pairs. This is a control: no judge can be better."""

    type: Literal["gold"]


class RandomJudge(Section):
    """A coin labels the pairs. This is a control: every judge should be better."""

    type: Literal["random"]


Judge = Annotated[
    Annotated[ImplicitRewardJudge, Tag("implicit_reward")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[LlmJudge, Tag("llm")]
    | Annotated[GoldJudge, Tag("gold")]
    | Annotated[RandomJudge, Tag("random")],
    _by_type("implicit_reward"),
]


JudgeOfPairs = Annotated[
    Annotated[ImplicitRewardJudge, Tag("implicit_reward")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[LlmJudge, Tag("llm")],
    _by_type("implicit_reward"),
]
"""The judges that read any answers: those of `spa judge`."""


class PercentileThreshold(Section):
    """tau is the k-th percentile of p~ over the most recent pairs.

    The window holds the pairs of earlier optimizer steps, from all processes. No pair is flagged until `min_pairs`
    are in the window.
    """

    RULES: ClassVar[rules.Rules] = (rules.window_can_fill,)

    type: Literal["percentile"] = "percentile"
    k: Annotated[float, Field(gt=0, lt=100)] = Field(10.0, description="Percentile, K in the paper.")
    window: PositiveInt = Field(512, description="Pairs in the window. The paper states no size.")
    min_pairs: PositiveInt = Field(32, description="Pairs needed before any is flagged.")


class FixedThreshold(Section):
    """A constant tau."""

    type: Literal["fixed"]
    tau: Annotated[float, Field(gt=0, lt=1)] = Field(description="Pairs with p~ below it are flagged.")


Threshold = Annotated[
    Annotated[PercentileThreshold, Tag("percentile")] | Annotated[FixedThreshold, Tag("fixed")],
    _by_type("percentile"),
]


class Noise(Section):
    """Self-refinement: the training softens the labels of flagged pairs."""

    RULES: ClassVar[rules.Rules] = (rules.lambdas_have_an_effect,)

    enabled: bool = Field(True, description="false trains plain DPO on the judged pairs.")
    alpha: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="Weight of the flipped label of a flagged pair."
    )
    lambdas: list[Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="lambda of the de-coupled noise detection, one per iteration; null: 0.5, 0.25, 0.125, ... 0 turns "
        "it off.",
    )
    detector: Literal["policy", "judge", "both"] = Field(
        "policy",
        description="Whose p~ is compared with tau. policy: that of the policy in training, as in the paper. judge: "
        "that of the judge, which flags pairs with a small margin. both: that of the sum of the two margins.",
    )
    threshold: Threshold = Field(PercentileThreshold.model_construct(), description="How tau is set.")
    warmup_ratio: Fraction = Field(0.2, description="Share of the optimizer steps, from the first, with alpha = 0.")


class Final(Section):
    """What happens to the last policy."""

    extrapolate: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="a: the final model is W + a*(W - W_init), with the weights W of the last policy (of pi_0 without "
        "iterations) and W_init of pi_init. A control that trains nothing; 0 leaves the last policy as it is.",
    )


class Answering(Section):
    """How a benchmark's prompts are answered."""

    RULES: ClassVar[rules.Rules] = (rules.answer_leaves_room,)

    max_tokens: PositiveInt = Field(1024, description="New tokens per answer.")
    max_length: PositiveInt | None = Field(
        None,
        description="Tokens of prompt and answer together; null: model.max_length. A prompt that is too long loses its "
        "beginning.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Nucleus sampling: probability mass to sample from."
    )


class AlpacaEval(Answering):
    """AlpacaEval 2.0: writes `model_outputs.json`. An annotator also gives win rates against the baseline's answers."""

    type: Literal["alpaca_eval"]
    prompts: str | None = Field(
        None,
        min_length=1,
        description="File with `instruction` and, for an annotator, the baseline's `output` and `generator`; null: "
        "tatsu-lab/alpaca_eval on the Hub (805 instructions with GPT-4 Turbo's answers).",
        json_schema_extra=LOCATION,
    )
    annotator: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Annotator of the alpaca_eval package (extra `eval`), e.g. weighted_alpaca_eval_gpt4_turbo; null "
        "only writes the answers. It calls a paid service with the key in its own variable, e.g. OPENAI_API_KEY.",
    )
    temperature: Annotated[float, Field(ge=0)] = Field(0.7, description="Sampling temperature; 0 is greedy.")


class MtBench(Answering):
    """MT-Bench: answers in FastChat's form over two turns. A model behind an endpoint grades them."""

    RULES: ClassVar[rules.Rules] = (*Answering.RULES, rules.mt_bench_can_grade)

    type: Literal["mt_bench"]
    questions: str = Field(min_length=1, description="FastChat's question.jsonl.", json_schema_extra=LOCATION)
    endpoint: Endpoint | None = Field(
        None, description="Server of the model that grades; null only writes the answers."
    )
    judge_prompts: str | None = Field(
        None, min_length=1, description="FastChat's judge_prompts.jsonl.", json_schema_extra=LOCATION
    )
    reference_answers: str | None = Field(
        None,
        min_length=1,
        description="FastChat's reference_answer/gpt-4.jsonl, for math, reasoning and coding.",
        json_schema_extra=LOCATION,
    )
    judge_max_tokens: PositiveInt = Field(2048, description="New tokens per judgment.")


class ImplicitRewardComparison(Section):
    """Compares answers by the implicit reward of a model against what it was trained from."""

    RULES: ClassVar[rules.Rules] = (rules.comparison_names_both_models,)

    type: Literal["implicit_reward"] = "implicit_reward"
    policy: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub id of a model trained with preferences; null: the run's pi_0.",
        json_schema_extra=LOCATION,
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub id of what it was trained from; null: the run's pi_init.",
        json_schema_extra=LOCATION,
    )
    method: Method = Field("auto", description="As `judge.method`.")


class RewardModelComparison(Section):
    """Compares answers by a sequence-classification model with one output."""

    type: Literal["reward_model"]
    model_name_or_path: str = Field(min_length=1, description="Folder or Hub id.", json_schema_extra=LOCATION)
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.", json_schema_extra=REVISION)


PairwiseJudge = Annotated[
    Annotated[ImplicitRewardComparison, Tag("implicit_reward")]
    | Annotated[RewardModelComparison, Tag("reward_model")]
    | Annotated[LlmJudge, Tag("llm")]
    | Annotated[GoldJudge, Tag("gold")],
    _by_type("implicit_reward"),
]


class Pairwise(Answering):
    """A win rate against another model, on any prompts."""

    RULES: ClassVar[rules.Rules] = (*Answering.RULES, rules.llm_comparison_names_its_judge)

    type: Literal["pairwise"]
    against: str = Field(
        "init",
        min_length=1,
        description="The other model: init (the run's pi_init), or a folder or Hub id.",
        json_schema_extra=LOCATION,
    )
    prompts: DatasetSource | None = Field(None, description="Prompts to answer; null: the run's held-out ones.")
    judge: PairwiseJudge = Field(ImplicitRewardComparison.model_construct(), description="What compares the answers.")
    temperature: Annotated[float, Field(ge=0)] = Field(0.7, description="Sampling temperature; 0 is greedy.")


class LmEval(Section):
    """Tasks of EleutherAI's lm-eval (extra `lm_eval`): did the alignment harm what the model could do before?"""

    RULES: ClassVar[rules.Rules] = (rules.tasks_are_distinct,)

    type: Literal["lm_eval"]
    tasks: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        description="Names of tasks, groups or tags, e.g. ifeval, gsm8k, mmlu. Those of the package read datasets "
        "of the Hub."
    )
    include_path: str | None = Field(
        None,
        min_length=1,
        description="Folder with task files of your own (YAML) and their rows. Such files can run Python code.",
        json_schema_extra=LOCATION,
    )
    against: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub id of the model to compare with; null: the run's pi_init (`spa evaluate`: none).",
        json_schema_extra=LOCATION,
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Examples in each prompt; null: as the task says."
    )
    limit: PositiveInt | None = Field(None, description="Rows of each task, from its beginning; null: all.")
    apply_chat_template: bool = Field(
        False, description="Ask in the model's chat template. Published figures of many tasks are without."
    )
    max_length: PositiveInt | None = Field(
        None, description="Tokens of a request; null: model.max_length. A longer one loses its beginning."
    )
    batch_size: PositiveInt = Field(8, description="Requests at a time.", json_schema_extra=RUNTIME)


Benchmark = Annotated[
    Annotated[AlpacaEval, Tag("alpaca_eval")]
    | Annotated[MtBench, Tag("mt_bench")]
    | Annotated[Pairwise, Tag("pairwise")]
    | Annotated[LmEval, Tag("lm_eval")],
    _by_type(""),
]


class Evaluation(Section):
    """Measurements of pi_init and of every later model, on held-out prompts and pairs."""

    RULES: ClassVar[rules.Rules] = (rules.evaluation_names_its_judge,)

    enabled: bool = Field(True, description="false leaves the evaluation stages out.")
    max_prompts: PositiveInt = Field(250, description="Held-out prompts that are answered.")
    responses_per_prompt: PositiveInt = Field(1, description="Answers per held-out prompt.")
    reward: Literal["none", "seed", "gold", "implicit_reward"] = Field(
        "seed",
        description="Judge of the win rate against pi_init. seed: the implicit reward of pi_0 against pi_init. It "
        "knows only the seed labels and favours models of its own run, so read it as a trend. gold: the sandbox's "
        "gold reward. implicit_reward: that of `reward_policy` against `reward_reference`, two models from outside the "
        "run. none: no win rate.",
    )
    reward_policy: str | None = Field(
        None, description="Folder or Hub id of a model trained with preferences.", json_schema_extra=LOCATION
    )
    reward_reference: str | None = Field(
        None,
        description="Folder or Hub id of the model that `reward_policy` was trained from.",
        json_schema_extra=LOCATION,
    )
    num_samples: Annotated[int, Field(ge=0)] = Field(
        3, description="Sample answers shown in the summary.", json_schema_extra=RUNTIME
    )
    max_judge_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Stop before the next iteration when the judge's accuracy on held-out labels is more than this "
        "below its best, e.g. 0.02. null only reports it.",
        json_schema_extra=RUNTIME,
    )
    min_judge_reliability: Annotated[float, Field(gt=0.5, lt=1)] | None = Field(
        None,
        description="Stop before the next training when the agreement of `seed_training.members` says that the judge "
        "is right less often than this on the policy's own answers, e.g. 0.6. null only reports it.",
        json_schema_extra=RUNTIME,
    )

    benchmarks: list[Benchmark] = Field(
        [],
        description="Benchmarks of the final policy, which run last. `spa evaluate` runs the same benchmarks for any "
        "model.",
        json_schema_extra=RUNTIME,  # each is a stage of its own, whose key holds what matters
    )


class Tracking(Section):
    """Experiment trackers."""

    report_to: list[Literal["wandb", "tensorboard", "mlflow", "trackio"]] = Field(
        [], description="Trackers that transformers reports to."
    )


class LocalExecutor(Section):
    """Each stage is a fresh Python process on this machine."""

    type: Literal["local"] = "local"

    @property
    def training_processes(self) -> int:
        """Processes that train together."""
        return 1


class ForkExecutor(Section):
    """Stages fork from one process that has imported the libraries. They start fast but cannot use a GPU."""

    type: Literal["fork"]

    @property
    def training_processes(self) -> int:
        """Processes that train together."""
        return 1


Sharding = Literal["auto", "none", "fsdp2", "zero2", "zero3"]
SHARDING = (
    "How a training is divided over the processes. `none`: each has the whole model. `fsdp2` and `zero3` (DeepSpeed): "
    "each has a share of weights, gradients, optimizer and live reference. `zero2`: each has whole weights and a share "
    "of gradients and optimizer. `auto`: `none` where that fits, by the estimate that `spa plan` shows, else `fsdp2`."
)


class AccelerateExecutor(Section):
    """Stages that load a model run under `accelerate launch`."""

    RULES: ClassVar[rules.Rules] = (rules.sharding_has_an_effect,)

    type: Literal["accelerate"]
    num_processes: PositiveInt = Field(description="Number of processes, one per device.")
    sharding: Sharding = Field("auto", description=SHARDING + " With a `config_file`, auto is what that says.")
    config_file: str | None = Field(
        None,
        description="accelerate config (own DeepSpeed or FSDP2 settings), instead of `sharding`.",
        json_schema_extra=LOCATION,
    )

    @property
    def training_processes(self) -> int:
        """Processes that train together."""
        return self.num_processes


Word = Annotated[str, Field(pattern=r"^\S+$")]
"""A text without white space, which cannot become a second option or a second line of a script."""


class SlurmExecutor(Section):
    """Stages that load a model are steps of a Slurm job; `spa submit` submits it, and the run goes on inside."""

    RULES: ClassVar[rules.Rules] = (rules.sbatch_options_are_options, rules.sharding_has_an_effect)

    type: Literal["slurm"]
    nodes: PositiveInt = Field(description="Nodes of the job.")
    gpus_per_node: Annotated[int, Field(ge=0)] = Field(
        description="GPUs of each node, with a process for each; 0: one process per node, on the CPU."
    )
    sharding: Sharding = Field("auto", description=SHARDING)
    time: Word | None = Field(
        None, description="Longest time of the job as Slurm spells it, e.g. `24:00:00`; null: that of the partition."
    )
    partition: Word | None = Field(None, description="Partition of the job.")
    account: Word | None = Field(None, description="Account that the job is charged to.")
    qos: Word | None = Field(None, description="Quality of service of the job.")
    sbatch: dict[str, Word | int] = Field(
        {}, description="Further options of sbatch by their long names, e.g. `{constraint: h100, exclusive: user}`."
    )
    setup: list[str] = Field(
        [], description="Lines of shell at the beginning of the job, e.g. `source /shared/venv/bin/activate`."
    )
    requeue: bool = Field(
        True, description="Put the job into the queue again, where it goes on, when its time runs out or a node fails."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="How often a stage is begun again within the job after a process or a node was lost."
    )

    @property
    def training_processes(self) -> int:
        """Processes that train together."""
        return self.nodes * max(1, self.gpus_per_node)


class RayExecutor(Section):
    """Stages that load a model run on the nodes of a Ray cluster."""

    RULES: ClassVar[rules.Rules] = (rules.sharding_has_an_effect,)

    type: Literal["ray"]
    address: Word = Field(
        "auto", description="Where the cluster is, `host:port`; auto: RAY_ADDRESS, or the cluster of this machine."
    )
    nodes: PositiveInt = Field(description="Nodes that train together.")
    gpus_per_node: Annotated[int, Field(ge=0)] = Field(
        description="GPUs of each node, with a process for each; 0: one process per node, on the CPU."
    )
    sharding: Sharding = Field("auto", description=SHARDING)
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Custom resources of Ray that each node has to have, e.g. `{trainer: 1}`."
    )
    wait_minutes: Annotated[float, Field(gt=0)] = Field(
        30.0, description="Minutes that a stage waits until the cluster has room for it."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="How often a stage is begun again within a run after a process or a node was lost."
    )

    @property
    def training_processes(self) -> int:
        """Processes that train together."""
        return self.nodes * max(1, self.gpus_per_node)


Executor = Annotated[
    Annotated[LocalExecutor, Tag("local")]
    | Annotated[ForkExecutor, Tag("fork")]
    | Annotated[AccelerateExecutor, Tag("accelerate")]
    | Annotated[SlurmExecutor, Tag("slurm")]
    | Annotated[RayExecutor, Tag("ray")],
    _by_type("local"),
]


class Compute(Section):
    """Where and how the stages run. These settings do not change results."""

    executor: Executor = Field(LocalExecutor.model_construct(), description="How stage processes are started.")
    cpu_threads: PositiveInt | None = Field(None, description="Threads per process on the CPU; null: torch decides.")
    vllm_python: str | None = Field(
        None,
        description="Python of the environment that has vLLM, for the stages that sample with vLLM; null: this Python. "
        "spa-recipes must be installed there, too.",
        json_schema_extra=LOCATION,
    )
    score_tokens_per_batch: PositiveInt = Field(
        16384, description="Tokens that are scored at the same time when log-probs are computed."
    )
    onednn_products: bool = Field(
        True,
        description="Let oneDNN multiply float32 matrices in training and in scoring on a CPU with AVX-512 where it is "
        "faster than torch's own choice, which is on all but Intel's; false leaves every product to torch.",
    )
    stall_minutes: Annotated[float, Field(gt=0)] | None = Field(
        10.0,
        description="Minutes without progress after which a stage is said to stall, with its last step and the calls "
        "that its process is in; null: never.",
    )
    end_stalled: bool = Field(
        False, description="End a stage that stalls, instead of only saying so: the run stops with exit code 75."
    )


class Storage(Section):
    """What stays on disk."""

    runs_dir: str = Field(
        "runs",
        min_length=1,
        description="Folder of all runs. Runs in the same runs_dir share finished stages.",
        json_schema_extra=LOCATION,
    )
    reuse: Literal["own", "all"] = Field(
        "own",
        description="Whose finished stages are taken over from other runs in runs_dir: `own` takes those of runs that "
        "you started, `all` also those of other people. A model and figures of theirs are then used as they are.",
    )
    checkpoints_while_training: PositiveInt | None = Field(
        None,
        description="Complete checkpoints kept while a stage trains; null: 2, or 1 where a checkpoint takes more than "
        "20 GB. The next checkpoint is written before the oldest is removed, so the disk needs room for one more. With "
        "1, there is no other if the only one is damaged.",
    )
    keep_checkpoints: bool = Field(False, description="Keep a finished stage's training checkpoints.")
    keep_shards: bool = Field(False, description="Keep a finished stage's shards beside its merged output.")
    max_download_gb: Annotated[float, Field(gt=0)] | None = Field(
        500.0,
        description="A model or dataset of the Hub that would download more than so many GB (10^9 bytes) is refused "
        "before it does; null: no limit but the free disk.",
    )


class Recipe(Document):
    """One run, from a model and a few labels to an aligned model."""

    RULES: ClassVar[rules.Rules] = (
        document_rules.sandbox_has_the_prompts,
        document_rules.sandbox_model_is_fine_tuned,
        document_rules.one_lambda_per_iteration,
        document_rules.prompt_and_response_fit,
        document_rules.batches_split_over_processes,
        document_rules.four_bits_stay_whole,
        document_rules.vllm_can_sample,
        document_rules.sampling_gives_pairs,
        document_rules.gold_needs_the_sandbox,
        document_rules.judge_has_a_reference,
        document_rules.judge_is_another_one,
        member_rules.members_judge,
        member_rules.peers_review,
        member_rules.reliability_is_measured,
        member_rules.consistency_compares_two,
        document_rules.qlora_is_possible,
        document_rules.recomputing_has_an_effect,
        document_rules.refinement_takes_place,
        document_rules.extrapolation_has_a_way,
        document_rules.mixed_reference_is_known,
        loss_rules.sppo_doubts_no_pair,
        loss_rules.token_rewards_are_known,
        loss_rules.added_labels_are_not_sampled,
        document_rules.seed_labels_are_there,
        document_rules.added_labels_have_an_effect,
        document_rules.there_is_something_to_do,
        document_rules.verdict_leaves_room,
        document_rules.decay_is_measured,
        document_rules.control_can_be_compared,
        document_rules.benchmarks_fit_the_run,
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="Name of the run and of its folder.")
    description: str = Field("", description="Free text for readers.")
    hardware: str = Field(
        "",
        description="The hardware that the recipe was written for, e.g. 4 GPUs with 80 GB. `spa plan` estimates for it "
        "where there is no GPU.",
    )
    seed: Seed = Field(42, description="Seed of sampling, training order and ties.")
    model: Model
    data: Data
    sft: SftTraining | None = Field(None, description="Fine-tune the base model first; null: the model is pi_init.")
    seed_training: SeedTraining = Field(SeedTraining.model_construct(), description="DPO on the seed labels.")
    sampling: Sampling = Field(Sampling.model_construct(), description="How the policy answers fresh prompts.")
    judge: Judge = Field(ImplicitRewardJudge.model_construct(), description="What labels the sampled pairs.")
    refine: RefineTraining = Field(RefineTraining.model_construct(), description="Training on the judged pairs.")
    noise: Noise = Field(Noise.model_construct(), description="Softening of doubtful labels in the refine stages.")
    final: Final = Field(Final.model_construct(), description="What happens to the last policy.")
    control: bool = Field(
        False,
        description="Also train DPO on the seed labels alone, from pi_init, with as many optimizer steps as SPA's "
        "whole chain, and say how much SPA is better. `spa run --with-control` sets it.",
    )
    evaluation: Evaluation = Field(Evaluation.model_construct(), description="Measurements on held-out rows.")
    tracking: Tracking = Field(Tracking.model_construct(), description="Experiment trackers.")
    compute: Compute = Field(Compute.model_construct(), description="Where the stages run.")
    storage: Storage = Field(Storage.model_construct(), description="What stays on disk.")

    @property
    def iterations(self) -> int:
        """Number T of generate, judge, refine rounds."""
        return len(self.data.prompts_per_iteration)

    def lambda_of(self, iteration: int) -> float:
        """lambda of an iteration (1-based); 0 when the noise handling is off or needs no logits."""
        if not self.noise.enabled or self.noise.detector == "judge":
            return 0.0
        return 0.5**iteration if self.noise.lambdas is None else self.noise.lambdas[iteration - 1]
