"""One stage at work: its attempt, its process, its progress."""

from spa_recipes.errors import SpaError, TryAgainError
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.executors import Executors, vllm_processes_of
from spa_recipes.run.failure import LOG, LostError, stage_failure
from spa_recipes.run.progressfile import Progress
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
        self._plan, self._executors, self._disk_needed = plan, executors, disk_needed
        self._restarts_left = executors.max_restarts
        self._end_stalled = plan.recipe.compute.end_stalled
        self._begin()

    def _begin(self) -> None:
        """Make the next attempt's folder and start its process."""
        plan, stage = self._plan, self.stage
        self._attempt = self._folder.new_attempt()
        number = int(self._attempt.name)
        spec = self._attempt / "spec.json"
        stage_spec(plan, self._run, stage, number, self._disk_needed).write(spec)
        self._run.log_event("stage started", stage=stage.id, attempt=number)
        self._reporter.started(stage, number)
        self._progress = Progress(self._attempt)
        self._stall = Stall(self._attempt, plan.recipe.compute.stall_minutes)
        vllm = vllm_processes_of(stage, plan.recipe.compute)
        self._process = self._executors.start(stage.kind, spec, self._attempt / LOG, vllm)

    def poll(self) -> Manifest | None:
        """See `Job`."""
        code = self._process.poll()
        self._report()
        if code is None:
            self._look_for_stall()
            return None
        manifest = self._folder.manifest()
        if manifest is None or manifest.key != self.stage.key:  # files decide: a launcher may lose an exit code
            self._go_on_after(stage_failure(self.stage, code, self._attempt))
            return None
        self._run.log_event("stage finished", stage=self.stage.id, seconds=manifest.seconds)
        self._reporter.finished(self.stage, manifest)
        return manifest

    def stop(self) -> None:
        """See `Job`."""
        self._process.stop()

    def _go_on_after(self, error: SpaError) -> None:
        """Begin another attempt after a process was lost, which goes on from what is on disk; raise all other errors.

        Raises:
            SpaError: the stage failed by itself, or was begun again `max_restarts` times.
        """
        if not isinstance(error, LostError) or not self._restarts_left:
            raise error
        self._restarts_left -= 1
        what = f"{error.what}; begun again, {self._restarts_left} more times at most"
        self._run.log_event("process lost", stage=self.stage.id, text=what)
        self._reporter.noticed(self.stage, what)
        self._begin()

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
        news = self._progress.news()
        if news.any:
            self._stall.over()
        for notice in news.notices:
            self._run.log_event("notice", stage=self.stage.id, text=notice)
            self._reporter.noticed(self.stage, notice)
        if (step := news.step) is not None:
            self._reporter.progress(self.stage, step["done"], step["total"], step["unit"], step["note"])
