"""File systems without links, modes, fsync or flock, and disks that fail while a run's files are read or written."""

import errno
import json
import multiprocessing
import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from spa_recipes.data.chat import load_tokenizer
from spa_recipes.errors import DataError, LockedError, SpaError, TryAgainError, system_error
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.recipe.schema import Model
from spa_recipes.run import disk, final
from spa_recipes.run.changes import refuse_changes
from spa_recipes.run.reuse import reuse
from spa_recipes.run.rundir import RunDir, find_reusable
from spa_recipes.stages.common import sharded_values
from spa_recipes.state import atomic, lock, offers, patience
from spa_recipes.state.stagedir import StageDir, adopt
from spa_recipes.training.checkpoints import newest_complete_checkpoint, resume_point
from tests.kit.finished_runs import commit, make_run, show_final
from tests.kit.plans import plan_of
from tests.kit.refused_calls import Refused, refusing
from tests.kit.stages import context_of
from tests.kit.state import FIELDS


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(patience, "_patience", [True])


# --- a file system that is not ext4


def test_what_is_not_offered_is_found_out_and_nothing_is_left(tmp_path: Path) -> None:
    assert offers.missing(tmp_path) == []
    without = [
        Refused("symlink", "EPERM"),
        Refused("link", "EOPNOTSUPP"),
        Refused("chmod", "EPERM"),
        Refused("fsync", "EINVAL"),
    ]
    with refusing(*without):
        found = offers.missing(tmp_path)
    assert [words.split(",")[0] for words in found] == [
        "no modes of files",
        "no fsync",
        "no symbolic links",
        "no hard links",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refused", [Refused("fsync", "EINVAL"), Refused("chmod", "EPERM"), Refused("link", "EPERM")])
def test_a_stage_is_committed_and_taken_over_without(tmp_path: Path, refused: Refused) -> None:
    stage, other = StageDir(tmp_path / "stage"), StageDir(tmp_path / "other")
    stage.draft(1).mkdir(parents=True)
    (stage.draft(1) / "rows").write_text("1")
    with refusing(refused) as made:
        stage.commit(FIELDS)
        adopt(stage, other, "run")
    assert made
    assert other.is_done(FIELDS["key"])
    assert other.problems(deep=True) == []


def test_an_fsync_that_fails_is_no_fsync_that_is_not_offered(tmp_path: Path) -> None:
    with refusing(Refused("fsync", "EIO")), pytest.raises(OSError, match="Input/output"):
        atomic.write_text(tmp_path / "file", "x")


def test_final_holds_copies_where_there_are_no_links(tmp_path: Path) -> None:
    plan = plan_of()
    with refusing(Refused("symlink", "EPERM")):
        run = make_run(tmp_path / "mini", plan)
        model = final.model_shown(run.final)
        assert model.is_relative_to(run.path / "stages")
        shown = run.final / "model.safetensors"
        assert not shown.is_symlink()
        assert shown.read_bytes() == (model / "model.safetensors").read_bytes()
        before = shown.stat()
        show_final(run, plan)
        assert shown.stat() == before  # not copied again
        (run.final / "thesis.txt").write_text("mine")
        stage_id = next(stage.id for stage in plan.stages if model.is_relative_to(run.stage_dir(stage, plan).path))
        shutil.rmtree(model.parents[1])
        commit(run, plan, stage_id)  # with other weights
        show_final(run, plan)
    assert shown.read_bytes() == (model / "model.safetensors").read_bytes()
    assert (run.final / "thesis.txt").read_text() == "mine"
    assert not list(run.final.rglob("*.edited"))


# --- a lock without flock


def _hold_and_die(folder: Path) -> None:
    with refusing(Refused("flock", "ENOLCK")), lock.hold(folder):
        os._exit(0)


@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_run_is_held_by_a_lease_where_there_is_no_flock(tmp_path: Path, error: str) -> None:
    run = RunDir(tmp_path / "mini")
    with refusing(Refused("flock", error)):
        with run.locked() as still_ours:
            assert f"pid {os.getpid()}" in str(run.holder())
            still_ours()
            with pytest.raises(LockedError, match=r"in use by .* pid"), RunDir(run.path).locked():
                pass
            assert run.holder() is not None  # the one that did not get it took nothing away
        assert run.holder() is None
        with run.locked():
            pass
    assert not (run.path / lock.LEASE).exists()


def test_a_machine_with_flock_respects_the_lease_of_one_without(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mini")
    with refusing(Refused("flock", "ENOLCK")):
        held = run.locked()
        held.__enter__()
    assert run.holder() is not None
    with pytest.raises(LockedError), RunDir(run.path).locked():
        pass
    held.__exit__(None, None, None)
    assert run.holder() is None


def test_the_lease_of_a_process_that_died_here_is_free_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert (tmp_path / lock.LEASE).exists()
    with refusing(Refused("flock", "ENOLCK")):
        assert not lock.is_held(tmp_path)
        with lock.hold(tmp_path) as check:
            check()


def test_the_lease_of_another_machine_is_free_when_it_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    lease = tmp_path / lock.LEASE
    lease.write_text(json.dumps({"token": "x", "machine": "another", "pid": 1}))
    with refusing(Refused("flock", "ENOLCK")):
        with pytest.raises(lock.TakenError), lock.hold(tmp_path):
            pass
        old = time.time() - lock.LEASE_SECONDS - 10
        os.utime(lease, (old, old))
        with lock.hold(tmp_path):
            assert lock.is_held(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_lease_is_renewed_and_its_loss_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    run, lease = RunDir(tmp_path / "mini"), tmp_path / "mini" / lock.LEASE
    with refusing(Refused("flock", "ENOLCK")), run.locked() as still_ours:
        os.utime(lease, (0, 0))
        _wait(lambda: lease.stat().st_mtime > 0)
        still_ours()
        lease.write_text(json.dumps({"token": "x", "machine": "another", "pid": 1}))
        _wait(lambda: _raises(still_ours))
        with pytest.raises(LockedError, match="taken over"):
            still_ours()
    assert "another" in lease.read_text()  # the other process keeps it


def test_beside_flock_there_is_a_lease_which_a_machine_sees_that_flock_does_not_reach(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mini")
    with run.locked() as still_ours:
        still_ours()
        lease = json.loads((run.path / lock.LEASE).read_text())
        assert lease["pid"] == os.getpid()
        elsewhere = {**lease, "machine": "another", "boot": "another"}
        (run.path / lock.LEASE).write_text(json.dumps(elsewhere))
        (run.path / lock.FILE).unlink()  # as if this were another machine, which flock does not reach
        (run.path / lock.FILE).touch()
        assert run.holder() is not None
        with pytest.raises(LockedError), RunDir(run.path).locked():
            pass


def test_the_lease_of_a_process_that_had_the_flock_here_is_free_with_it(tmp_path: Path) -> None:
    """Even where another process has its number now."""
    with lock.hold(tmp_path):
        left = (tmp_path / lock.LEASE).read_text()
    (tmp_path / lock.LEASE).write_text(left)
    assert json.loads(left)["pid"] == os.getpid()
    assert not lock.is_held(tmp_path)
    begin = time.monotonic()
    with lock.hold(tmp_path) as check:
        check()
    assert time.monotonic() - begin < lock.SETTLE_SECONDS


@pytest.mark.parametrize(("job", "start", "free"), [("7", 1, True), ("7", 0, False), ("8", 1, False)])
def test_a_job_that_slurm_started_again_has_the_lease_of_its_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, start: int, free: bool
) -> None:
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    lease = {"token": "x", "machine": "another", "pid": 1, "job": "7", "start": 0, "boot": "another", "flock": True}
    (tmp_path / lock.LEASE).write_text(json.dumps(lease))
    (tmp_path / lock.FILE).touch()
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
    assert lock.is_held(tmp_path) != free
    if free:
        with lock.hold(tmp_path) as check:
            check()


def test_a_run_on_a_full_disk_is_held_by_flock_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mini")
    run.path.mkdir()
    with refusing(Refused("write", "ENOSPC", r"\.lease$")), lock.hold(run.path) as check:
        check()
        assert not (run.path / lock.LEASE).exists()


def _raises(check: object) -> bool:
    try:
        check()  # type: ignore[operator]
    except LockedError:
        return True
    return False


def _wait(condition: object) -> None:
    end = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_disk_that_fails_at_the_end_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mini")
    with (
        pytest.raises(ValueError, match="the real error"),
        refusing(Refused("unlink", "EROFS", "holder")),
        run.locked(),
    ):
        raise ValueError("the real error")


# --- a disk that fails while something is read


class Told:
    """Keeps what a reporter is told."""

    def __init__(self) -> None:
        self.damaged_stages: list[str] = []

    def damaged(self, stage: object, problems: list[str], aside: Path) -> None:
        self.damaged_stages += problems

    def __getattr__(self, name: str) -> object:
        return lambda *arguments, **facts: None


READ_ERRORS = ["EIO", "ESTALE", "EACCES"]


@pytest.mark.parametrize("error", READ_ERRORS)
@pytest.mark.parametrize(
    ("call", "file"),
    [
        ("open", "manifest.json"),
        ("read", "manifest.json"),
        ("open", "model.safetensors"),
        ("read", "model.safetensors"),
        ("stat", "model.safetensors"),
    ],
)
def test_a_finished_stage_that_cannot_be_read_is_not_set_aside(
    tmp_path: Path, call: str, file: str, error: str
) -> None:
    plan, run = plan_of(), RunDir(tmp_path / "mini")
    stage = plan.stage("sft")
    folder = commit(run, plan, "sft").path
    told = Told()
    with refusing(Refused(call, error, file, times=2)) as made:
        manifest = reuse(plan, run, told, stage)  # type: ignore[arg-type]
    assert manifest is not None
    assert made
    unreadable = pytest.raises(TryAgainError, match=rf"{file}: cannot be read \(.+\); nothing was changed")
    with refusing(Refused(call, error, file)), unreadable:
        reuse(plan, run, told, stage)  # type: ignore[arg-type]
    assert folder.is_dir()
    assert list(folder.parent.iterdir()) == [folder]
    assert told.damaged_stages == []


@pytest.mark.parametrize("error", READ_ERRORS)
def test_another_run_that_cannot_be_read_is_not_taken_from(tmp_path: Path, error: str) -> None:
    plan, other, run = plan_of(), RunDir(tmp_path / "other"), RunDir(tmp_path / "mini")
    commit(other, plan, "sft")
    with refusing(Refused("open", error, "other/.*manifest.json")):
        assert find_reusable(tmp_path, plan.stage("sft"), besides=run, whose="all") is None


def _checkpoint(folder: Path) -> Path:
    from spa_recipes.training.checkpoints import _write_marker

    checkpoint = folder / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"hours of work")
    _write_marker(checkpoint)
    return checkpoint


@pytest.mark.parametrize("error", READ_ERRORS)
@pytest.mark.parametrize(
    ("call", "file"), [("open", "weights"), ("read", "weights"), ("stat", "weights"), ("open", "spa_checkpoint.json")]
)
def test_a_checkpoint_that_cannot_be_read_is_neither_damaged_nor_deleted(
    tmp_path: Path, call: str, file: str, error: str
) -> None:
    checkpoint = _checkpoint(tmp_path)
    said: list[str] = []
    with refusing(Refused(call, error, file, times=3)):
        assert resume_point(checkpoint.parent, said.append) == checkpoint
    with refusing(Refused(call, error, file)), pytest.raises(TryAgainError, match=f"checkpoint-4/{file}"):
        resume_point(checkpoint.parent, said.append)
    assert said == []
    assert newest_complete_checkpoint(checkpoint.parent) == (checkpoint, [])


@pytest.mark.parametrize("error", READ_ERRORS)
@pytest.mark.parametrize(
    ("call", "file"), [("open", "parquet$"), ("read", "parquet$"), ("stat", "parquet$"), ("open", "sha256")]
)
def test_a_shard_that_cannot_be_read_is_not_made_again(tmp_path: Path, call: str, file: str, error: str) -> None:
    context = context_of(tmp_path)

    def never(start: int, end: int) -> list[float]:
        raise AssertionError("made again")

    values = sharded_values(context, "rewards", "reward", 2, lambda start, end: [1.0] * (end - start))
    with refusing(Refused(call, error, file, times=2)):
        assert sharded_values(context, "rewards", "reward", 2, never) == values
    with refusing(Refused(call, error, file)), pytest.raises(TryAgainError, match=r"parquet.*: cannot be read"):
        sharded_values(context, "rewards", "reward", 2, never)
    assert not (context.work / "damaged").exists()


def test_a_disk_that_does_not_come_back_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(patience, "PAUSES", (1.0, 2.0))
    monkeypatch.setattr(time, "sleep", waited.append)
    (tmp_path / "file").write_text("x")
    with refusing(Refused("open", "EIO", "file")):
        for _ in range(3):
            with pytest.raises(TryAgainError):
                patience.patiently(Path.read_text, tmp_path / "file")
    assert waited == [1.0, 2.0]


@pytest.mark.parametrize("name", ["plan.json", "resolved.json"])
def test_a_run_that_cannot_be_read_is_told_as_that(tmp_path: Path, name: str) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    read = run.recipe if name == "resolved.json" else partial(refuse_changes, plan, run)
    with refusing(Refused("open", "EIO", name)), pytest.raises(TryAgainError, match=rf"{name}: cannot be read"):
        read()


# --- what is said of an error of the system


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 75, "make room"),
        (errno.EDQUOT, 75, "quota"),
        (errno.EFBIG, 3, "ulimit -f"),
        (errno.EIO, 75, "dmesg"),
        (errno.ESTALE, 75, "network drive"),
        (errno.ETIMEDOUT, 75, "network drive"),
        (errno.EMFILE, 75, "ulimit -n"),
        (errno.EACCES, 3, "permissions"),
        (errno.EROFS, 3, "can be written"),
        (errno.ENOENT, 3, "check the path"),
    ],
)
def test_every_error_of_the_system_has_what_where_and_remedy(number: int, code: int, words: str) -> None:
    error = system_error(OSError(number, os.strerror(number), "/data/file"), where="sft")
    assert error.exit_code == code
    assert str(error).startswith(f"sft: /data/file: {os.strerror(number)}; ")
    assert words in error.fix


def test_an_error_without_a_file_names_the_place() -> None:
    error = system_error(OSError(errno.EIO, "Input/output error"), where="sft", place="/runs/mini")
    assert str(error).startswith("sft: /runs/mini: Input/output error; ")


@pytest.mark.parametrize(
    ("error", "words", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/f"), "the disk is full: /f", True),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/f"), "the disk quota is used up: /f", True),
        (OSError(errno.EIO, "Input/output error", "/f"), "Input/output error", False),
        (OSError(errno.EFBIG, "File too large", "/f"), "ulimit -f", False),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), "ulimit -f", False),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "although", True),
    ],
)
def test_a_disk_is_called_full_where_little_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, is_full: bool
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 82 * 10**9)
    told = disk.disk_error(error, tmp_path, where="sft")
    assert words in str(told), told
    assert disk.is_full(error) == is_full
    if isinstance(error, RuntimeError) and is_full:
        assert "the disk is full" not in str(told)
        monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
        assert "the disk is full" in str(disk.disk_error(error, tmp_path, where="sft"))


def test_an_error_of_something_else_is_none_of_the_disk(tmp_path: Path) -> None:
    assert disk.disk_error(ValueError("wrong"), tmp_path, where="sft") is None


@pytest.mark.parametrize(("call", "kind"), [("EACCES", DataError), ("EIO", TryAgainError)])
def test_a_model_folder_that_cannot_be_read_is_no_hub_id(
    policy: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: type[SpaError]
) -> None:
    monkeypatch.chdir(policy.parent)
    settings = Model(model_name_or_path=policy.name)
    import torch

    with refusing(Refused("open", call, "config.json")):
        for load in (lambda: load_tokenizer(policy.name), lambda: load_causal_lm(policy.name, settings, torch.float32)):
            with pytest.raises(kind, match=r"config\.json: ") as caught:
                load()
            assert "Repo id" not in str(caught.value)
