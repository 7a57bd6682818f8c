"""Training scripts of other packages, run with the package and on this library's faces: losses and times.

The scripts under benchmarks/migration are programs of users of cvxpylayers, qpth and diffcp. Each is run as it is, and
once more with its import line replaced and nothing else, each time in a process of its own; the time is that of
`train()` after one step of it that is not counted, so construction of layers counts, and imports and first calls do
not. Processes with the package and with the faces alternate, and the medians of all trainings are compared.

    python benchmarks/migration.py --repeats 5
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "migration"
OUTPUT = Path(__file__).parent / "results" / "migration.csv"
FIELDS = ["package", "steps", "first_loss", "last_loss", "largest_difference", "package_s", "convexlayers_s", "ratio"]
# Of each script the line that names the package, and the one in its place.
IMPORTS = {
    "cvxpylayers": (
        "from cvxpylayers.torch import CvxpyLayer",
        "from convexlayers.compat.cvxpylayers import CvxpyLayer",
    ),
    "qpth": ("from qpth.qp import QPFunction", "from convexlayers.compat.qpth import QPFunction"),
    "diffcp": ("import diffcp", "from convexlayers.compat import diffcp"),
}
# Processes of each side.
ROUNDS = 2
TIMED = """
import json, time, warnings
warnings.simplefilter("ignore")
namespace = {"__name__": "script"}
exec(compile(%r, "script", "exec"), namespace)
namespace["train"](1)
seconds = []
for _ in range(%d):
    start = time.perf_counter()
    losses = namespace["train"](%d)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds, "losses": losses}))
"""


def source(package: str, on_face: bool) -> str:
    """A script as it is, or with its import replaced."""
    text = (FOLDER / f"{package}_training.py").read_text(encoding="utf-8")
    before, after = IMPORTS[package]
    if f"\n{before}\n" not in text:
        raise ValueError(f"The script of {package} has no line {before!r}.")
    return text.replace(f"\n{before}\n", f"\n{after}\n") if on_face else text


def run(package: str, on_face: bool, steps: int, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of each of some trainings, and the losses of the last, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", TIMED % (source(package, on_face), repeats, steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"The script of {package} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(losses: list[float], others: list[float]) -> float:
    """The largest difference of two curves at one step, relative to the larger loss."""
    return max(abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in zip(losses, others, strict=True))


def compare(package: str, steps: int, repeats: int, threads: int) -> dict[str, Any]:
    """One row of `FIELDS`."""
    pairs = [[run(package, on_face, steps, repeats, threads) for on_face in (False, True)] for _ in range(ROUNDS)]
    theirs, ours = zip(*pairs, strict=True)
    seconds = [statistics.median(time for result in side for time in result["seconds"]) for side in (theirs, ours)]
    return {
        "package": package,
        "steps": steps,
        "first_loss": theirs[0]["losses"][0],
        "last_loss": theirs[0]["losses"][-1],
        "largest_difference": difference(theirs[0]["losses"], ours[0]["losses"]),
        "package_s": seconds[0],
        "convexlayers_s": seconds[1],
        "ratio": seconds[0] / seconds[1],
    }


def make_table(path: Path = OUTPUT) -> str:
    """The results as the table in docs/migration.md."""
    lines = [
        "| package | losses differ by at most | with it | with convexlayers | times as fast |",
        "|---|---|---|---|---|",
    ]
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seconds, ours = (f"{1e3 * float(row[name]):.0f} ms" for name in ("package_s", "convexlayers_s"))
            difference = f"{float(row['largest_difference']):.0e}".replace("e-0", "e-")
            lines.append(f"| {row['package']} | {difference} | {seconds} | {ours} | {float(row['ratio']):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="+", default=list(IMPORTS), choices=list(IMPORTS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    rows = []
    for package in given.packages:
        row = compare(package, given.steps, given.repeats, given.threads)
        print(
            f"{package}: losses differ by at most {row['largest_difference']:.1e}; {row['package_s']:.2f} s with it, "
            f"{row['convexlayers_s']:.2f} s with convexlayers, {row['ratio']:.1f} times as fast",
            flush=True,
        )
        rows.append(row)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with given.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
