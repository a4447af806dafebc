"""Functions of notebooks/selection.py: what a selection contains, in which order people read it, what they decided about
it, and what their drops did to it. Everything is SQL over the store's views; every action is an event."""

from workbench.review.actions import BY_HAND, export_kept, launch_stage2, speak_now
from workbench.review.clusters import (
    MEANINGS,
    adjusted_ranking,
    cells,
    cluster_table,
    effect_by_cluster,
    effect_of_drops,
    effective_texts,
    median_d,
    quadrants,
    target,
    usual_cer,
)
from workbench.review.events import (
    REASONS,
    Review,
    agreement,
    audit,
    fault_interval,
    reviewer_name,
    rule_preview,
    standing_events,
)
from workbench.review.held import of_lab
from workbench.review.selections import selections, stage2_recipe, unready
from workbench.review.texts import QUEUES, card, dicts, queue, read_speech, read_tokens, texts, top_divergence

__all__ = [
    "BY_HAND", "MEANINGS", "QUEUES", "REASONS", "Review", "adjusted_ranking", "agreement", "audit", "card", "cells",
    "cluster_table", "dicts", "effect_by_cluster", "effect_of_drops", "effective_texts", "export_kept", "fault_interval",
    "launch_stage2", "median_d", "of_lab", "quadrants", "queue", "read_speech", "read_tokens", "reviewer_name",
    "rule_preview", "selections", "speak_now", "stage2_recipe", "standing_events", "target", "texts", "top_divergence",
    "unready", "usual_cer",
]  # fmt: skip
