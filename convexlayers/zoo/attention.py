"""Attention whose weights solve an optimization problem.

For scores Z = Q K' * scale, the rows of the weights P maximize <Z, P> plus an entropy over the simplex:

    softmax    Shannon's entropy
    sparsemax  -1/2 |P|^2: the projection of each row
    entmax     Tsallis' entropy of order alpha (`entmax`)

and with "transport" all rows together: P has row sums 1 and column sums n / m, so that no key is attended to by all
(Sander, Ablin, Blondel and Peyre, "Sinkformers", 2022).
"""

import torch
from torch import Tensor

from convexlayers.batching import Value, as_tensor
from convexlayers.errors import ArgumentError
from convexlayers.zoo._batched import expect, unexpanded
from convexlayers.zoo.entmax import entmax, sparsemax
from convexlayers.zoo.transport import transport_plan

KINDS = ("softmax", "sparsemax", "entmax", "transport")


def attention_weights(scores: Tensor, kind: str = "softmax", *, alpha: Value = 1.5, eps: Value = 1.0) -> Tensor:
    """Weights (*batch, n, m) from scores (*batch, n, m).

    Args:
        scores: of n queries and m keys.
        kind: "softmax", "sparsemax", "entmax" or "transport".
        alpha: of entmax. eps: of transport, the temperature.

    Raises:
        ArgumentError: the kind is not known.
    """
    if kind == "softmax":
        return torch.softmax(scores, dim=-1)
    if kind == "sparsemax":
        return sparsemax(scores)
    if kind == "entmax":
        # One alpha for the rows of an element.
        return entmax(scores, alpha.unsqueeze(-1) if isinstance(alpha, Tensor) else alpha)
    if kind == "transport":
        return transport_plan(-scores, 1.0, scores.shape[-2] / scores.shape[-1], eps)
    raise ArgumentError(f"kind is {kind!r}, expected one of {', '.join(map(repr, KINDS))}.")


def attention(
    query: Value, key: Value, value: Value, kind: str = "softmax", *,
    scale: Value | None = None, alpha: Value = 1.5, eps: Value = 1.0,
) -> Tensor:  # fmt: skip
    """Averages of values, with weights from the products of queries and keys.

    Args:
        query: (*batch, n, d). key: (*batch, m, d). value: (*batch, m, k).
        kind, alpha, eps: as in `attention_weights`; alpha and eps are numbers or (*batch).
        scale: of the products, (*batch) or a number, by default 1 / sqrt(d).

    Returns:
        (*batch, n, k), differentiable in everything.

    Raises:
        ArgumentError: a shape is wrong, or the kind is not known.
    """
    query, key, value = unexpanded(("query", query, 2), ("key", key, 2), ("value", value, 2), names=("n", "d"))
    expect("key", key, (key.shape[-2], query.shape[-1]))
    expect("value", value, (key.shape[-2], value.shape[-1]))
    factor = as_tensor("scale", query.shape[-1] ** -0.5 if scale is None else scale).to(query)[..., None, None]
    weights = attention_weights(query @ key.mT * factor, kind, alpha=alpha, eps=eps)
    return weights @ value


class Attention(torch.nn.Module):
    """`attention` as a module, with options fixed.

    Args:
        kind, scale, alpha, eps: as in `attention`.
    """

    def __init__(
        self, kind: str = "softmax", *, scale: float | None = None, alpha: float = 1.5, eps: float = 1.0
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ArgumentError(f"kind is {kind!r}, expected one of {', '.join(map(repr, KINDS))}.")
        self.kind, self.scale, self.alpha, self.eps = kind, scale, alpha, eps

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(*batch, n, d), (*batch, m, d), (*batch, m, k) -> (*batch, n, k)."""
        return attention(query, key, value, self.kind, scale=self.scale, alpha=self.alpha, eps=self.eps)

    def extra_repr(self) -> str:
        """For print(layer)."""
        return f"kind={self.kind!r}"
