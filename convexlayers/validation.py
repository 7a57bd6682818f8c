"""Checks of parameter values against what the problem assumes of them.

Values that are not finite are not checked here: they become the status of their element. A value of the wrong sign,
symmetry or definiteness would be solved as another problem than the user wrote, so it is an error.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from convexlayers.batching import are_entries
from convexlayers.errors import ArgumentError
from convexlayers.native import _core
from convexlayers.program import ParameterInfo

# How far from its set a value may be, relative to its largest entry: what rounding in the user's dtype can do.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}

# What the core has to know of a parameter, made once however many layers and calls share it.
_prepared: WeakKeyDictionary[ParameterInfo, _core.Attributes] = WeakKeyDictionary()
_on_pattern: WeakKeyDictionary[ParameterInfo, ParameterInfo] = WeakKeyDictionary()


def validate(parameters: Sequence[ParameterInfo], values: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
    """Check every parameter.

    Args:
        parameters: with their attributes.
        values: of shape (*batch, *shape) each, or (*batch, entries), on the pattern of a sparse parameter.
        dtypes: in which the user computed them.

    Raises:
        ArgumentError: names the parameter, the attribute, the batch index and the value that is off.
    """
    for info, value, dtype in zip(parameters, values, dtypes, strict=True):
        known = _of_entries(info) if info.sparsity is not None and are_entries(info, value) else info
        if value.dtype is not torch.float64 or not value.is_cpu or not value.is_contiguous() or value.is_neg():
            value = value.detach().to("cpu", torch.float64).resolve_neg().contiguous()
        slack = ROUNDING.get(dtype, 1e-2)
        if value.numel() > 0 and not _is_plain(known, value, slack):
            _validate_one(known, value.detach().reshape(-1, *known.shape), slack)


def _of_entries(info: ParameterInfo) -> ParameterInfo:
    """What holds of the entries on a parameter's pattern: its signs and bounds."""
    found = _on_pattern.get(info)
    if found is None:
        pattern, bounds = np.asarray(info.sparsity), None
        if info.bounds is not None:
            lower, upper = (np.broadcast_to(bound, info.shape).reshape(-1)[pattern] for bound in info.bounds)
            bounds = (lower, upper)
        found = _on_pattern[info] = ParameterInfo(info.key, info.name, (len(pattern),), info.attributes, bounds)
    return found


def _is_plain(info: ParameterInfo, value: Tensor, slack: float) -> bool:
    """Whether the core has no doubt, by the rules below. Nearly all values end here."""
    attributes = _prepared.get(info)
    if attributes is None:
        # Threads that come here at the same time prepare the same.
        attributes = _prepared[info] = _prepare(info)
    try:
        address = value.data_ptr()
    except RuntimeError:  # within torch.func's transforms the numbers are behind a wrapper
        return False
    return attributes.hold(address, value.numel(), slack, torch.get_num_threads())


def _prepare(info: ParameterInfo) -> _core.Attributes:
    """The attributes as numbers; see native/src/validate.hpp."""
    names, nothing = info.attributes, np.empty(0)
    lowers, uppers = (np.broadcast_to(bound, info.shape).reshape(-1) for bound in info.bounds or (-np.inf, np.inf))
    lowers = np.maximum(lowers, 0.0) if "nonneg" in names else lowers
    uppers = np.minimum(uppers, 0.0) if "nonpos" in names else uppers
    limits = (-np.inf, np.inf)
    if lowers.min() == lowers.max() and uppers.min() == uppers.max():
        limits, lowers, uppers = (float(lowers[0]), float(uppers[0])), nothing, nothing
    outside = nothing
    if info.sparsity is not None:
        outside = np.ones(info.size)
        outside[info.sparsity] = 0.0
    return _core.make_attributes(
        info.size,
        info.shape[-1] if any(name in OF_MATRICES for name in names) else 0,
        limits,
        ("pos" in names, "neg" in names, "symmetric" in names, "diag" in names),
        np.array([sign for name, sign in DEFINITE.items() if name in names], dtype=float),
        *(np.ascontiguousarray(part, dtype=float) for part in (lowers, uppers, outside)),
    )


def _validate_one(info: ParameterInfo, value: Tensor, slack: float) -> None:
    """Check values (B, *shape), float64, and say what is off."""
    finite = value.isfinite().reshape(len(value), -1).all(1)
    # Elements that are not finite are reported by their status. Here they are exempt, and zero, which trips no check.
    value = torch.where(finite.reshape(-1, *([1] * len(info.shape))), value, torch.zeros_like(value))
    allowed = slack * _largest(value.abs())
    for attribute in info.attributes:
        excess = CHECKS[attribute](value)
        _refuse(info, attribute, excess, torch.zeros_like(allowed) if attribute in STRICT else allowed, finite)
    if info.bounds is not None:
        # torch takes no arrays with negative strides.
        lower, upper = (torch.as_tensor(np.ascontiguousarray(bound)) for bound in info.bounds)
        _refuse(info, "within its bounds", _largest(torch.maximum(lower - value, value - upper)), allowed, finite)
    if info.sparsity is not None:
        outside = torch.ones(info.size, dtype=torch.bool)
        outside[torch.as_tensor(info.sparsity)] = False
        off = value.reshape(len(value), -1)[:, outside]
        excess = off.abs().amax(1) if off.shape[1] else torch.zeros_like(allowed)
        _refuse(info, "zero outside its sparsity pattern", excess, torch.zeros_like(allowed), finite)


def _refuse(info: ParameterInfo, attribute: str, excess: Tensor, allowed: Tensor, finite: Tensor) -> None:
    bad = (excess > allowed) & finite
    if not bool(bad.any()):
        return
    index = int(bad.nonzero()[0])
    where = f" (batch index {index})" if len(bad) > 1 else ""
    asked = attribute + MEANINGS.get(attribute, "")
    raise ArgumentError(
        f"{info.name} must be {asked}, but its value{where} is not: it is off by {float(excess[index]):.3g}. "
        "Pass a value that is, or switch the check off with validate=False."
    )


def _asymmetry(value: Tensor) -> Tensor:
    return _largest((value - value.transpose(-1, -2)).abs())


def _negative_eigenvalue(value: Tensor) -> Tensor:
    """How far the smallest eigenvalue is below zero; a Cholesky factorization first, cheaper and mostly enough."""
    symmetric = 0.5 * (value + value.transpose(-1, -2))
    scale = symmetric.abs().amax((-1, -2), keepdim=True)
    shift = 1e-12 * torch.where(scale > 0, scale, torch.ones_like(scale))
    _, info = torch.linalg.cholesky_ex(symmetric + shift * torch.eye(value.shape[-1], dtype=value.dtype))
    if not bool((info != 0).any()):
        return torch.zeros(len(value), dtype=value.dtype)
    return _largest(-torch.linalg.eigvalsh(symmetric)[..., 0])


def _largest(value: Tensor) -> Tensor:
    """The largest entry of each element, (B,)."""
    return value.reshape(len(value), -1).amax(1)


def _off_diagonal(value: Tensor) -> Tensor:
    return _largest((value - torch.diag_embed(value.diagonal(dim1=-2, dim2=-1))).abs())


def _below(limit: float, sign: float) -> Callable[[Tensor], Tensor]:
    def excess(value: Tensor) -> Tensor:
        return _largest(limit - sign * value)

    return excess


def _not_strictly(sign: float) -> Callable[[Tensor], Tensor]:
    def excess(value: Tensor) -> Tensor:
        worst = _largest(-sign * value)
        # Zero is off too, and has to show as an excess.
        return torch.where(worst == 0, torch.full_like(worst, torch.finfo(value.dtype).tiny), worst)

    return excess


def _definite(sign: float) -> Callable[[Tensor], Tensor]:
    def excess(value: Tensor) -> Tensor:
        return torch.maximum(_asymmetry(value), _negative_eigenvalue(sign * value))

    return excess


CHECKS: dict[str, Callable[[Tensor], Tensor]] = {
    "nonneg": _below(0.0, 1.0),
    "nonpos": _below(0.0, -1.0),
    "pos": _not_strictly(1.0),
    "neg": _not_strictly(-1.0),
    "symmetric": _asymmetry,
    "PSD": _definite(1.0),
    "NSD": _definite(-1.0),
    "diag": _off_diagonal,
}
# What a name leaves open: that of definite matrices does not say that a matrix that is not symmetric is none.
MEANINGS = {"PSD": " (symmetric, no negative eigenvalue)", "NSD": " (symmetric, no positive eigenvalue)"}
# No rounding is allowed for: a logarithm may be taken.
STRICT = {"pos", "neg"}
# Of square matrices, and of definite ones with their sign.
OF_MATRICES = ("symmetric", "diag", "PSD", "NSD")
DEFINITE = {"PSD": 1.0, "NSD": -1.0}
