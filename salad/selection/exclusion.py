"""Which clusters a bound on the character error rate leaves out, and whether their speech or their writing is to blame.

A cluster of prices, dates and formulas can have a high CER although every voice said it well: what is written one way
is heard another. So the share of digits and symbols stands beside the CER, and the CER of the texts without any."""

import duckdb
import pandas as pd

_PUNCTUATION = """.,;:!?'"()…’‘“”–—-"""

_SQL = """WITH spoken AS (
        SELECT a.cluster_id, y.cer, y.raw_cer, y.duration_s, length(coalesce(s.spoken, s.text)) AS chars,
            length(regexp_replace(s.text, '[^0-9]', '', 'g')) AS digits,
            length(regexp_replace(translate(s.text, $punctuation, ''), '[\\p{L}\\p{N}\\s]', '', 'g')) AS symbols,
            length(regexp_replace(s.text, '\\s', '', 'g')) AS letters
        FROM syntheses y JOIN assignments a ON a.sample_id = y.sample_id AND a.clustering_id = $clustering
        JOIN samples s ON s.sample_id = y.sample_id
        WHERE y.tts <> 'recorded' AND y.duration_s > 0
            AND CASE WHEN $speech IS NOT NULL THEN y.speech = $speech ELSE $run IS NULL OR y.synthesis_id IN
                (SELECT synthesis_id FROM raw.scored WHERE run_id = $run AND step = $step) END)
    SELECT cluster_id, count(*) AS n, avg(cer) AS cer, avg(raw_cer) AS raw_cer,
        count(*) FILTER (digits + symbols = 0) AS n_plain, avg(cer) FILTER (digits + symbols = 0) AS cer_plain,
        sum(digits) / nullif(sum(letters), 0) AS digits, sum(symbols) / nullif(sum(letters), 0) AS symbols,
        sum(duration_s) AS seconds, sum(chars) AS chars
    FROM spoken GROUP BY 1 ORDER BY 1"""


def speech_by_cluster(
    con: duckdb.DuckDBPyConnection, clustering_id: str, speech: str | None = None, checkpoint: tuple[str, int] | None = None
) -> pd.DataFrame:
    """Of each cluster with synthetic speech (of the folder `speech`; else all that was scored under `checkpoint`, run and
    step, and not what is spoken later, or a draw would depend on when it is made; else all): n syntheses, mean `cer`
    and `raw_cer`, `n_plain` and `cer_plain` of the texts without a digit or symbol, `digits` and `symbols` as shares of the
    written characters, `seconds` spoken and `chars` of the spoken form."""
    return con.execute(
        _SQL,
        {
            "clustering": clustering_id,
            "speech": speech,
            "punctuation": _PUNCTUATION,
            "run": (checkpoint or [None])[0],
            "step": (checkpoint or [None])[-1],
        },
    ).df()


def left_out(clusters: pd.DataFrame, max_cer: float) -> pd.DataFrame:
    """The rows of `speech_by_cluster` above the bound (not those whose CER is unknown), with `blame`: "writing" where the
    texts without digits and symbols are within it, "speech" where they are not, "unknown" where there is none."""
    rows = clusters[clusters.cer > max_cer].copy()
    plain = rows.cer_plain
    rows["blame"] = ["unknown" if pd.isna(c) else "speech" if c > max_cer else "writing" for c in plain]
    return rows
