"""Which value belongs to which parameter, however a call passed them."""

from collections.abc import Mapping, Sequence
from typing import Any

from convexlayers.batching import Value
from convexlayers.errors import MissingArgumentError, count_of
from convexlayers.program import ParameterInfo


def collect_values(
    infos: Sequence[ParameterInfo], values: Sequence[Value | Mapping[Any, Value]], named: Mapping[str, Value]
) -> list[Value]:
    """One value per parameter, in order.

    Args:
        infos: the parameters.
        values: by position, or a single mapping from parameters or their names.
        named: by name.

    Raises:
        MissingArgumentError: one is missing, unknown, ambiguous or given twice.
    """
    if not named and len(values) == len(infos) and not any(isinstance(value, Mapping) for value in values):
        return list(values)  # type: ignore[arg-type]
    if len(values) == 1 and isinstance(values[0], Mapping):
        pairs = [(_position(infos, key), value) for key, value in values[0].items()]
    else:
        if len(values) > len(infos) or (not named and len(values) < len(infos)):
            expected = ", ".join(f"{info.name} {info.shape}" for info in infos) or "none"
            raise MissingArgumentError(f"{count_of(len(values), 'value')} given, expected {len(infos)}: {expected}.")
        pairs = list(enumerate(values))
    pairs += [(_position(infos, name), value) for name, value in named.items()]
    positions = [position for position, _ in pairs]
    twice = [info.name for position, info in enumerate(infos) if positions.count(position) > 1]
    if twice:
        raise MissingArgumentError(f"{', '.join(twice)} given twice.")
    given: dict[int, Any] = dict(pairs)
    missing = [info.name for position, info in enumerate(infos) if position not in given]
    if missing:
        raise MissingArgumentError(f"No value for parameter {', '.join(missing)}; the parameters are {_names(infos)}.")
    return [given[position] for position in range(len(infos))]


def _position(infos: Sequence[ParameterInfo], key: Any) -> int:
    """The parameter that a name or a cvxpy.Parameter stands for."""
    if isinstance(key, str):
        found = [position for position, info in enumerate(infos) if info.name == key]
    else:
        # CVXPY numbers parameters anew in every process, so the number alone says nothing about an unpickled layer's.
        same = (getattr(key, "id", None), key.name() if hasattr(key, "name") else None)
        found = [position for position, info in enumerate(infos) if (info.key, info.name) == same]
    if not found:
        raise MissingArgumentError(f"Unknown parameter {key}; the parameters are {_names(infos)}.")
    if len(found) > 1:
        raise MissingArgumentError(f"Two parameters are called {key}: pass values by position or by parameter.")
    return found[0]


def _names(infos: Sequence[ParameterInfo]) -> str:
    return ", ".join(info.name for info in infos) or "none"
