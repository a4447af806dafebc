"""Active selection: balanced clusters, the target distribution over them, the draw, and its review in a lab."""

from typing import TYPE_CHECKING

from .draw import STRATEGIES, Clusters, Draw, Pool, Texts, draw, strategy
from .lab import (
    Drawn,
    freeze,
    frozen,
    is_frozen,
    refill,
    select,
    select_with_notes,
    to_synthesise,
)
from .probe import cluster_divergence, cluster_rankings, pool
from .schedule import Round, rounds
from .target import (
    cluster_means,
    effective_size,
    entropy,
    kl,
    probe_size,
    regress_out,
    shrink,
    target_distribution,
    target_interval,
    text_and_voice,
)

__all__ = [
    "STRATEGIES", "BalancedKMeans", "Clusters", "Draw", "Drawn", "Pool", "Round", "Texts", "cluster_divergence",
    "cluster_means", "cluster_rankings", "draw", "effective_size", "entropy", "freeze", "frozen", "is_frozen", "kl",
    "pool", "probe_size", "refill", "regress_out", "rounds", "select", "select_with_notes", "shrink", "strategy",
    "target_distribution", "target_interval", "terms", "text_and_voice", "to_synthesise",
]  # fmt: skip

if TYPE_CHECKING:
    from .clusters import BalancedKMeans, terms


def __getattr__(name: str):  # scikit-learn takes a second to import, and a notebook that looks at a selection needs none of it
    if name in ("BalancedKMeans", "terms"):
        from . import clusters

        return getattr(clusters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
