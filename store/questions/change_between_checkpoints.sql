-- What changed from checkpoint a to checkpoint b, cluster by cluster? Over the samples that both scored, token-weighted,
-- with a 95 % confidence interval of the paired change in M over samples; negative is better understood as speech.
CREATE OR REPLACE MACRO change_between_checkpoints(run_a, step_a, run_b, step_b) AS TABLE
WITH both_scored AS (
    SELECT a.sample_id, least(a.n_positions, b.n_positions) AS n, least(a.n_positions_f, b.n_positions_f) AS n_f,
        a.m AS m_a, b.m AS m_b, a.f AS f_a, b.f AS f_b, a.d AS d_a, b.d AS d_b
    FROM raw.scored a JOIN raw.scored b
        ON a.sample_id = b.sample_id AND a.pattern = b.pattern AND a.synthesis_id IS NOT DISTINCT FROM b.synthesis_id
    WHERE a.run_id = run_a AND a.step = step_a AND b.run_id = run_b AND b.step = step_b
), texts AS (
    SELECT sample_id, sum(n) AS n, sum(n_f) AS n_f, token_mean(m_a, n) AS m_a, token_mean(m_b, n) AS m_b,
        token_mean(m_b - m_a, n) AS m_change, token_mean(f_b - f_a, n_f) AS f_change, token_mean(d_b - d_a, n) AS d_change
    FROM both_scored GROUP BY sample_id
), means AS (
    SELECT w.cluster_id, count(*) AS n_samples, token_mean(m_a, n) AS m_a, token_mean(m_b, n) AS m_b,
        token_mean(m_change, n) AS m_change, token_mean_half_95(m_change, n) AS half,
        token_mean(f_change, n_f) AS f_change, token_mean(d_change, n) AS d_change
    FROM texts t LEFT JOIN current_assignments w ON w.sample_id = t.sample_id GROUP BY w.cluster_id
)
SELECT g.cluster_id, c.terms, n_samples, m_a, m_b, m_change, m_change - half AS m_change_low,
    m_change + half AS m_change_high, f_change, d_change
FROM means g LEFT JOIN current_clusters c ON c.cluster_id = g.cluster_id
ORDER BY m_change NULLS LAST, g.cluster_id;
