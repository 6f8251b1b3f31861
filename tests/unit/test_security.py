"""What comes from outside (models, data, recipes) runs no code, and secrets and output stay where they belong."""

import ast
import inspect
import json
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError, SpaError
from spa_recipes.recipe.schema import DatasetSource, Model
from spa_recipes.state.digests import file_digest
from tests.kit.models import model_folder
from tests.kit.recipes import mini, write_recipe

PACKAGE = Path(__file__).parents[2] / "spa_recipes"


class Payload:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload would leave; it must not be there in the end."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


# ---------------------------------------------------------------------------------------------- the source itself


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, dotted name and node of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), ast.unparse(node.func), node


def test_nothing_reaches_a_shell() -> None:
    forbidden = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}
    for file, name, node in calls():
        assert name not in forbidden, (file, name)
        assert not name.startswith(("os.exec", "os.spawn", "pty.")), (file, name)
        for keyword in node.keywords:
            assert keyword.arg != "shell", (file, name)
        if name.startswith("subprocess."):  # a list of arguments, never one line
            command = node.args[0]
            assert isinstance(command, ast.List | ast.Name), (file, ast.unparse(command))


def test_nothing_is_unpickled() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"} & set(names), path
    assert not [
        (file, name) for file, name, _ in calls() if name in ("torch.load", "numpy.load", "np.load", "yaml.load")
    ]


def test_every_model_is_loaded_from_safetensors_and_without_its_code() -> None:
    loads = [(file, name, node) for file, name, node in calls() if name.endswith(".from_pretrained")]
    models = [load for load in loads if load[0] == "models/loading.py" and not load[1].startswith("AutoConfig")]
    assert len(models) == 1  # the one loader
    others = {name.split(".")[-2] for file, name, _ in loads if file != "models/loading.py"}
    assert others == {"AutoConfig", "AutoTokenizer", "GenerationConfig", "PeftModel"}
    for file, name, node in models:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert keywords.get("use_safetensors") == "True", (file, name)
        assert keywords.get("trust_remote_code", "").endswith("trust_remote_code"), (file, name)
        assert "weights_only" not in keywords, (file, name)
    (vllm,) = [node for _, name, node in calls() if name == "vllm.LLM"]
    assert {k.arg: ast.unparse(k.value) for k in vllm.keywords}["load_format"] == "'safetensors'"
    for _, _, node in calls():  # the only source of the setting is the recipe
        for keyword in node.keywords:
            assert not (keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) == "True")


def test_what_transformers_promises_is_still_so() -> None:
    from transformers import PreTrainedModel

    assert inspect.signature(PreTrainedModel.from_pretrained).parameters["weights_only"].default is True


# ---------------------------------------------------------------------------------------------- models


def test_the_payload_works(tmp_path: Path) -> None:
    """Or the tests below would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()


def test_a_pickle_in_a_model_folder_is_never_opened(trace: Path, tmp_path: Path, spa_here: Any) -> None:
    """Neither as the weights nor beside them; also where the check at the start is passed by."""
    import torch

    from spa_recipes.models.loading import load_causal_lm, load_reward_model

    folder = model_folder(tmp_path / "model", model__safetensors=None)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(trace)))
    recipe = mini(sft=None, evaluation={"reward": "none"})
    recipe["model"] = {**recipe["model"], "model_name_or_path": str(folder)}
    write_recipe(tmp_path / "r.yaml", recipe)
    done = spa_here("run", "r.yaml")
    assert (done.code, "its weights are a pickle" in done.err) == (3, True)
    settings = Model(model_name_or_path=str(folder))
    for load in (load_causal_lm, partial(load_reward_model, new_head=True)):
        with pytest.raises(SpaError):
            load(folder, settings, torch.float32)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and a training of it that died in its third step, with a checkpoint."""
    from tests.kit.training import KilledError, dying_at, make_model, train_pairs

    policy, folder = make_model(tmp_path_factory.mktemp("policy")), tmp_path_factory.mktemp("stopped")
    with pytest.raises(KilledError):
        train_pairs(policy, folder, on_progress=dying_at(3))
    return policy, folder


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_planted_checkpoint_runs_no_code(name: str, stopped: tuple[Path, Path], trace: Path, tmp_path: Path) -> None:
    """Even with a marker that vouches for it; `training_args.bin` is never read at all."""
    from tests.kit.training import train_pairs

    policy, folder = stopped
    shutil.copytree(folder, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    planted = checkpoint / name
    planted.write_bytes(pickle.dumps(Payload(trace)))
    marker = json.loads((checkpoint / "spa_checkpoint.json").read_text())
    marker["files"][name] = {"size": planted.stat().st_size, "sha256": file_digest(planted)}
    (checkpoint / "spa_checkpoint.json").write_text(json.dumps(marker))
    if name == "training_args.bin":
        assert train_pairs(policy, tmp_path / "run").metrics["resumed_from_step"] == 2
        return
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        train_pairs(policy, tmp_path / "run")


def test_code_of_a_model_is_off_unless_the_recipe_says_so(trace: Path, tmp_path: Path, spa_here: Any) -> None:
    assert Model(model_name_or_path="m").trust_remote_code is False
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    code = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
    folder = model_folder(tmp_path / "model", config={"model_type": "own", "auto_map": auto_map}, own__py=code)
    recipe = mini(sft=None, evaluation={"reward": "none"})
    recipe["model"] = {**recipe["model"], "model_name_or_path": str(folder)}
    write_recipe(tmp_path / "r.yaml", recipe)
    assert "trust_remote_code" not in spa_here("plan", "r.yaml").out
    assert "model.trust_remote_code" in spa_here("plan", "r.yaml", "--set", "model.trust_remote_code=true").out
    assert spa_here("run", "r.yaml").code == 2
    import torch

    from spa_recipes.data.chat import load_tokenizer
    from spa_recipes.models.loading import load_causal_lm

    with pytest.raises(SpaError):
        load_tokenizer(folder)
    with pytest.raises(SpaError):
        load_causal_lm(folder, Model(model_name_or_path=str(folder)), torch.float32)


# ---------------------------------------------------------------------------------------------- templates

ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ messages.append.__globals__ }}",
    "builtins": "{{ cycler.__init__.__globals__.os.system('touch x') }}",
    "format": "{{ '{0.__class__.__init__}'.format(messages) ~ [].__class__.__base__ }}",
    "changes": "{{ messages.clear() }}{{ messages }}",
    "endless": "{% for i in range(10 ** 12) %}x{% endfor %}",
    "mistake": "{{ 1 // 0 }}",
    "syntax": "{% if %}",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(case: str) -> None:
    from spa_recipes.data.chat import Renderer
    from spa_recipes.sandbox.model import _build_tokenizer

    tokenizer = _build_tokenizer()
    tokenizer.chat_template = ESCAPES[case]
    with pytest.raises(DataError, match="the chat template fails on a conversation of user, assistant") as caught:
        Renderer(tokenizer, max_prompt_length=8, max_length=16)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


# ---------------------------------------------------------------------------------------------- data


def test_a_script_in_a_dataset_folder_does_not_run(trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    with pytest.raises(DataError):
        read_pairs(DatasetSource(source=str(folder)))
