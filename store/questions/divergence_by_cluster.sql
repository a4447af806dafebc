-- In which clusters does a checkpoint diverge? Token-weighted means with 95 % confidence intervals over samples
-- (ratio estimator, Student's t); the sample-weighted means stand beside them as *_per_sample.
CREATE OR REPLACE MACRO divergence_by_cluster(of_run, of_step) AS TABLE
WITH texts AS (
    SELECT sample_id, sum(n_positions) AS n, sum(n_positions_f) AS n_f,
        token_mean(m, n_positions) AS m, token_mean(f, n_positions_f) AS f, token_mean(d, n_positions) AS d
    FROM raw.scored WHERE run_id = of_run AND step = of_step GROUP BY sample_id
), means AS (
    SELECT a.cluster_id, count(*) AS n_samples, sum(t.n)::BIGINT AS n_positions,
        token_mean(t.m, t.n) AS m, token_mean_half_95(t.m, t.n) AS m_half,
        token_mean(t.f, t.n_f) AS f, token_mean_half_95(t.f, t.n_f) AS f_half,
        token_mean(t.d, t.n) AS d, token_mean_half_95(t.d, t.n) AS d_half,
        avg(t.m) AS m_per_sample, avg(t.f) AS f_per_sample, avg(t.d) AS d_per_sample
    FROM texts t LEFT JOIN current_assignments a ON a.sample_id = t.sample_id GROUP BY a.cluster_id
)
SELECT g.cluster_id, c.terms, n_samples, n_positions, m, m - m_half AS m_low, m + m_half AS m_high,
    f, f - f_half AS f_low, f + f_half AS f_high, d, d - d_half AS d_low, d + d_half AS d_high,
    m_per_sample, f_per_sample, d_per_sample
FROM means g LEFT JOIN current_clusters c ON c.cluster_id = g.cluster_id
ORDER BY m DESC NULLS LAST, g.cluster_id;
