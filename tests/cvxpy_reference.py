"""What the compiler's tests compare with: CVXPY's own solution, and differences of solutions to machine precision.

An interior-point method that stops at a gap of 1e-11 may leave an error of its square root in x: where a cone is
curved the objective is flat. Differences need better, so their solutions are polished by Newton's method on the
optimality conditions; that they are those of the right program is what the comparison with CVXPY says.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

import convexlayers as cl
from convexlayers.program import ConeProgram, ParameterInfo

# What Clarabel leaves, behind CVXPY.
VALUE_TOLERANCE = 1e-6
# What the layer may leave at its default tolerance: the gradient at a point is off by about as much as the point.
POLISHED_TOLERANCE = 1e-8
# Relative to the largest entry of the gradient. The differences are of fourth order, so they truncate at STEP^4 = 1e-16
# times the fifth derivative over 30, and solutions accurate to 1e-14 divided by STEP leave 1e-10.
GRADIENT_TOLERANCE = 1e-8
STEP = 1e-4
NEWTON_STEPS = 8
ROUNDING = 1e-14
RESIDUAL = 1e-12
# A gradient below this would say that the case tests nothing.
SMALLEST_GRADIENT = 1e-2
# Random combinations of a parameter's entries along which its gradient is checked; any error shows in any of them.
DIRECTIONS = 4

# Clarabel as accurate as it gets: shorter steps and less regularization than its own keep it from stalling at 1e-6.
ACCURATE = {
    "tol_gap_abs": 1e-12,
    "tol_gap_rel": 1e-12,
    "tol_feas": 1e-12,
    "max_step_fraction": 0.9,
    "static_regularization_constant": 1e-13,
    "iterative_refinement_max_iter": 50,
    "iterative_refinement_reltol": 1e-15,
    "iterative_refinement_abstol": 1e-15,
}


@dataclass(frozen=True)
class Case:
    """A problem and values of its parameters.

    Attributes:
        problem: a fresh one.
        values: of all its parameters, in the order in which they are passed to layers.
        duals: whether the dual variables of its constraints are compared and differentiated too.
        gp: whether it is a geometric program.
    """

    problem: cp.Problem
    values: Mapping[cp.Parameter, Any] = field(default_factory=dict)
    duals: bool = True
    gp: bool = False

    @property
    def outputs(self) -> list[cp.Variable]:
        """All variables, then, if wanted, the dual variables of all constraints."""
        duals = [dual for constraint in self.problem.constraints for dual in constraint.dual_variables]
        return [*self.problem.variables(), *(duals if self.duals else [])]

    def layer(self, **options) -> cl.ConvexLayer:
        """The layer that returns `outputs`."""
        return cl.ConvexLayer(self.problem, list(self.values), self.outputs, gp=self.gp, **options)

    def tensors(self) -> list[Tensor]:
        """The values, as float64 tensors that require gradients."""
        return [
            torch.tensor(np.array(value), dtype=torch.float64, requires_grad=True) for value in self.values.values()
        ]


def deprecated(atom: Callable[..., Any], *args: Any) -> Any:
    """An atom or constraint that CVXPY has deprecated, without the warning: problems that hold it are supported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return atom(*args)


def solve_by_cvxpy(case: Case) -> tuple[float, list[np.ndarray]]:
    """Objective and values of the outputs, by CVXPY's own chain and Clarabel."""
    for parameter, value in case.values.items():
        set_value(parameter, value)
    with warnings.catch_warnings():
        # Where nothing more is to be gained Clarabel stops before its tolerance: that is as good as it gets.
        warnings.simplefilter("ignore")
        case.problem.solve(solver=cp.CLARABEL, gp=case.gp, warm_start=False, accept_unknown=True, **ACCURATE)
    # The optimal value as the solver saw it: problem.value evaluates the atoms, and some of them do that wrong.
    return float(case.problem.solution.opt_val), [read_value(output) for output in case.outputs]


def set_value(parameter: cp.Parameter, value: Any) -> None:
    """Give a parameter a value, also one with a sparsity pattern."""
    if parameter.sparse_idx is None:
        parameter.value = value
    else:
        entries = np.asarray(value)[parameter.sparse_idx]
        parameter.value_sparse = sp.coo_array((entries, parameter.sparse_idx), shape=parameter.shape)


def read_value(variable: cp.Variable) -> np.ndarray:
    """The value of a variable as a full array."""
    value = variable.value if variable.sparse_idx is None else variable.value_sparse
    value = np.asarray(value.toarray() if sp.issparse(value) else value, dtype=float)
    # CVXPY returns some duals of one second-order cone with a last dimension of one.
    return value[..., 0] if value.shape == (*variable.shape, 1) else value


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of entries, relative to the largest expected one or to 1."""
    if expected.size == 0:
        return 0.0
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def check_values(case: Case, tolerance: float = VALUE_TOLERANCE, **options) -> cl.ConvexLayer:
    """The layer's objective, variables and duals equal those of `problem.solve`, and polishing does not move them.

    Returns the layer.
    """
    layer = case.layer(**options)
    solution = layer.solve(*[value.detach() for value in case.tensors()])
    objective, expected = solve_by_cvxpy(case)
    assert relative_error(solution.objective.numpy(), np.asarray(objective)) < tolerance
    cone = solution.cone_solution
    x, z = polish(cone.program, cone.x, cone.s, cone.z)
    for variable, info, tensor, wanted in zip(
        case.outputs, layer.program.outputs, solution.values, expected, strict=True
    ):
        found = tensor.numpy()
        assert found.shape == variable.shape
        error = relative_error(found, wanted)
        assert error < tolerance, f"{info.name} differs by {error:.1e}:\n{found}\n{wanted}"
        error = relative_error(found, info.recover(x, z)[0].numpy())
        # Without parameters the outputs are of torch's default dtype.
        assert error < POLISHED_TOLERANCE + torch.finfo(tensor.dtype).eps, f"{info.name} moves by {error:.1e}"
    return layer


def check_gradients(case: Case, layer: cl.ConvexLayer, *, seed: int = 0, tolerance: float = GRADIENT_TOLERANCE) -> None:
    """Gradients of a random linear functional of objective and outputs equal finite differences along random directions
    that the parameters' attributes allow, relative to the largest of them.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(info.shape, generator=generator, dtype=torch.float64) for info in layer.program.outputs]
    along = [some_directions(info, generator) for info in layer.program.parameters]
    values = case.tensors()
    solution = layer.solve(*values)
    gradients = torch.autograd.grad(functional(weights, solution.objective, solution.values).squeeze(), values)
    for gradient, info in zip(gradients, layer.program.parameters, strict=True):
        assert not is_symmetric(info) or torch.equal(gradient, gradient.mT)
    found = torch.cat([(g * d).reshape(len(d), -1).sum(1) for g, d in zip(gradients, along, strict=True)])
    expected = differences(layer, weights, [value.detach() for value in values], along)
    scale = float(expected.abs().max())
    assert scale > SMALLEST_GRADIENT
    error = float((found - expected).abs().max()) / scale
    assert error < tolerance, f"gradient off by {error:.1e}:\n{found}\n{expected}"


def functional(weights: list[Tensor], objective: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
    """A linear functional of objective and outputs, one number per element."""
    total = 0.7 * objective
    for weight, value in zip(weights, outputs, strict=True):
        batch = value.shape[: value.ndim - weight.ndim]
        total = total + (weight * value).reshape(*batch, weight.numel()).sum(-1)
    return total


def differences(layer: cl.ConvexLayer, weights: list[Tensor], base: list[Tensor], along: list[Tensor]) -> Tensor:
    """Central differences of fourth order of the functional, along the directions in each of the parameters."""
    shifts = STEP * torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    total = sum(len(d) for d in along)
    # One batched call for the four points of all directions in all parameters.
    batch = [value.repeat(len(shifts), total, *[1] * value.ndim) for value in base]
    row = 0
    for value, d in zip(batch, along, strict=True):
        value[:, row : row + len(d)] += shifts.reshape(-1, *[1] * d.ndim) * d
        row += len(d)
    with torch.no_grad():
        cone = layer.solve(*batch).cone_solution
        x, z = polish(cone.program, cone.x, cone.s, cone.z)
        objective = layer.program.user_objective(cone.program.objective(x))
        outputs = tuple(info.recover(x, z) for info in layer.program.outputs)
        near_up, near_down, far_up, far_down = functional(weights, objective, outputs).split(total)
    return (8 * (near_up - near_down) - (far_up - far_down)) / (12 * STEP)


def polish(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method on Px + A'z + q = 0, Ax + s = b with s = Proj_K(v), z = s - v, in the unknowns x and v.

    A step is kept where it lowers the residual.
    """
    cones, point = program.structure.cones, torch.cat([x, s - z], 1)
    n = program.structure.n

    def residual(point: Tensor) -> Tensor:
        x, v = point[:, :n], point[:, n:]
        s = cones.project(v)
        return torch.cat(
            [program.P_times(x) + program.At_times(s - v) + program.q, program.A_times(x) + s - program.b], 1
        )

    error = residual(point)
    for step_number in range(NEWTON_STEPS):
        if float(error.abs().max()) < ROUNDING:
            break
        # Where a multiplier inside CVXPY's reformulation is undetermined elimination fails, and least squares do not.
        new_point = point + newton_step(program, point[:, n:], error, minimum_norm=step_number > 2)
        new_error = residual(new_point)
        better = (new_error.abs().amax(1) < error.abs().amax(1)).unsqueeze(1)
        point, error = torch.where(better, new_point, point), torch.where(better, new_error, error)
    assert float(error.abs().max()) < RESIDUAL
    return point[:, :n], cones.project(point[:, n:]) - point[:, n:]


def newton_step(program: ConeProgram, v: Tensor, error: Tensor, minimum_norm: bool) -> Tensor:
    """By elimination, or by least squares where the Jacobian is singular."""
    P, A, spectrum = program.dense_P(), program.dense_A(), program.structure.cones.spectrum(v)
    eye = torch.eye(program.structure.m, dtype=v.dtype).expand(len(v), -1, -1)
    M = spectrum.basis.unrotate(spectrum.mu.unsqueeze(-1) * spectrum.basis.rotate(eye))
    jacobian = torch.cat([torch.cat([P, A.mT @ (M - eye)], 2), torch.cat([A, M], 2)], 1)
    if minimum_norm:
        return torch.linalg.lstsq(jacobian, -error.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    return torch.linalg.solve_ex(jacobian, -error)[0].nan_to_num(0.0, 0.0, 0.0)


def is_symmetric(info: ParameterInfo) -> bool:
    return bool({"symmetric", "PSD", "NSD"} & set(info.attributes))


def some_directions(info: ParameterInfo, generator: torch.Generator) -> Tensor:
    """The whole basis if it is small, random combinations of it otherwise, (directions, *shape)."""
    basis = directions(info)
    if len(basis) <= DIRECTIONS:
        return basis
    mixture = torch.randn(DIRECTIONS, len(basis), generator=generator, dtype=torch.float64)
    return torch.tensordot(mixture / len(basis) ** 0.5, basis, 1)


def directions(info: ParameterInfo) -> Tensor:
    """A basis of the values that a parameter may take, (directions, *shape)."""
    basis = torch.eye(info.size, dtype=torch.float64).reshape(info.size, *info.shape)
    if is_symmetric(info):
        i, j = torch.triu_indices(info.shape[-1], info.shape[-1])
        upper = torch.arange(info.size).reshape(info.shape)[..., i, j]
        return (basis + basis.mT)[upper.reshape(-1)]
    if "diag" in info.attributes:
        return torch.diag_embed(torch.eye(info.shape[-1], dtype=torch.float64))
    if info.sparsity is not None:
        return basis[torch.as_tensor(info.sparsity)]
    return basis
