-- How accurate is each contender, and how large is its text-speech gap? Length-normalised accuracy with its standard
-- error; gap is the teacher's text accuracy minus this accuracy over the same items.
CREATE OR REPLACE MACRO accuracy_and_gap() AS TABLE
WITH teacher AS (
    SELECT task, item_id, any_value(correct_norm) AS teacher_right FROM evaluations
    WHERE contender = 'teacher' AND modality = 'text' GROUP BY task, item_id
)
SELECT e.contender, e.run_id, e.step, e.task, e.modality, e.voice, count(*) AS n, avg(e.correct_norm::INTEGER) AS accuracy,
    stddev_samp(e.correct_norm::INTEGER) / sqrt(count(*)) AS standard_error,
    avg(t.teacher_right::INTEGER) FILTER (e.correct_norm IS NOT NULL)
        - avg(e.correct_norm::INTEGER) FILTER (t.teacher_right IS NOT NULL) AS gap
FROM evaluations e LEFT JOIN teacher t ON t.task = e.task AND t.item_id = e.item_id
GROUP BY e.contender, e.run_id, e.step, e.task, e.modality, e.voice
ORDER BY e.contender, e.task, e.modality, e.voice, e.run_id, e.step;
