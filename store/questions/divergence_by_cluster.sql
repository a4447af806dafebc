-- In which clusters does a checkpoint diverge? Token-weighted means with 95 % confidence intervals over samples
-- (ratio estimator, linearised); the sample-weighted means stand beside them as *_per_sample.
CREATE OR REPLACE MACRO divergence_by_cluster(of_run, of_step) AS TABLE
WITH texts AS (
    SELECT sample_id, sum(n_positions) AS n, sum(n_positions_f) AS n_f,
        sum(m * n_positions) / nullif(sum(n_positions), 0) AS m,
        sum(d * n_positions) / nullif(sum(n_positions), 0) AS d,
        sum(f * n_positions_f) / nullif(sum(n_positions_f), 0) AS f
    FROM raw.divergences WHERE run_id = of_run AND step = of_step GROUP BY sample_id
), placed AS (
    SELECT a.cluster_id, t.* FROM texts t LEFT JOIN current_assignments a ON a.sample_id = t.sample_id
), means AS (
    SELECT cluster_id, sum(m * n) / nullif(sum(n) FILTER (m IS NOT NULL), 0) AS m,
        sum(d * n) / nullif(sum(n) FILTER (d IS NOT NULL), 0) AS d,
        sum(f * n_f) / nullif(sum(n_f) FILTER (f IS NOT NULL), 0) AS f
    FROM placed GROUP BY cluster_id
), spread AS (
    SELECT p.cluster_id, count(*) AS n_samples, sum(p.n)::BIGINT AS n_positions,
        avg(p.m) AS m_per_sample, avg(p.f) AS f_per_sample, avg(p.d) AS d_per_sample,
        CASE WHEN count(p.m) > 1 THEN 1.96 * sqrt(count(p.m) / (count(p.m) - 1) * sum((p.n * (p.m - g.m)) ** 2))
            / nullif(sum(p.n) FILTER (p.m IS NOT NULL), 0) END AS m_half,
        CASE WHEN count(p.d) > 1 THEN 1.96 * sqrt(count(p.d) / (count(p.d) - 1) * sum((p.n * (p.d - g.d)) ** 2))
            / nullif(sum(p.n) FILTER (p.d IS NOT NULL), 0) END AS d_half,
        CASE WHEN count(p.f) > 1 THEN 1.96 * sqrt(count(p.f) / (count(p.f) - 1) * sum((p.n_f * (p.f - g.f)) ** 2))
            / nullif(sum(p.n_f) FILTER (p.f IS NOT NULL), 0) END AS f_half
    FROM placed p JOIN means g ON g.cluster_id IS NOT DISTINCT FROM p.cluster_id GROUP BY p.cluster_id
)
SELECT s.cluster_id, c.terms, s.n_samples, s.n_positions, g.m, g.m - m_half AS m_low, g.m + m_half AS m_high,
    g.f, g.f - f_half AS f_low, g.f + f_half AS f_high, g.d, g.d - d_half AS d_low, g.d + d_half AS d_high,
    m_per_sample, f_per_sample, d_per_sample
FROM spread s
JOIN means g ON g.cluster_id IS NOT DISTINCT FROM s.cluster_id
LEFT JOIN current_clusters c ON c.cluster_id = s.cluster_id
ORDER BY g.m DESC NULLS LAST, s.cluster_id;
