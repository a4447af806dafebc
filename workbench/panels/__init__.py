"""What the notebooks show beside charts: sentences, figures and tables as marimo elements."""

from workbench.advice import advice
from workbench.panels.divergences import compared_table, divergence_facts
from workbench.panels.elements import (
    answer,
    beside,
    differences,
    figure,
    lab_name,
    main_and_side,
    plain_table,
    row,
    scrolled,
    state,
    stats,
    when_seen,
)
from workbench.panels.selection import (
    ADJUSTED,
    REASONS,
    SUGGESTS,
    agreement,
    audits,
    buttons,
    cluster_filter,
    clusters,
    effect,
    events_table,
    gamma_facts,
    go_on,
    own_gamma,
    picked,
    picked_words,
    quadrant_words,
    review_gate,
    rule_preview,
    text_table,
    unready,
)

__all__ = [
    "ADJUSTED", "REASONS", "SUGGESTS", "advice", "agreement", "answer", "audits", "beside", "buttons",
    "cluster_filter", "clusters", "compared_table",
    "differences", "divergence_facts", "effect", "events_table", "figure", "gamma_facts", "go_on", "lab_name", "main_and_side",
    "own_gamma",
    "picked", "picked_words", "plain_table", "quadrant_words", "review_gate", "row", "rule_preview", "scrolled", "state", "stats",
    "text_table",
    "unready", "when_seen",
]  # fmt: skip
