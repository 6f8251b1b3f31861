"""Whether what a run made is still as its stage left it, looked at before somebody uses it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from spa_recipes.errors import DataError
from spa_recipes.run.final import model_shown, texts_written
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import file_digest
from spa_recipes.state.stagedir import MANIFEST, StageDir


def remarks(run: RunDir) -> list[str]:
    """What is not as the run left it, a line each: a damaged final model, a changed text beside it, another recipe."""
    found = []
    try:
        check_made_model(str(run.final))
    except DataError as error:
        found.append(str(error))
    found += [
        f"{file} {change} since the run wrote it; `{run.resume_command}` writes a text again that is not there"
        for file, change in _changes(texts_written(run))
    ]
    found += [
        f"{file} {change} since the run wrote it; the run goes on with the recipe in resolved.json as before"
        for file, change in _changes(run.texts_written())
    ]
    return found


def _changes(digests: Mapping[Path, str]) -> Iterator[tuple[Path, str]]:
    """The files that have another digest or are gone, each with words for that."""
    for file, digest in digests.items():
        if not file.is_file():
            yield file, "was deleted"
        elif file_digest(file) != digest:
            yield file, "was changed"


def check_made_model(location: str) -> None:
    """Refuse a model that a stage of a run made and that was changed afterwards; any other location is fine.

    Sizes are compared, and contents where a file is newer than the stage's manifest: that takes no time where nothing
    was touched.

    Raises:
        DataError: a file is missing or was altered.
    """
    folder = Path(location).expanduser()
    if not folder.is_dir():
        return
    model = model_shown(folder).resolve()
    for output in (model, *model.parents):
        stage = StageDir(output.parent)
        if output.name == "output" and (stage.path / MANIFEST).is_file():
            problems = stage.changed(model.relative_to(output).as_posix())
            if problems:
                raise DataError(
                    f"{problems[0]}, since {stage.path.name} made it",
                    where=location,
                    fix=f"`{RunDir(stage.path.parents[1]).resume_command}` makes it again",
                )
            return
