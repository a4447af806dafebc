-- Why is each text in this selection? The selection that drew it (itself, or the one it was frozen, refilled or
-- continued from), by which strategy and from which checkpoint, and what that draw saw in the text's cluster.
CREATE OR REPLACE MACRO why_selected(of_selection) AS TABLE
WITH held AS (  -- ancestors that hold the text without a gap: a round may draw again what the budget had cut off
    SELECT t.sample_id, l.ancestor_id, l.depth, row_number() OVER (PARTITION BY t.sample_id ORDER BY l.depth) - 1 AS place
    FROM lineage l JOIN selected t ON t.selection_id = l.ancestor_id WHERE l.selection_id = of_selection
), first AS (
    SELECT sample_id, max_by(ancestor_id, depth) FILTER (depth = place) AS drawn_in FROM held GROUP BY sample_id
)
SELECT t.draw, t.sample_id, s.text, t.cluster_id, c.terms, f.drawn_in, e.strategy, e.gamma, e.round, e.run_id, e.step,
    t.p_web, t.d_cluster, k.d_adjusted, k.rank, k.rank_adjusted, k.cer, t.p_target, t.estimated_s, e.seed
FROM selected t
JOIN first f ON f.sample_id = t.sample_id
JOIN selections e ON e.selection_id = f.drawn_in
LEFT JOIN selection_clusters k ON k.selection_id = f.drawn_in AND k.cluster_id = t.cluster_id
LEFT JOIN clusters c ON c.clustering_id = e.clustering_id AND c.cluster_id = t.cluster_id
LEFT JOIN samples s ON s.sample_id = t.sample_id
WHERE t.selection_id = of_selection ORDER BY t.draw, t.sample_id;
