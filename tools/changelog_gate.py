"""A change of the package needs a line in CHANGELOG.md, under [Unreleased].

    python tools/changelog_gate.py origin/main   # what CI runs on a pull request

Changes of tests, documentation and the like alone need none; nor does one that moves lines into a new release.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable

CHANGELOG = "CHANGELOG.md"
# What users of the package meet.
WATCHED = re.compile(r"convexlayers/|CMakeLists\.txt$|pyproject\.toml$")


def sections(text: str) -> dict[str, set[str]]:
    """Entries by version, an entry being the text of a list item with its lines joined."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        version = re.match(r"\[([^\]]+)\]", title)
        if version is None:
            raise ValueError(f"{CHANGELOG}: a section is called {title!r}, expected '## [version] - date'")
        items = re.findall(r"^- (.+(?:\n  .+)*)", section, flags=re.MULTILINE)
        found[version[1]] = {" ".join(item.split()) for item in items}
    return found


def complaint(changed: Iterable[str], before: str, after: str) -> str | None:
    """Why a change may not go in, or None.

    Args:
        changed: paths of the files that it touches.
        before: CHANGELOG.md without it.
        after: CHANGELOG.md with it.
    """
    watched = sorted(path for path in changed if WATCHED.match(path))
    old, new = sections(before), sections(after)
    released = [version for version in old if version != "Unreleased"]
    lost = [version for version in released if not old[version] <= new.get(version, set())]
    if lost:
        return f"{CHANGELOG}: entries of {', '.join(lost)} were changed or removed; releases stay as they are"
    if new.keys() - old.keys() - {"Unreleased"}:
        return None  # a release
    if watched and not new.get("Unreleased", set()) - old.get("Unreleased", set()):
        return f"{CHANGELOG}: no new entry under [Unreleased], but {', '.join(watched[:3])} changed"
    return None


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit or branch that the change goes into")
    base = git("merge-base", parser.parse_args().base, "HEAD").strip()
    changed = git("diff", "--name-only", base, "HEAD").splitlines()
    sys.exit(complaint(changed, git("show", f"{base}:{CHANGELOG}"), git("show", f"HEAD:{CHANGELOG}")))


if __name__ == "__main__":
    main()
