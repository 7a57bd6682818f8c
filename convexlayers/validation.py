"""Checks of parameter values against what the problem assumes of them.

Values that are not finite are not checked here: they become the status of their element. A value of the wrong sign,
symmetry or definiteness would be solved as another problem than the user wrote, so it is an error.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from convexlayers.errors import ArgumentError
from convexlayers.native import _core
from convexlayers.program import ParameterInfo

# Attributes that one factorization answers for, symmetry included, with the sign of the matrix; up to this order.
DEFINITE = {"PSD": 1.0, "NSD": -1.0}
LARGEST_IN_LANES = 300
SMALLEST_ALONE = 50
# How far from its set a value may be, relative to its largest entry: what rounding in the user's dtype can do.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


def validate(parameters: Sequence[ParameterInfo], rows: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
    """Check every parameter.

    Args:
        parameters: with their attributes.
        rows: values of shape (B or 1, *shape), or their entries on a pattern, (B or 1, entries), float64, detached.
        dtypes: in which the user computed them.

    Raises:
        ArgumentError: names the parameter, the attribute, the batch index and the value that is off.
    """
    for info, value, dtype in zip(parameters, rows, dtypes, strict=True):
        known = _info_of_entries(info) if value.shape[1:] != info.shape else info
        _validate_one(known, value, ROUNDING.get(dtype, 1e-2))


def _info_of_entries(info: ParameterInfo) -> ParameterInfo:
    """What holds of the entries on a parameter's pattern: its signs and bounds."""
    pattern, bounds = np.asarray(info.sparsity), None
    if info.bounds is not None:
        lower, upper = (np.broadcast_to(bound, info.shape).reshape(-1)[pattern] for bound in info.bounds)
        bounds = (lower, upper)
    return ParameterInfo(info.key, info.name, (len(pattern),), info.attributes, bounds)


def _validate_one(info: ParameterInfo, value: Tensor, slack: float) -> None:
    if value.numel() == 0 or _is_plain(info, value, slack):
        return
    finite = value.isfinite().reshape(len(value), -1).all(1)
    # Elements that are not finite are reported by their status. Here they are exempt, and zero, which trips no check.
    value = torch.where(finite.reshape(-1, *([1] * len(info.shape))), value, torch.zeros_like(value))
    allowed = slack * _largest(value.abs())
    for attribute in info.attributes:
        excess = CHECKS[attribute](value)
        _refuse(info, attribute, excess, torch.zeros_like(allowed) if attribute in STRICT else allowed, finite)
    if info.bounds is not None:
        lower, upper = (torch.as_tensor(bound, device=value.device) for bound in info.bounds)
        _refuse(info, "within its bounds", _largest(torch.maximum(lower - value, value - upper)), allowed, finite)
    if info.sparsity is not None:
        outside = torch.ones(info.size, dtype=torch.bool, device=value.device)
        outside[torch.as_tensor(info.sparsity, device=value.device)] = False
        off = value.reshape(len(value), -1)[:, outside]
        excess = off.abs().amax(1) if off.shape[1] else torch.zeros_like(allowed)
        _refuse(info, "zero outside its sparsity pattern", excess, torch.zeros_like(allowed), finite)


def _is_plain(info: ParameterInfo, value: Tensor, slack: float) -> bool:
    """Whether one cheap pass over the values leaves no doubt. Whatever needs an allowance or is not finite does.

    Nearly all values end here: the checks proper, which find out by how much an element is off, cost several passes.
    """
    if info.bounds is not None and not _is_within(value, *info.bounds):
        return False
    if info.sparsity is not None and _count_outside(value.reshape(len(value), -1), info.sparsity) > 0:
        return False
    attributes = info.attributes
    definite = [DEFINITE[name] for name in attributes if name in DEFINITE]
    if definite:
        if len(definite) > 1 or not _is_plainly_definite(value, definite[0], slack):
            return False
        attributes = tuple(name for name in attributes if name not in DEFINITE and name != "symmetric")
    return all(PLAIN[name](value) for name in attributes)


def _is_within(value: Tensor, lower: np.ndarray, upper: np.ndarray) -> bool:
    """Whether every entry is between its bounds; by the smallest and largest entry, where that is enough."""
    least, most = (float(part) for part in value.aminmax())
    if least >= np.max(lower, initial=-np.inf) and most <= np.min(upper, initial=np.inf):
        return True
    low, high = (torch.as_tensor(bound, device=value.device) for bound in (lower, upper))
    return bool((value >= low).all()) and bool((value <= high).all())


def _count_outside(rows: Tensor, sparsity: np.ndarray) -> int:
    """How many entries outside the pattern are not zero."""
    inside = rows.index_select(1, torch.as_tensor(sparsity, device=rows.device))
    return int(rows.count_nonzero()) - int(inside.count_nonzero())


def _is_plainly_definite(value: Tensor, sign: float, slack: float) -> bool:
    """Whether one factorization in lanes leaves no doubt about symmetry and definiteness."""
    order = value.shape[-1]
    if order > LARGEST_IN_LANES or not value.is_cpu:
        return False
    # The kernel fills its lanes with a batch; one large matrix is done sooner without, if it is clearly definite.
    if len(value) == 1 and order >= SMALLEST_ALONE and torch.equal(value, value.mT):
        return int(torch.linalg.cholesky_ex(sign * value).info) == 0 or _is_definite_in_lanes(value, sign, slack)
    return _is_definite_in_lanes(value, sign, slack)


def _is_definite_in_lanes(value: Tensor, sign: float, slack: float) -> bool:
    """The same by the kernel, which allows for rounding."""
    value, suspect, order = value.contiguous(), torch.empty(len(value), dtype=torch.bool), value.shape[-1]
    _core.find_indefinite(value.data_ptr(), len(value), order, sign, slack, suspect.data_ptr(), torch.get_num_threads())
    return not bool(suspect.any())


def _refuse(info: ParameterInfo, attribute: str, excess: Tensor, allowed: Tensor, finite: Tensor) -> None:
    bad = (excess > allowed) & finite
    if not bool(bad.any()):
        return
    index = int(bad.nonzero()[0])
    where = f" (batch index {index})" if len(bad) > 1 else ""
    raise ArgumentError(
        f"{info.name} must be {attribute}, but its value{where} is not: it is off by {float(excess[index]):.3g}. "
        "Pass a value that is, or switch the check off with validate=False."
    )


def _asymmetry(value: Tensor) -> Tensor:
    return _largest((value - value.transpose(-1, -2)).abs())


def _negative_eigenvalue(value: Tensor) -> Tensor:
    """How far the smallest eigenvalue is below zero; a Cholesky factorization first, cheaper and mostly enough."""
    symmetric = 0.5 * (value + value.transpose(-1, -2))
    scale = symmetric.abs().amax((-1, -2), keepdim=True)
    shift = 1e-12 * torch.where(scale > 0, scale, torch.ones_like(scale))
    _, info = torch.linalg.cholesky_ex(symmetric + shift * torch.eye(value.shape[-1], dtype=value.dtype).to(value))
    if not bool((info != 0).any()):
        return torch.zeros(len(value), dtype=value.dtype, device=value.device)
    return _largest(-torch.linalg.eigvalsh(symmetric)[..., 0])


def _largest(value: Tensor) -> Tensor:
    """The largest entry of each element, (B,)."""
    return value.reshape(len(value), -1).amax(1)


def _off_diagonal(value: Tensor) -> Tensor:
    return _largest((value - torch.diag_embed(value.diagonal(dim1=-2, dim2=-1))).abs())


def _is_plainly_diagonal(value: Tensor) -> bool:
    """Whether all is zero between the diagonal's entries, which are n + 1 apart."""
    n = value.shape[-1]
    if n < 2:
        return True
    off = value.reshape(len(value), -1)[:, 1:].unflatten(1, (n - 1, n + 1))[:, :, :-1]
    return float(off.amin()) == 0 == float(off.amax())


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
# What leaves no doubt, by one pass over the whole batch; a comparison with NaN is false.
PLAIN: dict[str, Callable[[Tensor], bool]] = {
    "nonneg": lambda value: float(value.amin()) >= 0,
    "nonpos": lambda value: float(value.amax()) <= 0,
    "pos": lambda value: float(value.amin()) > 0,
    "neg": lambda value: float(value.amax()) < 0,
    "symmetric": lambda value: torch.equal(value, value.transpose(-1, -2)),
    "diag": _is_plainly_diagonal,
}
# No rounding is allowed for: a logarithm may be taken.
STRICT = {"pos", "neg"}
