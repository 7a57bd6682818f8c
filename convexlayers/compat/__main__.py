"""`python -m convexlayers.compat check script.py`, `python -m convexlayers.compat run script.py arguments...`.

`check` reads scripts and says what of cvxpylayers, qpth and diffcp they use and whether the faces have it; its exit
code is 1 where something is not supported. `run` runs a script as it is, with the faces in place of these packages.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from convexlayers.compat.check import Verdict, check_source, report
from convexlayers.compat.shim import stand_in


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line, None for the process's own.

    Returns:
        the exit code: 0, or 1 where `check` found something that is not supported. A wrong command line exits with 2.
    """
    parser = argparse.ArgumentParser("python -m convexlayers.compat", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what of a script the faces have")
    check.add_argument("scripts", nargs="+", type=Path)
    run = commands.add_parser("run", help="run a script on the faces")
    run.add_argument("script", type=Path)
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    for script in given.scripts if given.command == "check" else [given.script]:
        if not script.is_file():
            parser.error(f"there is no file {script}")
    if given.command == "check":
        return _check(given.scripts)
    _run(given.script, given.arguments)
    return 0


def _check(scripts: Sequence[Path]) -> int:
    code = 0
    for script in scripts:
        uses = check_source(script.read_text(encoding="utf-8"))
        sys.stdout.write(f"{script}\n{report(uses)}\n")
        code = max(code, *(int(use.verdict is Verdict.UNSUPPORTED) for use in uses), 0)
    return code


def _run(script: Path, arguments: Sequence[str]) -> None:
    stand_in()
    sys.argv = [str(script), *arguments]
    # As Python does for a script.
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
