"""What a reader needs to check and repeat a study, in one zip: configuration, versions, ids and hashes, item-level rows, the SQL
behind each table, licences. No audio, no text and no weights: those are made again."""

import importlib.metadata
import io
import json
import zipfile
from pathlib import Path

import store
from salad.errors import SaladError
from salad.models.names import folder_sha256, resolve
from salad.runs import git_commit, now, read_json
from salad.study import conduct, costs, sources
from salad.study.config import BaseStudy, Study
from salad.study.load import PACKED
from workbench.reports.study import DIVERGENCES_SQL, POOLED_BELOW, study_tables
from workbench.reports.tables import as_csv

# item-level rows of each seed, by file: ids and numbers, no text
ROWS = {
    "evaluations": "SELECT * EXCLUDE (prediction, answer) FROM evaluations",
    "divergences": "SELECT * FROM raw.divergences",
    "selected": "SELECT * FROM selected",
    "selections": "SELECT * FROM selections",
    "syntheses": "SELECT synthesis_id, sample_id, speech, tts, voice, seed, duration_s, cer, wer, asr, flags FROM syntheses",
    "samples": "SELECT sample_id, corpus, domain, licence, language, flags FROM samples",
    "decisions": "SELECT * FROM decisions",
}
ANSWERS_SQL = """
SELECT contender, run_id, step, task, modality, tts, asr, count(*) AS items, avg(correct_norm::INT) AS accuracy,
    stddev_samp(correct_norm::INT) / sqrt(count(*)) AS standard_error
FROM evaluations GROUP BY ALL ORDER BY task, modality, contender
"""
README = """# {name}, packed

- `study.json`: the frozen configuration. `salad study --from {file} --lab DIR` repeats the study.
- `packages.txt`: versions of all packages, of Python, and the commit of salad.
- `ids.json`: by seed, the ids of runs, clustering and selections; by model, the SHA-256 of its folder where it was one.
- `rows/seed-N/*.parquet`: every row behind the tables, item by item.
- `tables/*.csv`, and `tables/*.sql`: the query that makes each from a lab (`salad sql`).
- `licences.json`: the licence of every source, and of how many texts and recordings.

Texts, speech and weights are not in it.
"""


def pack_study(lab: Path | str, config: BaseStudy, file: Path | str) -> str:
    """Write the pack of a study's labs to `file` (.zip). Returns what it holds, in a line. SaladError where the file is there
    already, or nothing is measured yet."""
    lab, file = Path(lab), Path(file)
    if file.suffix != ".zip":
        raise SaladError(f"--pack {file}: name a .zip file")
    if file.exists():
        raise SaladError(f"{file} is there already; name another file")
    labs = dict(conduct.all_labs(lab, config))
    if not any((path / "study.json").exists() for path in labs.values()):
        raise SaladError(f"{lab} contains no study yet; run `salad study {config.name} --lab {lab}` first")
    parts: dict[str, bytes] = {
        PACKED: _json({"kind": type(config).__name__, "config": config.model_dump(mode="json"), "packed_at": now()}),
        "README.md": README.format(name=config.name, file=file.name).encode(),
        "packages.txt": packages().encode(),
    }
    ids, licences = {}, {}
    for seed, path in labs.items():
        con = store.connect(path)
        for name, query in ROWS.items():
            parts[f"rows/seed-{seed}/{name}.parquet"] = _parquet(con, query)
        notes = {p.stem: json.loads(p.read_text()) for p in sorted((path / ".study").glob("*.json"))}
        runs = con.execute("SELECT run_id, kind, status, step FROM runs ORDER BY run_id").fetchall()
        ids[f"seed-{seed}"] = {
            "notes": notes,
            "runs": [dict(zip(("run_id", "kind", "status", "step"), r, strict=True)) for r in runs],
        }
        for corpus, licence, n in con.execute(
            "SELECT corpus, licence, count(*) FROM samples GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            licences.setdefault(corpus or "", {})[licence or "unknown"] = n
        parts[f"steps/seed-{seed}.json"] = _json(
            [_plain(r) for p in sorted((path / ".study" / "steps").glob("*.json")) if (r := read_json(p)) is not None]
        )
    if isinstance(config, Study):
        ids["models"] = {name: _sha256(name, lab) for name in costs.hub_names(config)}
        licences["sources"] = {what: source.licence for what, source in sources.of_study(config)}
        for table in study_tables(lab, config).tables():
            parts[f"tables/{table.name}.csv"] = as_csv(table)
        parts["tables/divergences.sql"] = DIVERGENCES_SQL.replace("$1", str(POOLED_BELOW)).encode()
    parts["tables/answers.sql"] = ANSWERS_SQL.encode()
    parts["ids.json"], parts["licences.json"] = _json(ids), _json(licences)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name in sorted(parts):
            out.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), parts[name], zipfile.ZIP_DEFLATED)
    store.atomic.write_bytes(file, buffer.getvalue())
    return f"{file}: {len(parts)} files of {len(labs)} seeds, {len(buffer.getvalue()) / 1e6:.2f} MB"


def packages() -> str:
    """Versions of Python's packages as `pip freeze` writes them, after salad's commit."""
    import platform

    names = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    lines = [f"{name}=={version}" for name, version in sorted(names.items(), key=lambda pair: pair[0].lower())]
    return "\n".join([f"# Python {platform.python_version()}, salad at {git_commit() or 'no commit'}", *lines]) + "\n"


def _sha256(name: str, lab: Path) -> str | None:
    try:
        folder = resolve(name, lab)
    except SaladError:
        return None
    return folder_sha256(folder) if Path(folder).is_dir() else None


def _plain(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "evidence"}


def _json(value) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _parquet(con, query: str) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(con.execute(query).to_arrow_table(), buffer, compression="zstd")
    return buffer.getvalue()
