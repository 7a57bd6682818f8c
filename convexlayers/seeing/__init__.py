"""What can be seen of a layer: its report, the pattern that is factored, and whom to cite. Pictures are in `plot`."""

from convexlayers.seeing.citation import Citation, citation
from convexlayers.seeing.elements import BatchReport
from convexlayers.seeing.pattern import FactorPattern, KKTPattern, factor_pattern, kkt_pattern
from convexlayers.seeing.reporting import Report, report

__all__ = [
    "BatchReport",
    "Citation",
    "FactorPattern",
    "KKTPattern",
    "Report",
    "citation",
    "factor_pattern",
    "kkt_pattern",
    "report",
]
