"""The promises in words, by row, and which engines are held to each."""

from dataclasses import dataclass

from trust.engines import ENGINES, Claims

WITHOUT_ENGINE = "any"


@dataclass(frozen=True)
class Row:
    """One promise.

    Attributes:
        promise: in one sentence.
        few: whether it is tested with few solves, so that every engine can take part; otherwise only thorough ones do.
        exact: whether it is about the library's own derivative.
    """

    promise: str
    few: bool = False
    exact: bool = False

    def asks(self, claims: Claims) -> bool:
        """Whether an engine with these claims is held to the promise."""
        return (self.few or claims.thorough) and (claims.exact or not self.exact)


ROWS = {
    1: Row("One infeasible, unbounded, NaN or Inf element leaves the other elements of the batch as they are."),
    2: Row("A failed element raises, or is NaN with zero gradient, as you choose; never a number."),
    3: Row("Status, iterations, residuals, gap and objective are there for every element."),
    4: Row("Infeasible, unbounded and interrupted elements are named as what they are."),
    5: Row("Elements without a feasible point can be replaced by the closest problem that has one, and say so."),
    6: Row("Gradients are right at condition 1e8.", exact=True),
    7: Row("Gradients are linear in the upstream gradient, from 1e-300 to 1e300.", exact=True),
    8: Row("The units of data, rows and objective do not matter."),
    9: Row(
        "Every cone, every pair of cones and all together; duals with CVXPY's sign and shape; closed forms.", few=True
    ),
    10: Row("A parameter that the batch shares gets the sum of the gradients."),
    11: Row("A parameter matrix in the quadratic has symmetric gradients, and wrong values are refused by name."),
    12: Row("Where the derivative is not unique it is finite, repeatable and reported.", exact=True),
    13: Row("Second derivatives are right, or a clear error; never a silent zero.", few=True),
    14: Row("Constraints and attributes of variables hold, and the user's CVXPY objects are never written."),
    15: Row("Results are those of a fresh problem.solve().", few=True),
    16: Row("Attributes of parameters are accepted and checked, and their order is yours."),
    17: Row("What CVXPY hands over and is not known here is an error.", few=True),
    18: Row("Messages name the offending sub-expression or parameter, and the remedy."),
    19: Row("Compile time and memory are linear in the entries of the data."),
    20: Row("Any leading dimensions, arrays, numbers, keywords and dictionaries are taken."),
    21: Row("The dtype and device that come in go out."),
    22: Row("A layer is a torch module: it can be copied, saved, hooked, averaged, distributed, shared by threads."),
    23: Row("A layer goes through torch.func's transforms, forward mode, torch.compile and torch.export."),
    24: Row("Thousands of steps leave memory and the number of threads as they were."),
    25: Row("The same inputs give the same results, on any number of threads and beside any neighbours."),
}


def engines_of(row: int) -> list[str]:
    """The engines that are held to a row; to one that is not known yet, the thorough ones."""
    promise = ROWS.get(row, Row(""))
    return [name for name, claims in ENGINES.items() if promise.asks(claims)]
