"""Forward and backward time of the layer and of its peers, side by side, with the accuracy of all.

Usage: python benchmarks/run.py [--families qp10 socp ...] [--contenders convexlayers cvxpylayers ...] [--output FILE]

Peers take part if they are installed: `pip install cvxpylayers moreau`. Every contender gets the same tensors, in the
same process, in turn, and runs at its own defaults. Reported are medians, after one warm-up call. Errors are relative,
in the maximum norm over the batch, against this library's solution at tolerance 1e-11 and its gradient there.
Compilation, canonicalization and solver objects are made once by all and not timed.

    convexlayers           ConvexLayer
    convexlayers(clarabel) the same with an engine of choice; only with --engines or by name
    cvxpylayers            CvxpyLayer: SCS and diffcp
    cvxpylayers+moreau     CvxpyLayer with solver="MOREAU"
    moreau                 moreau.torch.Solver on the cone program that our compiler makes; P, A, q, b are its inputs,
                           so that the map from parameters to them is not in its time
    moreau(ipm)            the same, always by its interior-point method
"""

import argparse
import sys
from pathlib import Path

from contenders import Contender, Cvxpylayers, Ours
from families import FAMILIES
from harness import FIELDS, Row, limit_threads, race
from moreau_contender import Moreau
from reference import family_reference
from report import RESULTS, environment, show, write

PEERS = [Cvxpylayers(), Cvxpylayers("MOREAU"), Moreau(), Moreau("ipm")]
ENGINES = [Ours("torch"), Ours("clarabel"), Ours("scs")]
CONTENDERS = {contender.name: contender for contender in [Ours(), *PEERS, *ENGINES]}
DEFAULT = [name for name in CONTENDERS if CONTENDERS[name] not in ENGINES]


def chosen(names: list[str]) -> list[Contender]:
    """The contenders of these names that are installed."""
    missing = [name for name in names if not CONTENDERS[name].installed]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return [CONTENDERS[name] for name in names if name not in missing]


def benchmark(
    name: str, contenders: list[Contender], batch: int | None = None, repeats: int = 10, budget: float = 20.0
) -> list[Row]:
    """One row per contender."""
    make, usual_batch = FAMILIES[name]
    family = make()
    values = family[3](batch or usual_batch)
    reference = family_reference(name, family, values)
    rows = race(contenders, family, values, reference, repeats, budget)
    return [{"family": name, "batch": batch or usual_batch} | row for row in rows]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT, metavar="NAME")
    parser.add_argument("--engines", action="store_true", help="our other engines too")
    parser.add_argument("--batch", type=int, help="instead of each family's own")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds per family and contender; the slow get fewer repeats"
    )
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "families.csv")
    return parser.parse_args()


def main() -> None:
    """Run, print a table, write a CSV file."""
    # Those who import this file do without it.
    from tqdm import tqdm

    options = parse()
    limit_threads(options.threads)
    names = options.contenders + [engine.name for engine in ENGINES if options.engines]
    contenders = chosen(list(dict.fromkeys(names)))
    fields = ["family", "batch", "contender", *FIELDS]
    rows: list[Row] = []
    for name in tqdm(options.families, file=sys.stderr):
        rows += benchmark(name, contenders, options.batch, options.repeats, options.budget)
        # After every family, so that an interrupted run leaves what it has.
        write(options.output, environment(contenders), fields, rows)
    show(fields, rows)


if __name__ == "__main__":
    main()
