"""One function per figure, each from rows that DuckDB has aggregated; every one returns an Altair chart."""

from workbench.charts.divergences import (
    compared,
    distribution,
    divergence_by_group,
    divergence_by_kind,
    divergence_by_position,
    tokens,
)
from workbench.charts.results import (
    accuracy,
    beside_published,
    divergence_groups,
    forgetting_and_accuracy,
    misalignment_and_accuracy,
    scaling,
    strategies,
    votes,
)
from workbench.charts.selection import adjusted_ranking, clusters, hours, masses, quadrants
from workbench.charts.training import curves

__all__ = [
    "accuracy", "adjusted_ranking", "beside_published", "clusters", "compared", "curves", "distribution",
    "divergence_by_group", "divergence_by_kind", "divergence_by_position", "divergence_groups",
    "forgetting_and_accuracy", "hours", "masses", "misalignment_and_accuracy", "quadrants", "scaling", "strategies",
    "tokens", "votes",
]  # fmt: skip
