"""Writes what the documentation generates from the store: the data dictionary, and ten questions with their answers.

python -m store.docs                 # docs/reference/data-dictionary.md, from store/schema.py
python -m store.docs --lab lab       # that, and the questions in docs/store.md with what this lab answers"""

import argparse
import re
from pathlib import Path

from . import atomic, connection, schema
from .errors import StoreError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "store.md"
DICTIONARY = PAGE.parent / "reference" / "data-dictionary.md"
HEAD = """# Data dictionary

Every table that `store.connect(lab)` and `lab/store.duckdb` hold; [The store](../store.md) explains how they are written.
Columns in bold are never null. `divergences` also has `clustering_id` and `cluster_id` of the newest clustering (whose pass
ended last by `runs.ended_at`, then by id); `raw.divergences` is the bare table, and faster where you need no cluster.
Written by `python -m store.docs` from `store/schema.py`; do not edit it by hand.

"""

# What is asked, in words and in SQL; {run}, {step}, {other_run}, {other_step}, {selection} are the lab's own.
ASKED = (
    (
        "Where does the first stage misunderstand speech? By domain, token-weighted, ± half of a 95 % interval.",
        "SELECT domain, round(token_mean(m, n_positions), 3) AS m, round(token_mean_half_95(m, n_positions), 3) AS half,\n"
        "       round(token_mean(f, n_positions_f), 3) AS f, count(*) AS samples\n"
        "FROM misalignment WHERE run_id = '{run}' AND step = {step} GROUP BY domain ORDER BY m DESC",
    ),
    (
        "In which clusters, with 95 % confidence intervals?",
        "SELECT cluster_id, terms[1:3] AS terms, n_samples, round(m, 3) AS m, round(m_low, 3) AS low,\n"
        "       round(m_high, 3) AS high, round(m_per_sample, 3) AS m_per_sample\n"
        "FROM divergence_by_cluster('{run}', {step}) LIMIT 8",
    ),
    (
        "Which texts are worst?",
        "SELECT round(m, 2) AS m, domain, left(text, 60) AS text, voice FROM worst_samples('{run}', {step}, n := 5)",
    ),
    (
        "At which tokens of the worst one does the student part from the teacher?",
        "SELECT pattern, position, token, round(d, 2) AS d, teacher_top[1].token AS teacher,\n"
        "       student_top[1].token AS student\n"
        "FROM raw.scored_tokens WHERE run_id = '{run}' AND step = {step} AND after_speech\n"
        "  AND sample_id = (SELECT sample_id FROM worst_samples('{run}', {step}, n := 1))\n"
        "ORDER BY d DESC LIMIT 5",
    ),
    (
        "What did the second stage change, domain by domain, over the texts that both scored?\n"
        "(`change_between_checkpoints` tells it by cluster, for texts that are in one.)",
        "SELECT a.domain, count(*) AS samples, round(token_mean(a.m, a.n_positions), 2) AS before,\n"
        "       round(token_mean(b.m, b.n_positions), 2) AS after\n"
        "FROM misalignment a JOIN misalignment b USING (sample_id, synthesis_id)\n"
        "WHERE (a.run_id, a.step) = ('{run}', {step}) AND (b.run_id, b.step) = ('{other_run}', {other_step})\n"
        "GROUP BY a.domain ORDER BY before DESC",
    ),
    (
        "How do M and F develop over the checkpoints of a run?",
        "SELECT step, n_samples, round(m, 3) AS m, round(f, 3) AS f, round(d, 3) AS d\n"
        "FROM divergence_of_checkpoints('{other_run}')",
    ),
    (
        "What did the decisions do to the selection?",
        "SELECT cluster_id, n_selected, n_kept, round(60 * hours_kept, 1) AS minutes_kept,\n"
        "       round(effective_samples, 1) AS effective,\n"
        "       round(p_intended, 3) AS intended, round(p_kept, 3) AS kept, round(kl_nats, 4) AS kl\n"
        "FROM selection_after_decisions('{selection}') LIMIT 8",
    ),
    (
        "How do two runs differ?",
        "SELECT what, key, left(value_a, 24) AS a, left(value_b, 24) AS b\nFROM run_differences('{run}', '{other_run}') LIMIT 12",
    ),
    (
        "How accurate is each contender, and what is its text-speech gap?",
        "SELECT contender, modality, sum(n) AS items, round(sum(accuracy * n) / sum(n), 3) AS accuracy,\n"
        "       round(sum(gap * n) / sum(n), 3) AS gap\n"
        "FROM accuracy_and_gap() GROUP BY contender, modality ORDER BY ALL",
    ),
    (
        "Is it the speech or the text? Divergence against the character error rate of the synthesis.",
        "SELECT CASE WHEN cer < 0.05 THEN 'cer below 0.05' WHEN cer < 0.2 THEN 'cer below 0.2'\n"
        "       ELSE 'cer 0.2 or more' END AS speech, count(*) AS samples,\n"
        "       round(token_mean(m, n_positions), 3) AS m\n"
        "FROM misalignment WHERE run_id = '{run}' AND step = {step} AND cer IS NOT NULL\n"
        "GROUP BY speech ORDER BY min(cer)",
    ),
)


def dictionary() -> str:
    """The page of the data dictionary: every table with its columns, types, units and meanings, as Markdown."""
    lines = []
    for table in schema.TABLES.values():
        written = {
            "unit": "units",
            "event": "events",
            "run": "lab/runs",
            "package": "the package, and units",
            "view": "what readers leave out",
        }[table.kind]
        lines += [
            f"## {table.name}",
            f"One row is {table.row}. From: {written}." + (f" Key: {', '.join(table.key)}." if table.key else ""),
            "",
            "| column | type | unit | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for column in table.columns:
            name = f"**{column.name}**" if column.required else column.name
            type = schema.column_type(column).replace('"', "").replace("|", "\\|")
            lines.append(f"| {name} | {type} | {column.unit} | {column.meaning} |")
        lines.append("")
    return HEAD + "\n".join(lines)


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def answers(lab: Path | str | None) -> str:
    """The ten questions as Markdown, with what this lab answers. StoreError where it has no study in it."""
    con = connection.connect(lab)
    scored = con.execute("""
        SELECT d.run_id, max(d.step) AS step, any_value(r.kind) AS kind FROM raw.scored d
        LEFT JOIN runs r ON r.run_id = d.run_id GROUP BY d.run_id ORDER BY kind, any_value(r.started_at), d.run_id
        """).fetchall()
    selection = con.execute("""
        SELECT selection_id FROM selections ORDER BY parent_selection_id IS NOT NULL, strategy, selection_id
        """).fetchall()
    if not scored or not selection:
        raise StoreError(f"{lab}: no divergences or no selection to ask about; run `salad demo` first")
    first = next((row for row in scored if row[2] == "stage1"), scored[0])
    other = next((row for row in scored if row[2] == "stage2"), scored[-1])
    names = {
        "run": first[0],
        "step": first[1],
        "other_run": other[0],
        "other_step": other[1],
        "selection": selection[0][0],
    }
    lines = []
    for number, (question, sql) in enumerate(ASKED, 1):
        sql = sql.format(**names)
        table = connection.query(lab, sql)
        lines += [
            f"**{number}. {question}**".replace("\n(", "** (").replace(")**", ")"),
            "",
            "```sql",
            sql,
            "```",
            "",
            "| " + " | ".join(table.column_names) + " |",
            "|" + " --- |" * table.num_columns,
        ]
        lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in table.to_pylist()]
        lines += ["" if table.num_rows else "\n(no rows)\n"]
    return "\n".join(lines).strip()


def filled(page: str, part: str, text: str) -> str:
    """`page` with `text` between the two comments that mark `part`."""
    pattern = rf"(<!-- {part}: [^>]*-->\n).*?(<!-- end of {part} -->)"
    if not re.search(pattern, page, re.DOTALL):
        raise StoreError(f"docs/store.md has no part marked {part!r}")
    return re.sub(pattern, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL)


def main() -> None:
    """Write the data dictionary, and with `--lab` the questions that the lab answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", help="the lab that answers the questions")
    options = parser.parse_args()
    atomic.write_bytes(DICTIONARY, dictionary().encode())
    if options.lab:
        atomic.write_bytes(PAGE, filled(PAGE.read_text(), "questions", answers(options.lab)).encode())


if __name__ == "__main__":
    main()
