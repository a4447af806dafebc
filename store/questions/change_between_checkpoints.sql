-- What changed from checkpoint a to checkpoint b, cluster by cluster? Over the samples that both scored, token-weighted,
-- with a 95 % confidence interval of the paired change in M; negative is better understood as speech.
CREATE OR REPLACE MACRO change_between_checkpoints(run_a, step_a, run_b, step_b) AS TABLE
WITH both_scored AS (
    SELECT a.sample_id, least(a.n_positions, b.n_positions) AS n, least(a.n_positions_f, b.n_positions_f) AS n_f,
        a.m AS m_a, b.m AS m_b, a.f AS f_a, b.f AS f_b, a.d AS d_a, b.d AS d_b
    FROM raw.divergences a JOIN raw.divergences b
        ON a.sample_id = b.sample_id AND a.pattern = b.pattern AND a.synthesis_id IS NOT DISTINCT FROM b.synthesis_id
    WHERE a.run_id = run_a AND a.step = step_a AND b.run_id = run_b AND b.step = step_b
), texts AS (
    SELECT sample_id, sum(n) AS n, sum((m_b - m_a) * n) / nullif(sum(n), 0) AS m_change
    FROM both_scored GROUP BY sample_id
), means AS (
    SELECT w.cluster_id, count(DISTINCT b.sample_id) AS n_samples,
        sum(m_a * n) / nullif(sum(n) FILTER (m_a IS NOT NULL), 0) AS m_a,
        sum(m_b * n) / nullif(sum(n) FILTER (m_b IS NOT NULL), 0) AS m_b,
        sum((m_b - m_a) * n) / nullif(sum(n) FILTER (m_a + m_b IS NOT NULL), 0) AS m_change,
        sum((f_b - f_a) * n_f) / nullif(sum(n_f) FILTER (f_a + f_b IS NOT NULL), 0) AS f_change,
        sum((d_b - d_a) * n) / nullif(sum(n) FILTER (d_a + d_b IS NOT NULL), 0) AS d_change
    FROM both_scored b LEFT JOIN current_assignments w ON w.sample_id = b.sample_id GROUP BY w.cluster_id
), spread AS (
    SELECT g.cluster_id, CASE WHEN count(*) > 1 THEN 1.96 * sqrt(count(*) / (count(*) - 1)
        * sum((t.n * (t.m_change - g.m_change)) ** 2)) / nullif(sum(t.n), 0) END AS half
    FROM texts t LEFT JOIN current_assignments w ON w.sample_id = t.sample_id
    JOIN means g ON g.cluster_id IS NOT DISTINCT FROM w.cluster_id
    WHERE t.m_change IS NOT NULL GROUP BY g.cluster_id
)
SELECT g.cluster_id, c.terms, g.n_samples, g.m_a, g.m_b, g.m_change, g.m_change - s.half AS m_change_low,
    g.m_change + s.half AS m_change_high, g.f_change, g.d_change
FROM means g LEFT JOIN spread s ON s.cluster_id IS NOT DISTINCT FROM g.cluster_id
LEFT JOIN current_clusters c ON c.cluster_id = g.cluster_id
ORDER BY g.m_change NULLS LAST, g.cluster_id;
