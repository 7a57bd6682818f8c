"""Pictures of problems, solutions and derivatives. Each function draws on the axes that it is given, or makes some.

    plot.kkt(layer), plot.factor(layer)          the matrix that is factored, and its factor with fill-in
    plot.convergence(layer, *values)             residuals against the number of iterations
    plot.loss(layer, start, stop)                a loss along a line in the parameters
    plot.gradient(layer, start, stop)            its derivative: exact, smoothed and perturbed
    plot.status(solution)                        what became of each element of a batch

They need matplotlib, which is imported when the first one draws. `trace` and `curves` compute what `convergence` and
`gradient` draw, without it.
"""

from convexlayers.plot.convergence import Trace, convergence, trace
from convexlayers.plot.line import Curve, curves, gradient, loss
from convexlayers.plot.matrix import factor, kkt
from convexlayers.plot.outcome import status

__all__ = ["Curve", "Trace", "convergence", "curves", "factor", "gradient", "kkt", "loss", "status", "trace"]
