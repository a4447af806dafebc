-- Which texts does a checkpoint understand worst as speech? The n samples of highest misalignment, each the token-weighted
-- mean over its patterns (a text that is spoken twice is two). A mean is at most the highest of its rows: so after a
-- first look, only samples with a row above the n-th best mean found there are averaged, not the whole checkpoint.
CREATE OR REPLACE MACRO worst_samples(of_run, of_step, n := 100) AS TABLE
WITH first_look AS MATERIALIZED (
    SELECT DISTINCT sample_id FROM (
        SELECT sample_id FROM raw.scored WHERE run_id = of_run AND step = of_step AND m IS NOT NULL
        ORDER BY m DESC LIMIT 4 * n
    )
), sure AS MATERIALIZED (
    SELECT CASE WHEN count(*) >= n THEN min(mean) ELSE '-infinity'::DOUBLE END AS m FROM (
        SELECT sum(m * n_positions) / nullif(sum(n_positions), 0) AS mean FROM raw.scored
        WHERE run_id = of_run AND step = of_step AND m IS NOT NULL AND sample_id IN (FROM first_look)
        GROUP BY sample_id, synthesis_id ORDER BY mean DESC NULLS LAST LIMIT n
    )
), worst AS (
    SELECT sample_id, synthesis_id, sum(m * n_positions) / nullif(sum(n_positions), 0) AS m,
        sum(f * n_positions_f) / nullif(sum(n_positions_f) FILTER (f IS NOT NULL), 0) AS f,
        sum(d * n_positions) / nullif(sum(n_positions) FILTER (d IS NOT NULL), 0) AS d,
        sum(n_positions)::BIGINT AS n_positions
    FROM raw.scored
    WHERE run_id = of_run AND step = of_step AND m IS NOT NULL AND sample_id IN (
        SELECT sample_id FROM raw.scored WHERE run_id = of_run AND step = of_step AND m >= (SELECT m FROM sure)
    )
    GROUP BY sample_id, synthesis_id HAVING sum(n_positions) > 0
    ORDER BY 3 DESC, sample_id, synthesis_id LIMIT n
)
SELECT w.sample_id, w.m, w.f, w.d, w.n_positions, s.domain, a.cluster_id, s.text, w.synthesis_id, y.voice, y.cer,
    y.audio_path
FROM worst w
LEFT JOIN samples s ON s.sample_id = w.sample_id
LEFT JOIN current_assignments a ON a.sample_id = w.sample_id
LEFT JOIN syntheses y ON y.synthesis_id = w.synthesis_id
ORDER BY w.m DESC, w.sample_id, w.synthesis_id;
