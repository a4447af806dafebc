-- Views over the tables of a lab. `raw.<table>` is a table as published; what users ask for is in `main`.
-- raw.scored and raw.scored_tokens are divergences and token_divergences in one range of spans, that in which all
-- checkpoints of the lab are compared, and of diagnoses (0 to 0): every view but those two tables' own is of them.
-- current_assignments and current_clusters, those of the newest clustering, are written at refresh.

-- Student's t at 0.975 with `df` degrees of freedom (Hill's expansion from 6 on, right to 2e-4 there); null below one.
CREATE OR REPLACE MACRO student_t_95(df) AS CASE
    WHEN df < 1 THEN NULL
    WHEN df < 6 THEN [12.706205, 4.302653, 3.182446, 2.776445, 2.570582][df]
    ELSE 1.959964 + 2.372271 / df + 2.822499 / df ** 2 + 2.555850 / df ** 3 + 1.589534 / df ** 4 END;

-- The token-weighted mean of x, one row a text of n positions; its standard error over texts (a ratio's, linearised:
-- Σ(n(x − mean))² is a variance, because n(x − mean) sums to 0); and half of its 95 % interval. Null x are left out.
CREATE OR REPLACE MACRO token_mean(x, n) AS sum(x * n) / nullif(sum(n) FILTER (x IS NOT NULL), 0);
CREATE OR REPLACE MACRO token_mean_se(x, n) AS CASE WHEN count(x) > 1 THEN
    count(x) / sqrt(count(x) - 1) / nullif(sum(n) FILTER (x IS NOT NULL), 0) * sqrt(greatest(0, var_pop(x * n)
        - 2 * token_mean(x, n) * covar_pop(x * n, n) + token_mean(x, n) ** 2 * var_pop(n) FILTER (x IS NOT NULL))) END;
CREATE OR REPLACE MACRO token_mean_half_95(x, n) AS student_t_95(count(x) - 1) * token_mean_se(x, n);

CREATE OR REPLACE VIEW divergences AS
SELECT d.*, a.clustering_id, a.cluster_id
FROM raw.divergences d LEFT JOIN current_assignments a ON a.sample_id = d.sample_id;

-- Each selection beside itself (depth 0) and the selections that it was frozen or refilled from.
CREATE OR REPLACE VIEW lineage AS
WITH RECURSIVE up AS (
    SELECT selection_id, selection_id AS ancestor_id, 0 AS depth FROM selections
    UNION
    SELECT up.selection_id, s.parent_selection_id, up.depth + 1
    FROM up JOIN selections s ON s.selection_id = up.ancestor_id
    WHERE s.parent_selection_id IS NOT NULL AND up.depth < 100
)
SELECT selection_id, ancestor_id, min(depth) AS depth FROM up GROUP BY ALL;

-- A text of a selection, with what it was drawn from: what decisions are about. Texts that might be drawn are asked about
-- in a table of the same columns (store.rules.dropped).
CREATE OR REPLACE VIEW drawn AS
SELECT l.*, e.clustering_id, e.run_id, e.step
FROM selected l LEFT JOIN selections e ON e.selection_id = l.selection_id;

-- What a rule is asked about: a text of `candidates` (a table like `drawn`) with the worst of its syntheses and its
-- divergences at the checkpoint that steers the draw, means over its positions.
CREATE OR REPLACE MACRO rule_rows_of(candidates) AS TABLE
SELECT l.selection_id, l.sample_id, s.text, s.spoken, s.corpus, s.domain, s.n_tokens, s.licence, s.flags,
    l.cluster_id, c.terms, l.draw, l.p_web, l.p_target, l.d_cluster, l.estimated_s,
    y.tts, y.voice, y.duration_s, y.cer, y.wer, y.speech_flags, v.m, v.f, v.d, v.n_positions
FROM query_table(candidates) l
LEFT JOIN samples s ON s.sample_id = l.sample_id
LEFT JOIN clusters c ON c.clustering_id = l.clustering_id AND c.cluster_id = l.cluster_id
LEFT JOIN (
    SELECT sample_id, min(tts) AS tts, min(voice) AS voice, max(duration_s) AS duration_s, max(cer) AS cer,
        max(wer) AS wer, list_distinct(flatten(list(flags) FILTER (flags IS NOT NULL))) AS speech_flags
    FROM syntheses GROUP BY sample_id
) y ON y.sample_id = l.sample_id
LEFT JOIN (
    SELECT run_id, step, sample_id, sum(m * n_positions) / nullif(sum(n_positions), 0) AS m,
        sum(f * n_positions_f) / nullif(sum(n_positions_f), 0) AS f,
        sum(d * n_positions) / nullif(sum(n_positions), 0) AS d, sum(n_positions) AS n_positions
    FROM raw.scored GROUP BY ALL
) v ON v.run_id = l.run_id AND v.step = l.step AND v.sample_id = l.sample_id;

CREATE OR REPLACE VIEW rule_rows AS FROM rule_rows_of('drawn');

-- Which rule holds for which text, and for which it cannot be told because it fails; written at refresh, one branch
-- per rule.
CREATE OR REPLACE VIEW rule_matches AS
SELECT ''::VARCHAR AS event_id, ''::VARCHAR AS selection_id, ''::VARCHAR AS sample_id WHERE false;
CREATE OR REPLACE VIEW rule_failures AS FROM rule_matches;

-- The verdict that stands on each text of `candidates` (a table like `drawn`), with `matches` like rule_matches: the one
-- rule for what is drawn and for what might be. An event holds for its own selection and for those that come from it; undo takes an
-- event back wherever it was said. A sample's goes before a rule's and a rule's before a cluster's, whatever their
-- times; among equals the latest by clock. A cluster's holds where the text was drawn from the same clustering.
CREATE OR REPLACE MACRO standing_decisions(candidates, matches) AS TABLE
WITH standing AS (
    SELECT * FROM decisions
    WHERE verdict <> 'undo' AND event_id NOT IN (SELECT undoes FROM decisions WHERE verdict = 'undo' AND undoes IS NOT NULL)
), lines AS (
    SELECT selection_id, ancestor_id FROM lineage
    UNION
    SELECT selection_id, selection_id FROM standing WHERE selection_id IS NOT NULL
), said AS (
    SELECT n.selection_id, e.sample_id, 1 AS rank, e.*  EXCLUDE (selection_id, sample_id)
    FROM standing e JOIN lines n ON n.ancestor_id = e.selection_id
    WHERE e.target = 'sample' AND (n.selection_id = e.selection_id OR (n.selection_id, e.sample_id) IN
        (SELECT (selection_id, sample_id) FROM query_table(candidates)))
    UNION ALL BY NAME
    SELECT n.selection_id, r.sample_id, 2 AS rank, e.* EXCLUDE (selection_id, sample_id)
    FROM standing e JOIN lines n ON n.ancestor_id = e.selection_id
    JOIN query_table(matches) r ON r.event_id = e.event_id AND r.selection_id = n.selection_id
    UNION ALL BY NAME
    SELECT n.selection_id, l.sample_id, 3 AS rank, e.* EXCLUDE (selection_id, sample_id)
    FROM standing e JOIN lines n ON n.ancestor_id = e.selection_id
    JOIN query_table(candidates) l ON l.selection_id = n.selection_id AND l.cluster_id = e.cluster_id
    LEFT JOIN selections there ON there.selection_id = e.selection_id
    WHERE e.target = 'cluster' AND l.clustering_id IS NOT DISTINCT FROM there.clustering_id
)
SELECT selection_id, sample_id, reviewer, verdict, weight, reason, note, "at", event_id,
    CASE rank WHEN 1 THEN 'sample' WHEN 2 THEN 'rule' ELSE 'cluster' END AS target, clock
FROM said
QUALIFY row_number() OVER (PARTITION BY selection_id, sample_id, reviewer ORDER BY rank, clock DESC, event_id DESC) = 1;

CREATE OR REPLACE VIEW current_decisions AS FROM standing_decisions('drawn', 'rule_matches');

-- The texts of a selection that no reviewer's standing verdict drops.
CREATE OR REPLACE VIEW kept AS
SELECT l.* FROM selected l
WHERE NOT EXISTS (SELECT 1 FROM current_decisions c WHERE c.selection_id = l.selection_id
    AND c.sample_id = l.sample_id AND c.verdict = 'drop');

-- The speech of each text in a selection: the synthesis that a frozen selection names, else the text's first by seed and
-- id; its seconds, estimated where nothing is spoken.
CREATE OR REPLACE VIEW selected_speech AS
SELECT t.selection_id, t.sample_id, t.cluster_id, coalesce(o.synthesis_id, f.synthesis_id) AS synthesis_id,
    coalesce(o.duration_s, f.duration_s, t.estimated_s) AS seconds
FROM selected t
LEFT JOIN (SELECT synthesis_id, any_value(duration_s) AS duration_s FROM syntheses GROUP BY synthesis_id) o
    ON o.synthesis_id = t.own_synthesis_id
LEFT JOIN (
    SELECT sample_id, arg_min(synthesis_id, (seed, synthesis_id)) AS synthesis_id,
        arg_min(duration_s, (seed, synthesis_id)) AS duration_s
    FROM syntheses WHERE tts <> 'recorded' GROUP BY sample_id
) f ON f.sample_id = t.sample_id;

-- What users ask for by this name: a sample under a checkpoint, means over the positions of both patterns.
-- `decision` is `drop` where any reviewer's standing verdict in any selection drops the text, else the latest verdict.
CREATE OR REPLACE VIEW misalignment AS
SELECT v.sample_id, s.text, s.domain, v.cluster_id, c.terms, v.run_id, v.step, v.m, v.f, v.d, v.n_positions,
    v.n_positions_f, v.speech_s, y.tts, y.voice, y.cer, y.duration_s, y.audio_path, v.synthesis_id, s.corpus, s.flags,
    s.spoken, v.clustering_id, k.decision, v.span_min, v.span_max
FROM (
    SELECT run_id, step, sample_id, synthesis_id, clustering_id, cluster_id, span_min, span_max,
        sum(m * n_positions) / nullif(sum(n_positions), 0) AS m,
        sum(f * n_positions_f) / nullif(sum(n_positions_f), 0) AS f,
        sum(d * n_positions) / nullif(sum(n_positions), 0) AS d,
        sum(n_positions) AS n_positions, sum(n_positions_f) AS n_positions_f, sum(speech_s) AS speech_s
    FROM raw.scored LEFT JOIN current_assignments USING (sample_id) GROUP BY ALL
) v
LEFT JOIN samples s ON s.sample_id = v.sample_id
LEFT JOIN syntheses y ON y.synthesis_id = v.synthesis_id
LEFT JOIN clusters c ON c.clustering_id = v.clustering_id AND c.cluster_id = v.cluster_id
LEFT JOIN (
    SELECT sample_id, CASE WHEN bool_or(verdict = 'drop') THEN 'drop' ELSE arg_max(verdict, clock) END AS decision
    FROM current_decisions GROUP BY sample_id
) k ON k.sample_id = v.sample_id;
