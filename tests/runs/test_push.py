"""`spa push` against a stand-in for the Hub: what arrives, and what it says when it cannot."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spa_recipes.run.rundir import RunDir
from tests.kit.cli import imported_by, run_spa
from tests.kit.finished_runs import commit, make_run
from tests.kit.hub_server import TOKEN, HubServer
from tests.kit.plans import plan_of

PUSHED = ["README.md", "config.json", "model.safetensors", "recipe.yaml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder / "runs" / "mini", plan_of())
    return folder


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished / "runs", tmp_path / "home" / "runs", symlinks=True)
    return tmp_path / "home"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def push(
    home: Path, hub: HubServer | str, *arguments: str, repo: str = "me/model", run: str = "mini", **variables: str
) -> "subprocess.CompletedProcess[str]":
    """`spa push`, logged in to the stand-in, which speaks the older protocol of the two for large files."""
    environment = {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **variables,
    }
    return run_spa(home, "push", run, "--repo-id", repo, *arguments, **environment)


def refusal(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line of an error."""
    assert done.returncode == code, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def final_files(home: Path) -> dict[str, bytes]:
    return {name: (home / "runs" / "mini" / "final" / name).read_bytes() for name in PUSHED}


def test_what_arrives_is_what_is_in_the_final_folder(home: Path, hub: HubServer) -> None:
    done = push(home, hub)
    assert done.returncode == 0, done.stderr
    arrived = hub.files("me/model")
    assert {name: arrived[name] for name in PUSHED} == final_files(home)
    assert arrived.keys() == {".gitattributes", *PUSHED}  # no logs of the training
    assert hub.commits == ["mini: the model of refine-2"]
    assert len(hub.received) == 1
    assert not hub.private
    assert "5.0 kB  model.safetensors" in done.stdout
    assert "4 files" in done.stdout
    assert f"uploaded: {hub.address}/me/model\n" in done.stdout
    assert 'next:     `AutoModelForCausalLM.from_pretrained("me/model")`' in done.stdout
    assert "the card names no license" in done.stdout
    assert done.stderr == ""
    assert TOKEN not in done.stdout


def test_a_dry_run_says_the_same_and_asks_nothing_of_the_hub(home: Path, hub: HubServer) -> None:
    dry = push(home, hub, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert hub.asked == []
    assert dry.stdout.splitlines()[-1] == "nothing was uploaded; without --dry-run it is"
    done = push(home, hub)
    assert dry.stdout.splitlines()[:-1] == done.stdout.splitlines()[: len(dry.stdout.splitlines()) - 1]
    assert push(home, "http://127.0.0.1:9", "--dry-run", HF_TOKEN="", HF_HUB_OFFLINE="1").returncode == 0


def test_private_branch_and_message(home: Path, hub: HubServer) -> None:
    done = push(home, hub, "--private", "--revision", "second try/a", "--commit-message", "My words")
    assert done.returncode == 0, done.stderr
    assert hub.private == {"me/model"}
    assert hub.commits == ["My words"]
    assert [name.replace("%20", " ").replace("%2F", "/") for name in hub.repos["me/model"]] == ["main", "second try/a"]
    assert hub.files("me/model").keys() == {".gitattributes"}


def test_a_private_upload_does_not_go_to_a_public_repository(home: Path, hub: HubServer) -> None:
    assert push(home, hub).returncode == 0
    before = dict(hub.files("me/model"))
    line = refusal(push(home, hub, "--private"), 2)
    assert "the repository is there already, and it is public" in line
    assert "leave --private out" in line
    assert hub.files("me/model") == before


def test_a_second_upload_sends_only_what_is_new_and_leaves_no_old_weights(home: Path, hub: HubServer) -> None:
    assert push(home, hub).returncode == 0
    branch = hub.files("me/model")
    branch |= {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    card = home / "runs" / "mini" / "final" / "README.md"
    card.write_text(card.read_text().replace("# license: say", "license: mit\n# say"))
    done = push(home, hub)
    assert done.returncode == 0, done.stderr
    assert "license" not in done.stdout
    assert hub.files("me/model").keys() == {".gitattributes", "notes.md", *PUSHED}
    assert b"license: mit" in hub.files("me/model")["README.md"]
    assert len(hub.received) == 1


def test_an_interrupted_upload_goes_on(home: Path, hub: HubServer) -> None:
    hub.fail = [("POST .*/commit/", 503)]
    line = refusal(push(home, hub), 75)
    assert "run the command again: it does not send again what has arrived" in line
    assert hub.files("me/model").keys() == {".gitattributes"}  # nobody sees a part of a model
    hub.fail = []
    assert push(home, hub).returncode == 0
    assert {name: hub.files("me/model")[name] for name in PUSHED} == final_files(home)
    assert len(hub.received) == 1


def test_without_a_hub(home: Path) -> None:
    line = refusal(push(home, "http://127.0.0.1:9"), 75)
    assert "me/model: the Hub cannot be reached" in line


@pytest.mark.parametrize(
    ("fail", "code", "words"),
    [
        (("GET /api/whoami", 401), 2, "does not know the token"),
        (("GET /api/whoami", 429), 75, "cannot be reached"),
        (("POST /api/repos/create", 403), 2, "this token may not write there"),
        (("POST /api/repos/create", 500), 75, "cannot be reached"),
        (("POST .*/preupload/", 403), 2, "this token may not write there"),
        (("POST .*/batch", 403), 2, "with the permission to write"),
        (("POST .*/commit/", 403), 2, "this token may not write there"),
        (("POST .*/commit/", 404), 2, "no such owner, repository or branch"),
        (("POST .*/commit/", 412), 75, "something else changed the repository"),
        (("POST .*/commit/", 400), 3, "does not take it"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_one_line(
    home: Path, hub: HubServer, fail: tuple[str, int], code: int, words: str
) -> None:
    hub.fail = [fail]
    line = refusal(push(home, hub), code)
    assert "me/model: " in line
    assert words in line
    assert TOKEN not in line


def test_somebody_elses_namespace(home: Path, hub: HubServer) -> None:
    assert "somebody/x: this token may not write there" in refusal(push(home, hub, repo="somebody/x"), 2)


@pytest.mark.parametrize("token", ["", "hf_another"])
def test_nobody_is_logged_in(home: Path, hub: HubServer, token: str) -> None:
    line = refusal(push(home, hub, HF_TOKEN=token), 2)
    assert "HF_TOKEN" in line
    assert "hf auth login" in line
    assert not hub.repos
    assert "hf_another" not in line


def test_offline(home: Path, hub: HubServer) -> None:
    assert "unset HF_HUB_OFFLINE" in refusal(push(home, hub, HF_HUB_OFFLINE="1"), 2)


@pytest.mark.parametrize("repo", ["model", "a/b/c", "me/-x", "me/a--b", "me/x.git", "me/mo del"])
def test_a_wrong_repository_is_found_before_anything_else(home: Path, hub: HubServer, repo: str) -> None:
    assert "give it as you/name" in refusal(push(home, hub, repo=repo), 2)
    assert hub.asked == []


def test_a_card_that_the_hub_cannot_read(home: Path, hub: HubServer) -> None:
    card = home / "runs" / "mini" / "final" / "README.md"
    card.write_text("---\ntags: 3\n---\n")
    assert "Invalid metadata in README.md" in refusal(push(home, hub), 3)
    assert not hub.received


def test_runs_that_cannot_be_pushed(home: Path, hub: HubServer) -> None:
    run, plan = RunDir(home / "runs" / "mini"), plan_of()
    assert "no run 'other' in runs; runs there: mini" in refusal(push(home, hub, run="other"), 2)
    refine = run.stage_dir(plan.stage("refine-2"), plan)
    weights = refine.output / "model" / "model.safetensors"

    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"?")
    line = refusal(push(home, hub), 3)
    assert "final/model.safetensors: the file was altered; `spa resume runs/mini` makes it again" in line
    weights.write_bytes(content)

    (run.final / "config.json").unlink()
    assert "config.json: the file is missing" in refusal(push(home, hub), 3)
    (run.final / "config.json").write_text("{}")
    assert "config.json: the file was altered" in refusal(push(home, hub), 3)

    shutil.rmtree(run.final)
    run.final.symlink_to((refine.output / "model").relative_to(run.path))  # as earlier versions left it
    assert "no model card is there; `spa resume runs/mini` writes it" in refusal(push(home, hub), 3)

    refine.mark_pruned(["model/model.safetensors"])
    weights.unlink()
    assert "the run is not finished, refine-2 is still to be done" in refusal(push(home, hub), 2)

    shutil.rmtree(run.stage_dir(plan.stage("evaluate-1"), plan).path)
    commit(run, plan, "refine-2")
    line = refusal(push(home, hub), 2)
    assert "the run is not finished, evaluate-1 is still to be done; `spa resume runs/mini` first" in line
    with run.locked():
        assert "in use by" in refusal(push(home, hub), 4)
    assert hub.asked == []


def test_a_copy_with_files_instead_of_links_can_be_pushed(home: Path, hub: HubServer) -> None:
    shutil.copytree(home / "runs", home / "followed")
    done = push(home, hub, "--runs-dir", "followed")
    assert done.returncode == 0, done.stderr
    assert {name: hub.files("me/model")[name] for name in PUSHED} == final_files(home)


def test_nothing_heavy_is_imported(home: Path) -> None:
    done, imported = imported_by(home, "push", "mini", "--repo-id", "me/model", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert imported == []
