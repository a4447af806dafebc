"""What came out: `summary` is `salad report`, `findings` is `salad findings` and `salad sweep`, `figures` and `measures` are
also what notebooks/results.py shows, `tables` writes any of it as Markdown, LaTeX and CSV."""

from workbench.reports.figures import Figure, figures, paired, published_gaps, scaling, shown, votes
from workbench.reports.measures import BENCHMARKS, accuracies, beside_published, checkpoints, measured, published_means
from workbench.reports.summary import EXPLAIN, Report, explain, report
from workbench.reports.tables import HEADS, latex, markdown_table

__all__ = [
    "BENCHMARKS", "EXPLAIN", "Figure", "HEADS", "Report", "accuracies", "beside_published", "checkpoints", "explain", "figures",
    "latex", "markdown_table", "measured", "paired", "published_gaps", "published_means", "report", "scaling", "shown",
    "votes",
]  # fmt: skip
