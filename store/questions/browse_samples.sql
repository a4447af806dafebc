-- A page of a checkpoint's samples: of one cluster (null: every cluster), whose text holds `words` (any case), worst first.
-- The text is compared after the join (left(…, 0) is empty and only says so), where few texts are left to read.
CREATE OR REPLACE MACRO browse_samples(of_run, of_step, of_cluster, words, n := 50, skip := 0) AS TABLE
WITH chosen AS MATERIALIZED (  -- or DuckDB aggregates the whole checkpoint before it joins
    SELECT v.sample_id, v.synthesis_id, v.m, v.f, v.d, v.n_positions, v.n_positions_f, a.cluster_id
    FROM raw.scored v LEFT JOIN current_assignments a ON a.sample_id = v.sample_id
    WHERE v.run_id = of_run AND v.step = of_step AND (of_cluster IS NULL OR a.cluster_id = of_cluster)
), scored AS MATERIALIZED (
    SELECT sample_id, synthesis_id, cluster_id, sum(m * n_positions) / nullif(sum(n_positions), 0) AS m,
        sum(f * n_positions_f) / nullif(sum(n_positions_f), 0) AS f,
        sum(d * n_positions) / nullif(sum(n_positions), 0) AS d
    FROM chosen GROUP BY sample_id, synthesis_id, cluster_id
    HAVING count(*) > 0  -- always so; without it DuckDB expects as many as texts, and hashes all of those
), page AS (
    SELECT p.*, s.domain, s.text FROM scored p JOIN samples s ON s.sample_id = p.sample_id
    WHERE words IS NULL OR contains(lower(s.text || left(p.sample_id, 0)), lower(words))
    ORDER BY p.m DESC NULLS LAST, p.sample_id, p.synthesis_id LIMIT n OFFSET skip
)
SELECT p.sample_id, p.cluster_id, p.domain, p.m, p.f, p.d, p.text, y.voice, y.cer, y.audio_path, p.synthesis_id
FROM page p LEFT JOIN syntheses y ON y.synthesis_id = p.synthesis_id
ORDER BY p.m DESC NULLS LAST, p.sample_id, p.synthesis_id;
