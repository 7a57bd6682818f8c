"""The papers behind the methods, as entries of a bibliography."""

from dataclasses import dataclass

# As CITATION.cff has them.
OWN_TITLE = "convexlayers: differentiable convex optimization layers for PyTorch"
OWN_AUTHORS = ("The convexlayers developers",)


@dataclass(frozen=True)
class Reference:
    """One entry of a bibliography.

    Attributes:
        key: its name in BibTeX.
        kind: "article", "inproceedings", "misc" or "software".
        authors: in order.
        title: as printed.
        year: of publication, None for what has none.
        where: further BibTeX fields, such as the journal, with their values.
    """

    key: str
    kind: str
    authors: tuple[str, ...]
    title: str
    year: int | None
    where: tuple[tuple[str, str], ...] = ()

    @property
    def bibtex(self) -> str:
        """An entry for a .bib file; inner braces keep capitals, and a group of authors together."""
        authors = [f"{{{name}}}" if name.startswith("The ") else name for name in self.authors]
        fields = [("author", " and ".join(authors)), ("title", f"{{{self.title}}}"), *self.where]
        if self.year is not None:
            fields.append(("year", str(self.year)))
        lines = [f"  {name} = {{{value}}}," for name, value in fields]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])

    def __str__(self) -> str:
        where = dict(self.where)
        place = next((where[name] for name in ("journal", "booktitle", "note") if name in where), "")
        parts = [place, where.get("volume", ""), "" if self.year is None else f"({self.year})"]
        return f"{', '.join(self.authors)}: {self.title}. {' '.join(part for part in parts if part)}."


def _article(key: str, authors: str, title: str, journal: str, volume: str, pages: str, year: int) -> Reference:
    where = (("journal", journal), ("volume", volume), ("pages", pages))
    return Reference(key, "article", tuple(authors.split(", ")), title, year, where)


def _paper(key: str, authors: str, title: str, booktitle: str, year: int) -> Reference:
    return Reference(key, "inproceedings", tuple(authors.split(", ")), title, year, (("booktitle", booktitle),))


NEURIPS = "Advances in Neural Information Processing Systems"
ICML = "International Conference on Machine Learning"

CVXPY = _article(
    "cvxpy", "Steven Diamond, Stephen Boyd",
    "CVXPY: A Python-embedded modeling language for convex optimization",
    "Journal of Machine Learning Research", "17", "1--5", 2016,
)  # fmt: skip
REWRITING = _article(
    "cvxpy_rewriting", "Akshay Agrawal, Robin Verschueren, Steven Diamond, Stephen Boyd",
    "A rewriting system for convex optimization problems",
    "Journal of Control and Decision", "5", "42--60", 2018,
)  # fmt: skip
LAYERS = _paper(
    "cvxpylayers", "Akshay Agrawal, Brandon Amos, Shane Barratt, Stephen Boyd, Steven Diamond, J. Zico Kolter",
    "Differentiable convex optimization layers", NEURIPS, 2019,
)  # fmt: skip
GEOMETRIC = _article(
    "disciplined_geometric", "Akshay Agrawal, Steven Diamond, Stephen Boyd", "Disciplined geometric programming",
    "Optimization Letters", "13", "961--976", 2019,
)  # fmt: skip
CLARABEL = Reference(
    "clarabel", "misc", ("Paul J. Goulart", "Yuwen Chen"),
    "Clarabel: An interior-point solver for conic programs with quadratic objectives", 2024,
    (("eprint", "2405.12762"), ("archiveprefix", "arXiv"), ("note", "arXiv 2405.12762")),
)  # fmt: skip
MEHROTRA = _article(
    "mehrotra", "Sanjay Mehrotra", "On the implementation of a primal-dual interior point method",
    "SIAM Journal on Optimization", "2", "575--601", 1992,
)  # fmt: skip
RUIZ = Reference(
    "ruiz", "misc", ("Daniel Ruiz",), "A scaling algorithm to equilibrate both rows and columns norms in matrices",
    2001, (("note", "Rutherford Appleton Laboratory, RAL-TR-2001-034"),),
)  # fmt: skip
NESTEROV_TODD = _article(
    "nesterov_todd", "Yurii E. Nesterov, Michael J. Todd",
    "Self-scaled barriers and interior-point methods for convex programming",
    "Mathematics of Operations Research", "22", "1--42", 1997,
)  # fmt: skip
TUNCEL = _article(
    "tuncel", "Levent Tunçel",
    "Generalization of primal-dual interior-point methods to convex optimization problems in conic form",
    "Foundations of Computational Mathematics", "1", "229--254", 2001,
)  # fmt: skip
DAHL_ANDERSEN = _article(
    "dahl_andersen", "Joachim Dahl, Erling D. Andersen",
    "A primal-dual interior-point algorithm for nonsymmetric exponential-cone optimization",
    "Mathematical Programming", "194", "341--370", 2022,
)  # fmt: skip
MINIMUM_DEGREE = _article(
    "minimum_degree", "Patrick R. Amestoy, Timothy A. Davis, Iain S. Duff",
    "An approximate minimum degree ordering algorithm",
    "SIAM Journal on Matrix Analysis and Applications", "17", "886--905", 1996,
)  # fmt: skip
SCS = _article(
    "scs", "Brendan O'Donoghue, Eric Chu, Neal Parikh, Stephen Boyd",
    "Conic optimization via operator splitting and homogeneous self-dual embedding",
    "Journal of Optimization Theory and Applications", "169", "1042--1068", 2016,
)  # fmt: skip
SCS_QUADRATIC = _article(
    "scs_quadratic", "Brendan O'Donoghue",
    "Operator splitting for a homogeneous embedding of the linear complementarity problem",
    "SIAM Journal on Optimization", "31", "1999--2023", 2021,
)  # fmt: skip
OPTNET = _paper(
    "optnet", "Brandon Amos, J. Zico Kolter",
    "OptNet: Differentiable optimization as a layer in neural networks", ICML, 2017,
)  # fmt: skip
CONE_DERIVATIVE = _article(
    "cone_derivative", "Akshay Agrawal, Shane Barratt, Stephen Boyd, Enzo Busseti, Walaa M. Moursi",
    "Differentiating through a cone program",
    "Journal of Applied and Numerical Optimization", "1", "107--115", 2019,
)  # fmt: skip
BARRIER_GRADIENT = _paper(
    "barrier_gradient", "Jayanta Mandi, Tias Guns", "Interior point solving for LP-based prediction+optimisation",
    NEURIPS, 2020,
)  # fmt: skip
LPGD = _paper(
    "lpgd", "Anselm Paulus, Georg Martius, Vít Musil",
    "LPGD: A general framework for backpropagation through embedded optimization layers", ICML, 2024,
)  # fmt: skip
