"""Look into the sdist and the wheel, install each where nothing else is, and solve with it.

    python tools/check_distributions.py dist              # what CI runs
    python tools/check_distributions.py dist --contents   # only look into them

Each kind of file gets an empty virtual environment of its own. The wheel is installed and used with a PATH on which
there is no compiler; the sdist is built by pip in isolation, with the tools that pyproject.toml asks for.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEVER = re.compile(
    r"(^|/)(\.ci|\.git|\.venv[^/]*|__pycache__|build|dist|outputs|\.[a-z]+_cache)/|\.(pyc|o|so|pyd|dylib)$"
)
COMPILED = re.compile(r"convexlayers/native/_core\.[\w.-]*(so|pyd)")
# What a process needs to find its files and the package index, and nothing that leads to a compiler.
KEPT = re.compile(r"PIP_|SSL_|REQUESTS_|(HTTPS?|NO)_PROXY|(https?|no)_proxy|SYSTEMROOT|TEMP|TMP|HOME|USERPROFILE|LANG")


def sdist_problems(names: Iterable[str], sources: Iterable[str]) -> list[str]:
    """What is wrong with the files of an sdist.

    Args:
        names: paths inside the archive's one folder.
        sources: files of the repository that it must have.
    """
    there = set(names)
    problems = [f"{name} is missing" for name in sorted(set(sources) - there)]
    return problems + [f"{name} does not belong in it" for name in sorted(there) if NEVER.search(name)]


def wheel_problems(names: Iterable[str]) -> list[str]:
    """What is wrong with the files of a wheel."""
    there = sorted(names)
    problems = []
    if "convexlayers/py.typed" not in there:
        problems.append("convexlayers/py.typed is missing: type checkers would ignore the annotations")
    if not any(re.fullmatch(r"[\w.-]+\.dist-info/(licenses/)?LICENSE", name) for name in there):
        problems.append("LICENSE is missing")
    if sum(COMPILED.fullmatch(name) is not None for name in there) != 1:
        problems.append("not one compiled convexlayers/native/_core")
    for name in there:
        foreign = not re.match(r"convexlayers(\.libs)?/|convexlayers-[^/]+\.(dist-info|data)/", name)
        stale = NEVER.search(name) and not COMPILED.fullmatch(name) and not name.startswith("convexlayers.libs/")
        if foreign or stale or name.endswith((".cpp", ".hpp")):
            problems.append(f"{name} does not belong in it")
    return problems


def module_problems(module: bytes, instruction_sets: Iterable[str]) -> list[str]:
    """The instruction sets that the compiled module lacks: each table of kernels holds the name of its own."""
    return [f"no kernels for {name}" for name in instruction_sets if name.encode() + b"\0" not in module]


def look_into_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    native = [str(p.relative_to(ROOT)) for p in (ROOT / "convexlayers").rglob("*.[ch]pp")]
    python = [str(p.relative_to(ROOT)) for folder in ("convexlayers", "tests") for p in (ROOT / folder).rglob("*.py")]
    own = [
        "CHANGELOG.md",
        "CITATION.cff",
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    ]
    return sdist_problems(names, [name.replace(os.sep, "/") for name in native + python + own])


def look_into_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        problems = wheel_problems(names)
        if re.search(r"x86_64|amd64", path.name):
            for name in filter(COMPILED.fullmatch, names):
                problems += module_problems(archive.read(name), ["baseline", "avx2", "avx512"])
    return problems


def install_and_use(path: Path, constraints: Path) -> None:
    """Install one file in an environment of its own and run tools/smoke.py there."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        venv.create(home / "venv", with_pip=True)
        folder = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python = folder / "python"
        environment = {name: value for name, value in os.environ.items() if KEPT.match(name)}
        pip = [python, "-m", "pip", "install", "--no-compile", "--constraint", constraints]
        if path.suffix == ".whl":
            environment["PATH"] = str(folder)
            pip += ["--only-binary=:all:"]
        run([*pip, path], home, environment if path.suffix == ".whl" else dict(os.environ))
        # What was installed is used without a compiler, whoever compiled it.
        run([python, ROOT / "tools" / "smoke.py"], home, environment | {"PATH": str(folder)})


def run(command: list[str | Path], folder: Path, environment: dict[str, str]) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=folder, env=environment)


def only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} has {len(found)} files {pattern}, expected one")
    return found[0].resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="folder with one sdist and one wheel")
    parser.add_argument("--contents", action="store_true", help="do not install them")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    arguments = parser.parse_args()
    sdist, wheel = only_file(arguments.dist, "*.tar.gz"), only_file(arguments.dist, "*.whl")
    problems = [f"{sdist.name}: {problem}" for problem in look_into_sdist(sdist)]
    problems += [f"{wheel.name}: {problem}" for problem in look_into_wheel(wheel)]
    if problems:
        sys.exit("\n".join(problems))
    for path in [] if arguments.contents else [wheel, sdist]:
        install_and_use(path, arguments.constraints.resolve())
    print(f"{sdist.name}, {wheel.name}: good")


if __name__ == "__main__":
    main()
