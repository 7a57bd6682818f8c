"""A batch of one: what a call costs when there is nothing to amortize it over, and where that time goes.

Usage: python benchmarks/single.py [--repeats N] [--profile LINES] [--output FILE]

Times are of qp10, forward and backward, for every contender of run.py; --profile prints the functions in which this
library's calls spend their time, by Python's profiler, whose own cost inflates small functions.
"""

import argparse
import cProfile
import pstats
import time
from pathlib import Path

from contenders import Contender, Values
from families import FAMILIES
from harness import FIELDS, call_once, limit_threads, race
from reference import family_reference
from report import RESULTS, environment, show, write
from run import CONTENDERS, DEFAULT, chosen

CALLS = 200


def profile(contender: Contender, values: Values, lines: int) -> None:
    """Print where `CALLS` calls spend their time, by function, own time first."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call_once(contender, values)
    plain = (time.perf_counter() - start) / CALLS
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(CALLS):
        call_once(contender, values)
    profiler.disable()
    print(f"\n{contender.name}: {1e6 * plain:.0f} us per call without the profiler; {CALLS} calls with it:")
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(lines)


def main() -> None:
    """Run, print a table, write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT, metavar="NAME")
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    parser.add_argument("--output", type=Path, default=RESULTS / "single.csv")
    options = parser.parse_args()
    limit_threads(options.threads)
    contenders = chosen(options.contenders)
    family = FAMILIES["qp10"][0]()
    values = family[3](1)
    rows = race(contenders, family, values, family_reference("qp10", family, values), options.repeats)
    rows = [{"family": "qp10", "batch": 1} | row for row in rows]
    fields = ["family", "batch", "contender", *FIELDS]
    write(options.output, environment(contenders), fields, rows)
    show(fields, rows)
    if options.profile:
        contenders[0].prepare(family, 1)
        profile(contenders[0], values, options.profile)


if __name__ == "__main__":
    main()
