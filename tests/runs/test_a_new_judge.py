"""A new judge is three edits: a section of the schema, a fragment of the plan, a function that gives rewards."""

import json
import shutil
from pathlib import Path

from tests.kit.cli import run_python
from tests.kit.recipes import mini, write_recipe

PACKAGE = Path(__file__).parents[2] / "spa_recipes"

EDITS = {
    "recipe/schema.py": [
        (
            'Judge = Annotated[\n    Annotated[ImplicitRewardJudge, Tag("implicit_reward")]\n',
            'class ShortestJudge(Section):\n    """The shorter answer is the better one."""\n\n'
            '    type: Literal["shortest"]\n\n\n'
            'Judge = Annotated[\n    Annotated[ImplicitRewardJudge, Tag("implicit_reward")]\n'
            '    | Annotated[ShortestJudge, Tag("shortest")]\n',
        )
    ],
    "plan/judges.py": [('    "random": control,\n', '    "random": control,\n    "shortest": control,\n')],
    "stages/judge_rewards.py": [
        (
            '    "random": of_coin,\n',
            '    "random": of_coin,\n'
            '    "shortest": lambda given: torch.tensor([-float(len(a.text)) for a in given.answers]),\n',
        )
    ],
}


WITH_THIS_PACKAGE = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "spa_recipes"]:
    del sys.modules[name]
sys.path.insert(0, "")
from spa_recipes.cli.app import main
sys.argv[0] = "spa"
main()
"""
"""`spa` of the package in the current folder."""


def test_a_new_judge_touches_three_files(tmp_path: Path) -> None:
    package = shutil.copytree(PACKAGE, tmp_path / "spa_recipes")
    for name, edits in EDITS.items():
        text = (package / name).read_text()
        for old, new in edits:
            assert text.count(old) == 1, name
            text = text.replace(old, new)
        (package / name).write_text(text)
    recipe = mini(judge={"type": "shortest"}, data={"prompts_per_iteration": [32]})
    write_recipe(tmp_path / "toy.yaml", recipe)
    done = run_python(tmp_path, WITH_THIS_PACKAGE, "run", "toy.yaml", "--until", "judge-1")
    assert done.returncode == 0, done.stderr
    (pairs,) = (tmp_path / "runs" / "mini" / "stages").glob("*-judge-1-*/output/pairs.jsonl")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["source"] == "shortest"
        assert len(row["chosen"][0]["content"]) <= len(row["rejected"][0]["content"])
