"""`python -m convexlayers info | check | demo | bench`.

info: versions, instruction set, engines, threads. check: a self-test, exit code 1 where something fails. demo: a layer
that learns. bench: this library beside the peers that are installed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convexlayers.command import bench, check, demo, info
from convexlayers.engines import ENGINES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line, None for the process's own.

    Returns:
        the exit code: 0, or 1 where a check or the demonstration fails, or a benchmark is not there.
    """
    parser = argparse.ArgumentParser("python -m convexlayers", description="Differentiable convex optimization layers.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, instruction set, engines, threads")
    testing = commands.add_parser("check", help="a self-test of some seconds")
    testing.add_argument("--engines", nargs="+", choices=list(ENGINES), help="all that are installed if absent")
    commands.add_parser("demo", help="a layer that learns, and what it reports")
    comparing = commands.add_parser("bench", help="this library beside the peers that are installed")
    comparing.add_argument(
        "--families", nargs="+", metavar="NAME", help="of problems, or 'all'; three small ones if absent"
    )
    comparing.add_argument("--batch", type=int, help="elements of a batch, instead of each family's own")
    comparing.add_argument("--repeats", type=int, default=5)
    comparing.add_argument("--output", type=Path, help="folder for the figures and, with matplotlib, their plot")
    given = parser.parse_args(arguments)
    write = sys.stdout.write
    if given.command == "info":
        write(f"{info.describe()}\n")
        return 0
    if given.command == "check":
        return check.run(write, given.engines)
    if given.command == "demo":
        return demo.run(write)
    return bench.run(write, given.families, given.batch, given.repeats, given.output)


if __name__ == "__main__":
    sys.exit(main())
