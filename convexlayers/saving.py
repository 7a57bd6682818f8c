"""Layers in files and in checkpoints, and their printed form.

A file holds plain data and nothing that would have to be run: tensors, numbers, text, lists and dictionaries, written
by `torch.save` and read with `weights_only=True`. So a file from a stranger can be opened; what it claims is checked.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.derivatives import Derivative, Exact, Perturbed, Smoothed
from convexlayers.engines import ENGINES, Engine, make_engine
from convexlayers.errors import ArgumentError, ConvexLayersError, FileFormatError
from convexlayers.fingerprint import check_state, program_state
from convexlayers.plain import Plain, digest, program_from_plain, program_to_plain
from convexlayers.program import OutputInfo, ParameterInfo, ParametrizedConeProgram

FORMAT, VERSION = "convexlayers layer", 1
DERIVATIVES: dict[str, type[Derivative]] = {kind.__name__: kind for kind in (Exact, Perturbed, Smoothed)}

File = str | PathLike[str] | IO[bytes]


class Setting(Enum):
    """Stands for a setting that is not given, where None means something."""

    AS_SAVED = "as saved"


AS_SAVED = Setting.AS_SAVED


class SavedModule(torch.nn.Module):
    """What a layer does with files, checkpoints and `print`.

    Attributes:
        program: compiled.
        engine: who solves.
        on_failure, validate, relax: see `ConvexLayer`.
    """

    program: ParametrizedConeProgram
    engine: Engine
    on_failure: str
    validate: bool
    relax: str | None

    if TYPE_CHECKING:
        # torch says of every module that calling it gives Any.
        def __call__(self, *values: Value | Mapping[Any, Value], **named: Value) -> tuple[Tensor, ...]: ...

    @classmethod
    def from_program(
        cls,
        program: ParametrizedConeProgram,
        *,
        solver: str | Engine = "auto",
        on_failure: str = "raise",
        validate: bool = True,
        relax: str | None = None,
    ) -> Self:
        """A layer from what `compile_problem` returned."""
        raise NotImplementedError

    def save(self, path: File) -> None:
        """Write the compiled problem and the settings to a file that `load` reads, without cvxpy.

        Args:
            path: of the file, or a file opened for writing bytes.

        Raises:
            ArgumentError: engine or derivative strategy is not one of the library's, so that a file cannot name it.
        """
        settings = {"on_failure": self.on_failure, "validate": self.validate, "relax": self.relax}
        content = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": _own_version(),
            "program": program_to_plain(self.program),
            "engine": engine_to_plain(self.engine),
            "settings": settings,
        }
        torch.save(content | {"digest": digest(content)}, path)

    @classmethod
    def load(
        cls,
        path: File,
        *,
        solver: str | Engine | Setting = AS_SAVED,
        derivative: Derivative | Setting = AS_SAVED,
        on_failure: str | Setting = AS_SAVED,
        tolerance: float | Setting = AS_SAVED,
        max_iterations: int | Setting | None = AS_SAVED,
        validate: bool | Setting = AS_SAVED,
        threads: int | Setting | None = AS_SAVED,
        relax: str | Setting | None = AS_SAVED,
    ) -> Self:
        """A layer from a file that `save` wrote. Nothing is compiled, nothing in the file is run, no cvxpy is needed.

        Args:
            path: of the file, or a file opened for reading bytes.
            solver, derivative, on_failure, tolerance, max_iterations, validate, threads, relax: instead of what was
                saved; see the constructor. Options of an engine are kept as long as the engine is.

        Raises:
            FileFormatError: the file is none of a layer, is damaged, or was written by a newer version.
            ArgumentError: a setting is not one, or settings come with an engine object, which has its own.
        """
        content = read_file(path)
        try:
            program = program_from_plain(content["program"])
            saved, kept = engine_from_plain(content["engine"]), dict(content["settings"])
            names = {name: kept[name] for name in ("on_failure", "validate", "relax")}
        except (ConvexLayersError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{_name(path)} is damaged, or no file of a layer: {error}") from error
        changes = {"derivative": derivative, "tolerance": tolerance, "max_iterations": max_iterations}
        engine = changed_engine(saved, solver, _given(changes | {"threads": threads}))
        given = _given({"on_failure": on_failure, "validate": validate, "relax": relax})
        return cls.from_program(program, solver=engine, **(names | given))

    def get_extra_state(self) -> Tensor:
        """What a state_dict holds of the layer: a description of its problem, see `convexlayers.fingerprint`."""
        return program_state(self.program)

    def set_extra_state(self, state: object) -> None:
        """Accept a state that describes this layer's problem; nothing is written, since there is nothing to learn.

        Raises:
            CheckpointError: it describes another problem. As with weights of another shape, strict=False does not help.
        """
        check_state(self.program, state)

    def extra_repr(self) -> str:
        """For print(layer)."""
        program, engine = self.program, self.engine
        lines = [
            program.title,
            f"parameters: {_listing(program.parameters)}",
            f"variables: {_listing(program.outputs)}",
            f"cones: {program.structure.cones.describe()}",
            f"solver={engine.name!r}, derivative={engine.derivative!r}, tolerance={engine.tolerance:g}, "
            f"on_failure={self.on_failure!r}" + (f", relax={self.relax!r}" if self.relax else ""),
        ]
        return "\n".join(lines)


def read_file(path: File) -> Plain:
    """The content of a file of a layer, as plain data; its parts are not looked at yet.

    Raises:
        FileFormatError: there is none, or a newer version wrote it.
        OSError: the file cannot be opened.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        # The container has checksums, but its reader does not look at them.
        is_intact = isinstance(content, dict) and content.pop("digest", None) == digest(content)
    except OSError:
        raise
    except Exception as error:  # damaged bytes can raise whatever the reader stumbles over
        raise FileFormatError(f"{_name(path)} is damaged, or no file of a layer ({type(error).__name__}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or type(content.get("version")) is not int:
        raise FileFormatError(
            f"{_name(path)} was not written by ConvexLayer.save. A checkpoint is read by load_state_dict, a layer that "
            "torch.save wrote by torch.load."
        )
    if content["version"] > VERSION:
        raise FileFormatError(
            f"{_name(path)} has version {content['version']} of the format and was written by convexlayers "
            f"{content.get('written_by')}; this is {_own_version()}, which reads versions up to {VERSION}: update it."
        )
    if not is_intact:
        raise FileFormatError(f"{_name(path)} is damaged: its content is not what was written.")
    return content


def engine_to_plain(engine: Engine) -> Plain:
    """An engine of the library as plain data.

    Raises:
        ArgumentError: it, its derivative strategy or an option is none that a file can name.
    """
    if type(engine) is not ENGINES.get(engine.name):
        raise ArgumentError(
            f"The engine is a {type(engine).__name__}, and a file can only name {', '.join(ENGINES)}. Save "
            "ConvexLayer.from_program(layer.program) and load it with solver=your engine, or use torch.save."
        )
    derivative, settings = engine.derivative, {f.name: getattr(engine, f.name) for f in fields(engine)}
    if DERIVATIVES.get(type(derivative).__name__) is not type(derivative):
        raise ArgumentError(
            f"derivative is a {type(derivative).__name__}, and a file can only name {', '.join(DERIVATIVES)}; use "
            "torch.save."
        )
    for name, value in engine.options.items():
        if not isinstance(value, bool | int | float | str | None):
            raise ArgumentError(f"options: {name} is a {type(value).__name__}, expected a number or text.")
    named = {f.name: getattr(derivative, f.name) for f in fields(derivative)}  # type: ignore[arg-type]
    settings["derivative"] = {"name": type(derivative).__name__, "settings": named}
    return {"name": engine.name, "settings": settings | {"options": dict(engine.options)}}


def engine_from_plain(plain: Plain) -> Engine:
    """The inverse. Raises whatever wrong data raise."""
    settings = dict(plain["settings"])
    derivative = settings.pop("derivative")
    return ENGINES[plain["name"]](derivative=DERIVATIVES[derivative["name"]](**derivative["settings"]), **settings)


def changed_engine(saved: Engine, solver: str | Engine | Setting, given: dict[str, Any]) -> Engine:
    """The saved engine with other settings, or another one with these settings."""
    if isinstance(solver, Engine):
        return make_engine(solver, **given)
    if isinstance(solver, Setting) or solver == saved.name:
        return replace(saved, **given)
    settings = {name: getattr(saved, name) for name in ("derivative", "tolerance", "max_iterations", "threads")}
    return make_engine(solver, **(settings | given))


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not AS_SAVED}


def _name(path: File) -> str:
    return str(path) if isinstance(path, str | PathLike) else "The file"


def _own_version() -> str:
    try:
        return version("convexlayers")
    except PackageNotFoundError:
        return "of unknown version"


def _listing(items: tuple[ParameterInfo, ...] | tuple[OutputInfo, ...]) -> str:
    return ", ".join(f"{item.name} {tuple(item.shape)}" for item in items) or "none"
