"""`spa judge`: its options, and what it does with them."""

from pathlib import Path
from typing import Annotated

import typer


def label_pairs(
    pairs: Annotated[str, typer.Option(help="Answers to label: file, folder or Hub id.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="JSONL file for the labelled pairs; TRL reads it as it is.", show_default=False)
    ],
    judge: Annotated[str, typer.Option(help="implicit_reward, reward_model or llm.")] = "implicit_reward",
    policy: Annotated[str | None, typer.Option(help="implicit_reward: the model that judges.")] = None,
    reference: Annotated[str | None, typer.Option(help="implicit_reward: the model it was trained from.")] = None,
    beta: Annotated[
        float | None, typer.Option(help="implicit_reward: its scale; default: 0.1.", show_default=False)
    ] = None,
    length_penalty: Annotated[
        str | None,
        typer.Option(help="Reward that a token costs: a number, or balanced (gives equal mean lengths)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    method: Annotated[
        str | None,
        typer.Option(help="difference of two log-probs; tangent along the update, right in half precision, too; auto."),
    ] = None,
    min_margin_in_noise: Annotated[
        float | None, typer.Option(help="Drop pairs whose margin is below so many standard errors.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and response; default: what the models have.", show_default=False),
    ] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option(help="Tokens of the prompt; default: half of them.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompt.")] = None,
    chosen_column: Annotated[str | None, typer.Option(help="Column of the chosen response.")] = None,
    rejected_column: Annotated[str | None, typer.Option(help="Column of the rejected response.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set any key of the dataset, e.g. `--data columns.label=winner`."),
    ] = None,
    on_bad_row: Annotated[str, typer.Option(help="`error` stops at a bad row, `skip` counts it.")] = "error",
    seed: Annotated[int, typer.Option(help="Seed of the rule that breaks ties.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the models.")] = False,
    chat_template: Annotated[str | None, typer.Option(help="Jinja file, for models without a template.")] = None,
    chat_template_kwargs: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set a variable of the chat template, e.g. `enable_thinking=false`."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the job, e.g. `--set judge.max_tokens=64`."),
    ] = None,
) -> None:
    """Label answers that you already have.

    By the implicit reward of a policy against its reference, as in the runs; by a reward model; or by a language model
    that compares them in words. The same command again continues a call that was stopped.
    """
    from spa_recipes.cli.data import settings_of, variables_of
    from spa_recipes.cli.progress import PlainReporter
    from spa_recipes.cli.summary import print_judged
    from spa_recipes.judge_job import JudgeRequest, judge_pairs

    request = JudgeRequest(
        policy=policy,
        reference=reference,
        pairs=pairs,
        out=out,
        judge=judge,
        beta=beta,
        length_penalty=length_penalty,
        dtype=dtype,
        method=method,
        min_margin_in_noise=min_margin_in_noise,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        columns={"prompt": prompt_column, "chosen": chosen_column, "rejected": rejected_column},
        data=settings_of(data or [], "--data"),
        split=split,
        on_bad_row=on_bad_row,
        seed=seed,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        chat_template_kwargs=variables_of(chat_template_kwargs or [], "--chat-template-kwargs"),
        settings=set_ or [],
    )
    with PlainReporter() as reporter:
        manifest = judge_pairs(request, reporter)
    print_judged(request.out, manifest)
