-- How do M and F (and D) develop over a run's checkpoints? Token-weighted; sample-weighted beside as *_per_sample.
CREATE OR REPLACE MACRO divergence_of_checkpoints(of_run) AS TABLE
WITH texts AS (
    SELECT step, sample_id, sum(n_positions) AS n, sum(n_positions_f) AS n_f,
        sum(m * n_positions) / nullif(sum(n_positions), 0) AS m,
        sum(f * n_positions_f) / nullif(sum(n_positions_f), 0) AS f,
        sum(d * n_positions) / nullif(sum(n_positions), 0) AS d
    FROM raw.divergences WHERE run_id = of_run GROUP BY step, sample_id
)
SELECT step, count(*) AS n_samples, sum(n)::BIGINT AS n_positions,
    sum(m * n) / nullif(sum(n) FILTER (m IS NOT NULL), 0) AS m,
    sum(f * n_f) / nullif(sum(n_f) FILTER (f IS NOT NULL), 0) AS f,
    sum(d * n) / nullif(sum(n) FILTER (d IS NOT NULL), 0) AS d,
    avg(m) AS m_per_sample, avg(f) AS f_per_sample, avg(d) AS d_per_sample
FROM texts GROUP BY step ORDER BY step;
