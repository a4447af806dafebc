-- How do M and F (and D) develop over a run's checkpoints? Token-weighted; sample-weighted beside as *_per_sample.
CREATE OR REPLACE MACRO divergence_of_checkpoints(of_run) AS TABLE
WITH texts AS (
    SELECT step, sample_id, sum(n_positions) AS n, sum(n_positions_f) AS n_f,
        token_mean(m, n_positions) AS m, token_mean(f, n_positions_f) AS f, token_mean(d, n_positions) AS d
    FROM raw.scored WHERE run_id = of_run GROUP BY step, sample_id
)
SELECT step, count(*) AS n_samples, sum(n)::BIGINT AS n_positions, token_mean(m, n) AS m, token_mean(f, n_f) AS f,
    token_mean(d, n) AS d, token_mean_half_95(m, n) AS m_half, token_mean_half_95(f, n_f) AS f_half,
    avg(m) AS m_per_sample, avg(f) AS f_per_sample, avg(d) AS d_per_sample
FROM texts GROUP BY step ORDER BY step;
