-- How do two runs differ? Configuration key by key, code, data, and results (last logged metrics, accuracies, M and F).
-- Only what differs is listed.
CREATE OR REPLACE MACRO run_differences(run_a, run_b) AS TABLE
WITH facts AS (
    SELECT run_id, 'configuration' AS what, t.fullkey AS key, CAST(t.atom AS VARCHAR) AS value
    FROM runs, json_tree(runs.config) t WHERE run_id IN (run_a, run_b) AND t.atom IS NOT NULL
    UNION ALL
    SELECT run_id, 'code', 'git_commit', git_commit FROM runs WHERE run_id IN (run_a, run_b)
    UNION ALL
    SELECT run_id, 'data', unnest(['parent_run_id', 'selection_id', 'recipe', 'kind', 'device', 'tokens']),
        unnest([parent_run_id, selection_id, recipe, kind, device, CAST(tokens AS VARCHAR)])
    FROM runs WHERE run_id IN (run_a, run_b)
    UNION ALL
    SELECT run_id, 'data', 'texts selected', CAST(count(*) AS VARCHAR)
    FROM runs JOIN selected USING (selection_id) WHERE run_id IN (run_a, run_b) GROUP BY run_id
    UNION ALL
    SELECT run_id, 'results', 'last ' || name, CAST(round(arg_max(value, step), 6) AS VARCHAR)
    FROM metrics WHERE run_id IN (run_a, run_b) GROUP BY run_id, name
    UNION ALL
    SELECT run_id, 'results', concat_ws(' ', 'accuracy', task, modality, voice, 'step', step),
        CAST(round(avg(correct_norm::INTEGER), 4) AS VARCHAR)
    FROM evaluations WHERE run_id IN (run_a, run_b) GROUP BY run_id, task, modality, voice, step
    UNION ALL
    SELECT run_id, 'results', unnest(['m step ' || step, 'f step ' || step]), unnest([
        CAST(round(sum(m * n_positions) / nullif(sum(n_positions) FILTER (m IS NOT NULL), 0), 6) AS VARCHAR),
        CAST(round(sum(f * n_positions_f) / nullif(sum(n_positions_f) FILTER (f IS NOT NULL), 0), 6) AS VARCHAR)])
    FROM raw.scored WHERE run_id IN (run_a, run_b) GROUP BY run_id, step
)
SELECT what, key, max(value) FILTER (run_id = run_a) AS value_a, max(value) FILTER (run_id = run_b) AS value_b
FROM facts GROUP BY what, key HAVING value_a IS DISTINCT FROM value_b
ORDER BY array_position(['configuration', 'code', 'data', 'results'], what), key;
