"""One stage at work: its attempt, its process, its progress."""

from spa_recipes.errors import TryAgainError
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.executors import Executors, vllm_processes_of
from spa_recipes.run.failure import stage_failure
from spa_recipes.run.progressfile import ProgressFile
from spa_recipes.run.reporter import Reporter
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.spec import stage_spec
from spa_recipes.run.stall import Stall
from spa_recipes.state.stagedir import Manifest


class StageJob:
    """An attempt of a stage in a process of its own (see `spa_recipes.run.schedule.Job`)."""

    def __init__(
        self,
        plan: Plan,
        run: RunDir,
        stage: Stage,
        executors: Executors,
        reporter: Reporter,
        *,
        disk_needed: int | None,
    ) -> None:
        """Make the attempt's folder and start the process."""
        self.stage = stage
        self._run, self._reporter = run, reporter
        self._folder = run.stage_dir(stage, plan)
        self._attempt = self._folder.new_attempt()
        number = int(self._attempt.name)
        spec = self._attempt / "spec.json"
        stage_spec(plan, run, stage, number, disk_needed).write(spec)
        run.log_event("stage started", stage=stage.id, attempt=number)
        reporter.started(stage, number)
        self._progress = ProgressFile(self._attempt / "progress.jsonl")
        self._stall = Stall(self._attempt, plan.recipe.compute.stall_minutes)
        self._end_stalled = plan.recipe.compute.end_stalled
        log = self._attempt / "worker.log"
        self._process = executors.start(stage.kind, spec, log, vllm_processes_of(stage, plan.recipe.compute))

    def poll(self) -> Manifest | None:
        """See `Job`."""
        code = self._process.poll()
        self._report()
        if code is None:
            self._look_for_stall()
            return None
        manifest = self._folder.manifest()
        if code != 0 or manifest is None or manifest.key != self.stage.key:
            raise stage_failure(self.stage, code, self._attempt)
        self._run.log_event("stage finished", stage=self.stage.id, seconds=manifest.seconds)
        self._reporter.finished(self.stage, manifest)
        return manifest

    def stop(self) -> None:
        """See `Job`."""
        self._process.stop()

    def _look_for_stall(self) -> None:
        """Say once that the stage makes no progress; end it if the recipe asks for that."""
        what = self._stall.news()
        if what is None:
            return
        self._run.log_event("no progress", stage=self.stage.id, text=what)
        self._reporter.noticed(self.stage, what)
        if self._end_stalled:
            self._process.stop()
            raise TryAgainError(
                f"{what}; it was ended, as compute.end_stalled asks",
                where=self.stage.id,
                fix="the same command goes on from its last checkpoint or shard",
            )

    def _report(self) -> None:
        """Pass on every notice and the newest progress."""
        lines = self._progress.new_lines()
        if lines:
            self._stall.over()
        for notice in (line["notice"] for line in lines if "notice" in line):
            self._run.log_event("notice", stage=self.stage.id, text=notice)
            self._reporter.noticed(self.stage, notice)
        for line in [line for line in lines if "notice" not in line][-1:]:
            self._reporter.progress(self.stage, line["done"], line["total"], line["unit"], line["note"])
