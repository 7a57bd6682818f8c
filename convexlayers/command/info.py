"""Versions, instruction set, engines, threads: what to write into a report of a defect."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

import convexlayers
from convexlayers.engines import ENGINES
from convexlayers.native import info as native_info
from convexlayers.seeing.render import Section, as_text

REQUIRED = ("torch", "numpy", "scipy", "cvxpy", "clarabel", "scs")
OPTIONAL = ("diffcp", "matplotlib")
PEERS = ("cvxpylayers", "moreau", "qpth", "proxsuite")
# Packages that engines need besides this one.
BEHIND = {"clarabel": "clarabel", "scs": "scs", "diffcp": "diffcp"}


def describe() -> str:
    """All of it, as text."""
    return as_text(f"convexlayers {convexlayers.__version__}", [_platform(), _native(), _engines(), _packages()])


def is_installed(engine: str) -> bool:
    """Whether the package behind an engine is there."""
    return find_spec(BEHIND[engine]) is not None if engine in BEHIND else True


def _platform() -> Section:
    lines = [
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processors", f"{_available()} for this process, {os.cpu_count()} in the machine"),
        ("threads", f"{torch.get_num_threads()} of torch, which engines use unless they are told otherwise"),
        ("accelerator", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"),
    ]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CONVEXLAYERS_ISA")
    lines += [(name, os.environ[name]) for name in names if name in os.environ]
    return Section("machine", tuple(lines))


def _native() -> Section:
    found = native_info()
    lines = (
        ("instruction set", str(found["instruction_set"])),
        ("lanes", f"{found['lanes']} elements side by side"),
        ("compiled by", str(found["compiler"])),
        ("for version", str(found["version"])),
    )
    return Section("native kernels", lines)


def _engines() -> Section:
    missing = "not installed: pip install {}"
    lines = [(name, "ready" if is_installed(name) else missing.format(BEHIND[name])) for name in ENGINES]
    return Section("engines", tuple(lines))


def _packages() -> Section:
    lines = [(name, package_version(name) or "missing") for name in REQUIRED]
    lines += [(name, package_version(name) or "not installed (optional)") for name in OPTIONAL]
    lines += [(name, package_version(name) or "not installed (peer, for bench)") for name in PEERS]
    return Section("packages", tuple(lines))


def package_version(name: str) -> str | None:
    """Of an installed package, None for one that is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        # Packages that are found on a path without having been installed there.
        return "of unknown version" if find_spec(name) is not None else None


def _available() -> int:
    """Processors that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
