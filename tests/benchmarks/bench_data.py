"""What reading many labelled pairs costs: time and the most memory of the `data` stage's work, in one process.

python -m tests.benchmarks.bench_data [ROWS]    writes ROWS rows (1,000,000) into a temporary folder, then reads them
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = [f"word{number}" for number in range(2000)]
READ = """
import resource, sys, time
from spa_recipes.data import counts
from spa_recipes.data.arrow import PROMPTS, Rows
from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_pairs
from spa_recipes.data.split import split_rows
from spa_recipes.recipe.schema import Data
from spa_recipes.stages.data import names_of
data = Data.model_validate({"pairs": {"source": sys.argv[1]}, "heldout": 1000})
start, cpu = time.perf_counter(), time.process_time()
pairs = read_pairs(data.pairs)
parts = split_rows(names_of(pairs.stored), None, data)
for name, part in (("seed", parts.seed), *((f"prompts-{i}", part) for i, part in enumerate(parts.prompts))):
    write_jsonl(f"{sys.argv[1]}.{name}", pairs.stored.take(part))
counts.repeats(pairs.stored)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{len(pairs.stored):,} rows: {seconds:.1f} s ({cpu:.1f} s of CPU), at most {peak:,.0f} MiB")
"""


def write_rows(path: Path, rows: int) -> None:
    """Pairs of 30 words each, about 700 bytes a row."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(rows):
            texts = (" ".join(draw.choices(WORDS, k=30)) for _ in range(3))
            row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
            file.write(json.dumps({**row, "prompt": f"{number} {row['prompt']}"}) + "\n")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_rows(path, rows)
        print(f"{path.stat().st_size / 1024**2:,.0f} MiB of JSONL", flush=True)
        subprocess.run([sys.executable, "-c", READ, str(path)], check=True)


if __name__ == "__main__":
    main()
