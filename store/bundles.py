"""Carrying a run, a selection or a table to a colleague's lab: a bundle is a small lab, and an import is a merge.

Ids are kept and nothing comes twice: units that are carried whole keep their id, other rows are told apart by key."""

import fnmatch
import hashlib
import json
import os
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from . import catalogue, connection, events, ids, schema, units, verification
from .compact import rows_of
from .errors import StoreError
from .lab import lab_path, seal_line
from .verify import verify

# What belongs to the wanted runs, selections and clusterings, by table; `wanted` holds (kind, id, step).
_BELONGS = {
    "selections": "selection_id IN (SELECT id FROM wanted WHERE kind = 'selection')",
    "selected": "selection_id IN (SELECT id FROM wanted WHERE kind = 'selection')",
    "selection_clusters": "selection_id IN (SELECT id FROM wanted WHERE kind = 'selection')",
    "clusters": "clustering_id IN (SELECT id FROM wanted WHERE kind = 'clustering')",
    "assignments": "clustering_id IN (SELECT id FROM wanted WHERE kind = 'clustering')",
    "divergences": "(run_id IN (SELECT id FROM wanted WHERE kind = 'run') OR (run_id, step) IN "
    "(SELECT (id, step) FROM wanted WHERE kind = 'checkpoint') AND sample_id IN "
    "(SELECT id FROM wanted WHERE kind = 'sample'))",
    "evaluations": "run_id IN (SELECT id FROM wanted WHERE kind = 'run')",
    "samples": "sample_id IN (SELECT id FROM wanted WHERE kind = 'sample')",
    "syntheses": "(synthesis_id IN (SELECT id FROM wanted WHERE kind = 'synthesis') OR sample_id IN "
    "(SELECT id FROM wanted WHERE kind = 'selected'))",
}
_BELONGS["token_divergences"] = _BELONGS["divergences"]
_BELONGS["answers"] = _BELONGS["evaluations"]


def _want(con, what: str) -> None:
    """Fill `wanted` with everything that a run or a selection rests on."""
    con.execute("CREATE TEMP TABLE wanted (kind VARCHAR, id VARCHAR, step BIGINT)")
    if what in schema.TABLES:
        return
    if con.execute("SELECT 1 FROM runs WHERE run_id = ?", [what]).fetchone():
        con.execute(
            """INSERT INTO wanted WITH RECURSIVE up AS (
            SELECT run_id, parent_run_id, selection_id FROM runs WHERE run_id = $1
            UNION SELECT r.run_id, r.parent_run_id, r.selection_id FROM runs r JOIN up ON r.run_id = up.parent_run_id)
            SELECT 'run', run_id, NULL FROM up UNION SELECT 'selection', selection_id, NULL FROM up
            WHERE selection_id IS NOT NULL""",
            [what],
        )
    elif con.execute("SELECT 1 FROM selections WHERE selection_id = ?", [what]).fetchone():
        con.execute("INSERT INTO wanted VALUES ('selection', ?, NULL)", [what])
    else:
        raise StoreError(f"no run, selection or table {what!r} in this lab")
    for statement in (
        "SELECT DISTINCT 'selection', ancestor_id, NULL FROM lineage WHERE selection_id IN "
        "(SELECT id FROM wanted WHERE kind = 'selection') AND depth > 0",
        "SELECT DISTINCT 'clustering', clustering_id, NULL FROM selections WHERE clustering_id IS NOT NULL AND "
        "selection_id IN (SELECT id FROM wanted WHERE kind = 'selection')",
        "SELECT DISTINCT 'clustering', clustering_id, NULL FROM clusters WHERE run_id IN "
        "(SELECT id FROM wanted WHERE kind = 'run')",
        "SELECT DISTINCT 'checkpoint', run_id, step FROM selections WHERE selection_id IN "
        "(SELECT id FROM wanted WHERE kind = 'selection')",
        "SELECT DISTINCT unnest(['sample', 'selected']), sample_id, NULL FROM selected WHERE selection_id IN "
        "(SELECT id FROM wanted WHERE kind = 'selection')",
        "SELECT DISTINCT 'sample', sample_id, NULL FROM raw.divergences WHERE run_id IN "
        "(SELECT id FROM wanted WHERE kind = 'run')",
        "SELECT DISTINCT 'synthesis', synthesis_id, NULL FROM raw.divergences WHERE run_id IN "
        "(SELECT id FROM wanted WHERE kind = 'run') AND synthesis_id IS NOT NULL",
        # the folders of the runs that are pointed at, so that the rows make sense
        "SELECT DISTINCT 'folder', id, NULL FROM wanted WHERE kind IN ('run', 'checkpoint')",
        "SELECT DISTINCT 'folder', run_id, NULL FROM clusters WHERE run_id IS NOT NULL AND clustering_id IN "
        "(SELECT id FROM wanted WHERE kind = 'clustering')",
    ):
        con.execute(f"INSERT INTO wanted {statement}")


def _copy(source: Path, target: Path) -> int:
    """Copy a file through a temporary name; bytes copied. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target.stat().st_size


# What of a run's folder is carried. Not its log, code.diff and launch.json, nor what engines keep there: they may hold
# names of machines, what a process printed of its environment, and code that is nobody else's business.
CARRIED = ("config.json", "status.json", "status-*.json", "metrics-*.jsonl", "packages.txt", "checkpoints/*")


def _copy_folder(source: Path, target: Path, names: tuple[str, ...] = ("*",)) -> int:
    """Copy a folder's files of these names (patterns) that the target lacks; `config.json`, which makes a run exist, last."""
    found = (path for path in source.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    files = sorted(
        (path for path in found if any(fnmatch.fnmatch(path.relative_to(source).as_posix(), name) for name in names)),
        key=lambda path: (path.name == "config.json", path),
    )
    return sum(
        _copy(path, target / path.relative_to(source))
        for path in files
        if not (target / path.relative_to(source)).exists()
    )


def export(lab, what: str, to) -> dict:
    """Write a run (r...), a selection (l...) or a table into the folder `to`, with all that it rests on.

    The bundle is a lab of its own: parents, clustering, texts, speech, divergences, decisions, run folders with their
    checkpoints. Returns what is in it: rows by table, bytes of audio and run folders. Raises StoreError where there
    is no such thing, `to` holds something, or the disk refuses."""
    lab, to = lab_path(lab), Path(to).expanduser().resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StoreError(f"{to} is there already and not empty; name a new folder")
    con = connection.connect(lab)
    _want(con, what)
    found, _ = units.scan(lab)
    told: dict = {"bundle": str(to)}
    try:
        names = [what] if what in schema.TABLES else list(_BELONGS)
        for name in names:
            rows = 0
            for unit in found.get(name, []):
                rows += _export_unit(con, to, unit, _BELONGS[name] if what not in schema.TABLES else "true")
            if rows:
                told[name] = rows
        audio = {
            row["audio_path"]
            for unit in units.scan(to)[0].get("syntheses", [])
            for row in pq.read_table(unit.path, columns=["audio_path"]).to_pylist()
            if row["audio_path"]
        }
        told["audio_bytes"] = sum(_copy_shar(lab, to, name) for name in sorted(audio) if (lab / name).is_file())
        folders = [r[0] for r in con.execute("SELECT DISTINCT id FROM wanted WHERE kind = 'folder'").fetchall()]
        if what == "runs":
            folders = [r[0] for r in con.execute("SELECT run_id FROM runs").fetchall()]
        told["run_bytes"] = sum(
            _copy_folder(lab / "runs" / run, to / "runs" / run, CARRIED)
            for run in folders
            if run and (lab / "runs" / run).is_dir()
        )
        told["events"] = _export_events(con, lab, to, what)
    except OSError as error:
        raise StoreError(f"could not write {to}: {error}") from error
    return told


def _export_unit(con, to: Path, unit: units.Unit, condition: str) -> int:
    con.register("_unit_rows", rows_of(unit).drop_columns([units.MEMBER]))
    rows = con.sql(f"SELECT * FROM _unit_rows WHERE {condition}").to_arrow_table()
    con.unregister("_unit_rows")
    if rows.num_rows == unit.rows and not unit.without:  # whole: it keeps its id
        place = to / "tables" / unit.table / unit.path.parent.name
        _copy(unit.path, place / unit.path.name)
        _copy(unit.path.parent / f"unit-{unit.unit_id}.json", place / f"unit-{unit.unit_id}.json")
    elif rows.num_rows:
        units.publish(to, unit.table, rows, made_from={"part_of": unit.unit_id, "keys": _keys(unit.table, rows)})
    return rows.num_rows


def _keys(table: str, rows: pa.Table) -> str:
    """A hash of which rows these are."""
    keys = rows.select(schema.TABLES[table].key).to_pylist()
    return ids.digest(sorted(json.dumps(list(key.values())) for key in keys))


def _copy_shar(source: Path, target: Path, name: str) -> int:
    """The tar file `name` of a Shar and the files of the same number beside it (cuts)."""
    number = Path(name).name.split(".")[1:2]
    beside = [path for path in (source / name).parent.glob(f"*.{number[0]}.*")] if number else [source / name]
    return sum(_copy(path, target / path.relative_to(source)) for path in beside)


def _export_events(con, lab: Path, to: Path, what: str) -> int:
    said, _ = events.read(lab)
    runs = {r[0] for r in con.execute("SELECT id FROM wanted WHERE kind = 'folder'").fetchall()}
    selections = {r[0] for r in con.execute("SELECT id FROM wanted WHERE kind = 'selection'").fetchall()}
    lines, carried = [], set()
    for name, rows in said.items():
        for event in rows.to_pylist():
            mine = {
                "decisions": event.get("selection_id") in selections or event.get("undoes") in carried,
                "run_notes": event.get("run_id") in runs,
                "votes": {event.get("left_run_id"), event.get("right_run_id")} & runs,
            }[name]
            if mine or what == name:
                carried.add(event[events.ID[name]])
                event = {key: value for key, value in event.items() if value is not None}
                event["at"] = event["at"].isoformat(timespec="microseconds")
                lines.append(seal_line({"table": name, **event}))
    if lines:
        lines.sort()
        name = f"imported-{hashlib.sha256(b''.join(lines)).hexdigest()[:12]}.jsonl"
        events.write_whole(to / "events" / name, lines)
    return len(lines)


def import_(lab, bundle) -> dict:
    """Bring a bundle, or a whole other lab, into this one; what is here already does not come twice.

    Speech whose file name is taken by other bytes goes to a folder of its own. Returns rows brought by table, run
    folders and events. Raises StoreError, before anything is written, where the bundle is damaged."""
    lab, bundle = lab_path(lab), Path(bundle).expanduser().resolve()
    if not bundle.is_dir():
        raise StoreError(f"no bundle at {bundle}")
    if bundle == lab:
        raise StoreError(f"{bundle} is this lab itself")
    damaged = verify(bundle)
    damaged = [item for item in damaged if not item.reason.startswith(("orphaned", "its last line is torn"))]
    if damaged:
        raise StoreError(
            f"the bundle is damaged: {damaged[0].path}: {damaged[0].reason}"
            + (f", and {len(damaged) - 1} more" if len(damaged) > 1 else "")
            + "; export it again"
        )
    told: dict = {}
    try:
        moved = _import_speech(lab, bundle)
        found, _ = units.scan(bundle)
        for name in found:
            told[name] = sum(_import_unit(lab, unit, moved) for unit in found[name])
        told["runs"] = 0
        for folder in sorted((bundle / "runs").glob("*/config.json")):
            target = lab / "runs" / folder.parent.name
            if not (target / "config.json").exists():
                _copy_folder(folder.parent, target, CARRIED)
                told["runs"] += 1
        told["events"] = _import_events(lab, bundle)
    except OSError as error:
        raise StoreError(f"could not import into {lab}: {error}") from error
    connection.renew(lab)
    return told


def _import_speech(lab: Path, bundle: Path) -> dict[str, str]:
    """Copy lab/speech; returns where folders went whose names were taken by other bytes."""
    moved = {}
    for folder in sorted(path for path in (bundle / "speech").glob("*") if path.is_dir()):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        target = lab / "speech" / folder.name
        clash = any(
            (target / file.relative_to(folder)).exists() and not _same(file, target / file.relative_to(folder))
            for file in files
        )
        if clash:
            name = f"{folder.name}-{ids.digest([[f.name, verification.sha256(f)] for f in files])}"
            moved[f"speech/{folder.name}/"] = f"speech/{name}/"
            target = lab / "speech" / name
        _copy_folder(folder, target)
    return moved


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and verification.sha256(one) == verification.sha256(other)


def _import_unit(lab: Path, unit: units.Unit, moved: dict[str, str]) -> int:
    """Bring the rows of one unit that the lab lacks; whole and verbatim where it lacks them all."""
    if units.exists(lab, unit.table, unit.manifest["made_from"]):
        return 0
    table, rows = schema.TABLES[unit.table], rows_of(unit).drop_columns([units.MEMBER])
    con = duckdb.connect()
    con.register("incoming", rows)
    here = catalogue.select_of(table, units.scan(lab)[0].get(unit.table, []))
    same = " AND ".join(f'h."{name}" IS NOT DISTINCT FROM i."{name}"' for name in table.key)
    new = con.sql(
        f"SELECT i.* FROM incoming i WHERE NOT EXISTS (SELECT 1 FROM ({here}) h WHERE {same})"
    ).to_arrow_table()
    rewritten = False
    if unit.table == "syntheses" and moved:
        paths = new["audio_path"].to_pylist()
        after = [next((to + p[len(old) :] for old, to in moved.items() if p and p.startswith(old)), p) for p in paths]
        rewritten = paths != after
        new = new.set_column(new.schema.get_field_index("audio_path"), "audio_path", pa.array(after, pa.string()))
    if new.num_rows == unit.rows and not rewritten and not unit.members:
        units.publish(lab, unit.table, new, made_from=unit.manifest["made_from"])
    elif new.num_rows:
        units.publish(
            lab,
            unit.table,
            new,
            made_from={"imported": unit.unit_id, "sha256": unit.manifest["sha256"], "keys": _keys(unit.table, new)},
        )
    return new.num_rows


def _import_events(lab: Path, bundle: Path) -> int:
    here, there = events.read(lab)[0], events.read(bundle)[0]
    lines = []
    for name, rows in there.items():
        known = set(here[name][events.ID[name]].to_pylist())
        for event in rows.to_pylist():
            if event[events.ID[name]] not in known:
                event = {key: value for key, value in event.items() if value is not None}
                event["at"] = event["at"].isoformat(timespec="microseconds")
                lines.append(seal_line({"table": name, **event}))
    if lines:
        lines.sort()
        name = f"imported-{hashlib.sha256(b''.join(lines)).hexdigest()[:12]}.jsonl"
        events.write_whole(lab / "events" / name, lines)
    return len(lines)
