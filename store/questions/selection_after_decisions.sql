-- What did the decisions do to a selection? Per cluster: texts and hours before and after, effective sample size of its
-- reviewers' weights (sum of weights squared over sum of squared weights; a drop weighs 0, reweight its weight), share
-- intended (P_target; what the draw gave to clusters that have no text here is missing from the sum) and kept; kl_nats,
-- the same in every row, is KL(kept || intended) over clusters, the notebook's. Hours are synthesised, else estimated.
CREATE OR REPLACE MACRO selection_after_decisions(of_selection) AS TABLE
WITH verdicts AS (
    SELECT sample_id, bool_or(verdict = 'drop') AS dropped, arg_max(weight, clock) FILTER (verdict = 'reweight') AS weight
    FROM current_decisions WHERE selection_id = of_selection GROUP BY sample_id
), texts AS (
    SELECT l.cluster_id, l.p_target, s.seconds,
        CASE WHEN v.dropped THEN 0.0 ELSE coalesce(v.weight, 1.0) END AS weight
    FROM selected l LEFT JOIN verdicts v ON v.sample_id = l.sample_id
    LEFT JOIN selected_speech s ON s.selection_id = l.selection_id AND s.sample_id = l.sample_id
    WHERE l.selection_id = of_selection
), per_cluster AS (
    SELECT cluster_id, max(p_target) AS p_target, count(*) AS n_selected, count(*) FILTER (weight > 0) AS n_kept,
        sum(seconds) / 3600 AS hours_selected, sum(seconds) FILTER (weight > 0) / 3600 AS hours_kept,
        sum(weight) AS weight, sum(weight) ** 2 / nullif(sum(weight ** 2), 0) AS effective_samples
    FROM texts GROUP BY cluster_id
), shares AS (
    -- of several rounds the largest share stands for a cluster, and those may sum to more than 1
    SELECT *, p_target / greatest(sum(p_target) OVER (), 1) AS p_intended, weight / nullif(sum(weight) OVER (), 0) AS p_kept
    FROM per_cluster
)
SELECT cluster_id, n_selected, n_kept, hours_selected, coalesce(hours_kept, 0) AS hours_kept,
    coalesce(effective_samples, 0) AS effective_samples, p_intended, p_kept,
    sum(CASE WHEN p_kept > 0 THEN p_kept * ln(p_kept / nullif(p_intended, 0)) ELSE 0 END) OVER () AS kl_nats
FROM shares ORDER BY cluster_id;
