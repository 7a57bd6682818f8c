"""Peak memory of one forward and backward pass, in a process of its own; Linux only.

Usage: python benchmarks/memory.py CONTENDER [--family qp100] [--batch 64]

What is counted is the growth of the resident set above what the process holds after a call with a batch of one:
results, gradients, workspaces, a copy of the inputs, and solver objects that belong to a batch size. Prints one line of
JSON: peak and size of the inputs in bytes.
"""

import argparse
import json
from pathlib import Path

from contenders import Values
from families import FAMILIES
from harness import call_once
from run import CONTENDERS


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def clear_high_water_mark() -> None:
    """Set the high-water mark of the resident set back to its present size."""
    Path("/proc/self/clear_refs").write_text("5")


def size(values: Values) -> int:
    """Bytes."""
    return sum(value.nbytes for value in values)


def measure_peak(contender_name: str, family_name: str, batch: int) -> dict[str, int]:
    """Peak and size of the inputs, in bytes."""
    contender, family = CONTENDERS[contender_name], FAMILIES[family_name][0]()
    values = family[3](batch)
    contender.prepare(family, 1)
    call_once(contender, [value[:1].clone() for value in values])
    clear_high_water_mark()
    before = status("VmRSS")
    contender.resize(batch)
    call_once(contender, values)
    return {"peak": status("VmHWM") - before, "inputs": size(values)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--family", choices=FAMILIES, default="qp100")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    print(json.dumps(measure_peak(options.contender, options.family, options.batch)))


if __name__ == "__main__":
    main()
