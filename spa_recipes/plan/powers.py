"""What a recipe or job may do beyond computing: code that it runs, servers that it contacts, files outside of the run.

Most of it is what everybody expects. What runs code of somebody's choice, or sends a secret to a server that the secret
is not for, is `asked`: the user has to trust it, and the recipe cannot.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.plan.kinds import KINDS
from spa_recipes.plan.stages import External, Plan
from spa_recipes.recipe.hosts import is_own_host
from spa_recipes.recipe.locations import is_location
from spa_recipes.recipe.schema import (
    AccelerateExecutor,
    AlpacaEval,
    Compute,
    Endpoint,
    LmEval,
    ModelSource,
    RayExecutor,
    Section,
    SlurmExecutor,
    Storage,
    Tracking,
)

_KERNEL = re.compile(r"^[^/:]+/[^/:]+(@[^/:]+)?(:[^/:]+)?$")
_NO_PLACES = {"sandbox", "init", "base", "previous", "seed", "mean", "members"}
"""Values of settings for a model that are words of the recipe's language."""

_TRACKERS = {
    "wandb": ("WANDB_BASE_URL", "https://api.wandb.ai", "WANDB_API_KEY"),
    "mlflow": ("MLFLOW_TRACKING_URI", "", "MLFLOW_TRACKING_TOKEN"),
    "trackio": ("TRACKIO_SPACE_ID", "", "HF_TOKEN"),
    "tensorboard": ("", "", ""),
}
"""For each tracker: your variable that says where it sends to, where it sends to without, and the secret it sends."""

_WANDB_SETTINGS = Path("wandb", "settings")


class Power(NamedTuple):
    """Something that a recipe may do.

    Attributes:
        key: the setting that says so; empty where several do.
        what: a phrase, such as `https://api.openai.com/v1, with OPENAI_API_KEY`.
        asked: whether the user has to trust it.
        content: what it depends on besides `what`, such as the digest of a file.
        said_by: settings that say all of it. A user who types them on the command line agrees; empty where only an
            answer will do.
    """

    key: str
    what: str
    asked: bool = False
    content: str = ""
    said_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} ({self.key})" if self.key else self.what


class Powers(NamedTuple):
    """What a recipe may do: it runs, contacts, reads and writes."""

    runs: list[Power]
    contacts: list[Power]
    reads: list[Power]
    writes: list[Power]

    @property
    def asked(self) -> list[Power]:
        """What the user has to trust."""
        return [power for powers in self for power in powers if power.asked]

    @property
    def digest(self) -> str:
        """Stands for all that is asked, and for nothing else: another learning rate asks nothing again."""
        asked = [(power.key, power.what, power.asked, power.content) for power in self.asked]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def powers_of(plan: Plan, run: Path) -> Powers:
    """What the recipe of a plan may do in the folder `run`."""
    sections = dict(_sections(plan.recipe, ""))
    places = list(_places(sections))
    hub = [Power(key, value) for key, value in places if not _is_here(value)]
    runs = [power for key, section in sections.items() for power in _runs(plan, key, section)]
    contacts = [power for key, section in sections.items() for power in _contacts(key, section)]
    reads = [Power(key, value) for key, value in places if _is_here(value)]
    writes = [Power("", str(run)), *_of_trackers(sections)]
    also = list(_of_benchmarks(sections))
    if hub or also:
        names = ", ".join(dict.fromkeys([*(power.what for power in hub), *also]))
        host = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        contacts.insert(0, Power("", f"{host}, with your token if you have one: {names}"))
        writes.append(Power("", "the cache of the Hub (HF_HOME)"))
    return Powers(runs, contacts, reads, writes)


def _of_benchmarks(sections: dict[str, Section]) -> Iterator[str]:
    """What benchmarks read of the Hub without naming it as a place."""
    for section in sections.values():
        if isinstance(section, AlpacaEval) and section.prompts is None:
            yield "prompts of AlpacaEval"
        if isinstance(section, LmEval):
            yield f"datasets of the tasks {', '.join(section.tasks)}"


def _sections(section: Section, key: str) -> Iterator[tuple[str, Section]]:
    """Yield a section and all that are in it, each with its dotted key."""
    yield key, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for index, inner in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(inner, Section):
                here = f"{name}.{index}" if isinstance(value, list) else name
                yield from _sections(inner, _joined(key, here))


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _places(sections: dict[str, Section]) -> Iterator[tuple[str, str]]:
    """Yield the settings that name what is read: a file, a folder or a Hub id."""
    for key, section in sections.items():
        for name in type(section).model_fields:
            value: Any = getattr(section, name)
            written = isinstance(section, Storage) or name == "vllm_python"
            if not written and is_location(type(section), name):
                for place in value if isinstance(value, list) else [value]:
                    if isinstance(place, str) and place not in _NO_PLACES:
                        yield _joined(key, name), place


def _is_here(value: str) -> bool:
    return Path(value).expanduser().exists()


def _runs(plan: Plan, key: str, section: Section) -> Iterator[Power]:
    """Yield the code that a section makes the run start."""
    if isinstance(section, ModelSource) and section.trust_remote_code:
        for model in _models(plan):
            what = f"the Python code that comes with {model}"
            yield _asked(key, "trust_remote_code", what, content=model.fingerprint)
    if isinstance(section, ModelSource) and is_kernel(section.attn_implementation):
        yield _asked(key, "attn_implementation", f"the compiled code of {section.attn_implementation} on the Hub")
    if isinstance(section, LmEval) and section.include_path is not None:
        setting = _joined(key, "include_path")
        what = f"the Python code that the task files in {section.include_path} name"
        yield _asked(key, "include_path", what, content=_content(plan, setting))
    if isinstance(section, Compute) and section.vllm_python is not None:
        program = shutil.which(Path(section.vllm_python).expanduser()) or section.vllm_python
        yield _asked(key, "vllm_python", f"the program {Path(program).absolute()}")
    if isinstance(section, AccelerateExecutor) and section.config_file is not None:
        path = Path(section.config_file).absolute()
        what = f"what {path} tells accelerate to start, here or on other machines"
        yield _asked(key, "config_file", what, content=_digest(path))

    if isinstance(section, SlurmExecutor) and section.setup:
        yield _asked(key, "setup", f"the shell commands {' && '.join(section.setup)}")
    if isinstance(section, SlurmExecutor) and section.sbatch:
        options = ", ".join(f"{name}={value}" for name, value in section.sbatch.items())
        yield _asked(key, "sbatch", f"a Slurm job with the options {options}")
    if isinstance(section, RayExecutor) and section.address != "auto":
        yield _asked(key, "address", f"its stages on the Ray cluster at {section.address}")


def _asked(key: str, name: str, what: str, *, content: str = "") -> Power:
    setting = _joined(key, name)
    return Power(setting, what, asked=True, content=content, said_by=(setting,))


def is_kernel(attn_implementation: object) -> bool:
    """Whether a name of an attention is that of a repository on the Hub with compiled code."""
    return isinstance(attn_implementation, str) and bool(_KERNEL.match(attn_implementation.removeprefix("paged|")))


def _models(plan: Plan) -> list[External]:
    """The models from outside of the run that its stages load."""
    no_models = ("dataset", "file", "rows")
    found = {
        value: None
        for stage in plan.stages
        for name, value in stage.inputs.items()
        if isinstance(value, External) and KINDS[stage.kind].content(name) not in no_models
    }
    return list(found)


def _contacts(key: str, section: Section) -> Iterator[Power]:
    """Yield the servers that a section makes the run contact, and the variable whose value they get."""
    if isinstance(section, Endpoint):
        variable = section.api_key_env
        what = section.base_url + (f", with {variable}" if variable else ", with no key")
        elsewhere = variable is not None and not is_own_host(variable, section.base_url)
        said_by = (_joined(key, "base_url"), _joined(key, "api_key_env"))
        yield Power(key, what, asked=elsewhere, said_by=said_by)
    if isinstance(section, AlpacaEval) and section.annotator is not None:
        yield Power(_joined(key, "annotator"), f"the service of {section.annotator}, with its own key")
    if isinstance(section, Tracking):
        for tracker in section.report_to:
            variable, otherwise, secret = _TRACKERS[tracker]
            host = os.environ.get(variable) or otherwise
            elsewhere = tracker == "wandb" and _WANDB_SETTINGS.exists() and not os.environ.get(variable)
            if elsewhere:
                host = f"where {_WANDB_SETTINGS.absolute()} says"
            if host:
                content = _digest(_WANDB_SETTINGS) if elsewhere else ""
                what = f"{host}, with {secret} if it is set"
                yield Power(_joined(key, "report_to"), what, asked=elsewhere, content=content)


def _of_trackers(sections: dict[str, Section]) -> Iterator[Power]:
    for key, section in sections.items():
        if isinstance(section, Tracking) and section.report_to:
            yield Power(_joined(key, "report_to"), "the folders of " + ", ".join(section.report_to))


def _content(plan: Plan, key: str) -> str:
    """What stands for the content of the input that a setting names."""
    inputs = (value for stage in plan.stages for value in stage.inputs.values())
    return next((value.fingerprint for value in inputs if isinstance(value, External) and value.key == key), "")


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
