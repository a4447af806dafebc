"""Carrying a run, a selection or a table to a colleague's lab: a bundle is a small lab, and an import is a merge.

A bundle's manifest is written last, only plain files are read, and ids and times are kept: units merge as the log orders them."""

import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from . import atomic, catalogue, connection, events, files, history, ids, keys, schema, units, verification
from .compact import rows_of
from .errors import Damage, StoreError
from .lab import is_whole, lab_path, seal, seal_line
from .runs import read_document
from .verification import MEMBER
from .verify import inspect

MANIFEST = "bundle.json"
ROOMS = ("tables", "log", "events", "runs", "speech")

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
    """Copy a file through a temporary name, times included; bytes copied. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        shutil.copystat(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target.stat().st_size


def _inside(lab: Path, name: str) -> Path | None:
    """The file of this name, relative to the lab, or None where it is not inside the lab, by links too."""
    path = lab / name
    return path if path.is_file() and path.resolve().is_relative_to(lab.resolve()) else None


# What of a run's folder is carried. Not its log, code.diff and launch.json, nor what engines keep there: they may hold
# names of machines, what a process printed of its environment, and code that is nobody else's business.
CARRIED = ("config.json", "status.json", "status-*.json", "metrics-*.jsonl", "packages.txt", "checkpoints/*")


def _run_files(folder: Path, lab: Path) -> list[Path]:
    """The files of a run's folder that are carried, `config.json`, which makes a run exist, last. Links out of the lab are
    none."""
    paths = (path for path in folder.rglob("*") if not path.name.endswith(".tmp"))
    paths = (path for path in paths if any(fnmatch.fnmatch(path.relative_to(folder).as_posix(), name) for name in CARRIED))
    return sorted(
        (path for path in paths if _inside(lab, str(path.relative_to(lab)))),
        key=lambda path: (path.name == "config.json", path),
    )


def export(lab: Path | str | None, what: str, to: Path | str) -> dict[str, Any]:
    """Write a run (r...), a selection (l...) or a table into the folder `to`, with all that it rests on.

    The bundle is a lab of its own: parents, clustering, texts, speech, divergences, decisions, run folders with their
    checkpoints, and the log of its units. Its manifest, `bundle.json`, is written last and names every file with its
    sha256; an unfinished export has none. Returns rows by table, bytes of audio and of run folders. Raises StoreError
    where the lab has no such thing, `to` is not empty, or writing fails."""
    lab, to = lab_path(lab), Path(to).expanduser().resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StoreError(f"{to} is there already and not empty; name a new folder")
    con = connection.connect(lab)
    _want(con, what)
    units_here, _ = units.scan(lab)
    past = history.read(lab)
    summary: dict = {"bundle": str(to)}
    try:
        atomic.write_json(to / MANIFEST, seal({"complete": False, "what": what}))
        names = [what] if what in schema.TABLES else list(_BELONGS)
        carried: list[dict] = []
        for name in names:
            rows = 0
            for unit in units_here.get(name, []):
                rows += _export_unit(con, to, unit, _BELONGS[name] if what not in schema.TABLES else "true", past, carried)
            if rows:
                summary[name] = rows
        audio = {
            row["audio_path"]
            for unit in units.scan(to)[0].get("syntheses", [])
            for row in pq.read_table(unit.path, columns=["audio_path"]).to_pylist()
            if row["audio_path"]
        }
        summary["audio_bytes"] = sum(_copy_shar(lab, to, name) for name in sorted(audio) if _inside(lab, name))
        carried += [entry for name, (_, entry) in past.files.items() if name.startswith("speech/") and (to / name).is_file()]
        history.carry(to, carried)
        folders = [r[0] for r in con.execute("SELECT DISTINCT id FROM wanted WHERE kind = 'folder'").fetchall()]
        if what == "runs":
            folders = [r[0] for r in con.execute("SELECT run_id FROM runs").fetchall()]
        summary["run_bytes"] = sum(
            _copy(path, to / path.relative_to(lab))
            for run in folders
            if run and run == Path(run).name and (lab / "runs" / run).is_dir()
            for path in _run_files(lab / "runs" / run, lab)
        )
        summary["events"] = _export_events(con, lab, to, what)
        listed = {
            str(path.relative_to(to)): {"bytes": path.stat().st_size, "sha256": verification.sha256(path)} for path in _parts(to)
        }
        atomic.write_json(to / MANIFEST, seal({"complete": True, "what": what, "files": listed}))
    except OSError as error:
        raise StoreError(f"could not write {to}: {error}") from error
    return summary


def _parts(bundle: Path) -> list[Path]:
    """The files of a bundle, or of a lab, that an import looks at."""
    paths = []
    for room in ROOMS:
        for folder, folders, names in os.walk(bundle / room):
            folders.sort()
            names += [name for name in folders if (Path(folder) / name).is_symlink()]
            paths += [Path(folder) / name for name in sorted(names) if not name.endswith(".tmp")]
    return paths


def _export_unit(con, to: Path, unit: units.Unit, condition: str, past: history.History, carried: list[dict]) -> int:
    con.register("_unit_rows", rows_of(unit).drop_columns([MEMBER]))
    rows = con.sql(f"SELECT * FROM _unit_rows WHERE {condition}").to_arrow_table()
    con.unregister("_unit_rows")
    if rows.num_rows == unit.rows and not unit.without:  # whole: it keeps its id
        _copy_unit(unit, to)
        for name, sha in {unit.unit_id: unit.manifest["sha256"], **unit.members}.items():
            version = past.versions.get((unit.table, name), {}).get(sha)
            carried += [version.entry] if version else []
    elif rows.num_rows:
        made_from = {"part_of": unit.unit_id, "keys": _keys(unit.table, rows)}
        units.publish(to, unit.table, rows, made_from, since=_since(unit, past))
    return rows.num_rows


def _since(unit: units.Unit, past: history.History) -> int:
    """When a unit was published, by the log or by its manifest's time; of a merged one the latest of its members."""
    versions = [
        version.clock
        for name, sha in (unit.members or {unit.unit_id: unit.manifest["sha256"]}).items()
        if (version := past.versions.get((unit.table, name), {}).get(sha))
    ]
    return max(versions, default=None) or unit.manifest_path.stat().st_mtime_ns // 1000


def _copy_unit(unit: units.Unit, lab: Path) -> None:
    """Bring a unit into another lab, bytes, id and times unchanged. Raises OSError."""
    place = lab / "tables" / unit.table / unit.path.parent.name
    name = f"unit-{unit.unit_id}-{unit.manifest['sha256'][:8]}"
    _copy(unit.path, place / f"{name}.parquet")
    times = unit.manifest_path.stat()
    manifest = atomic.write_json(place / f"{name}.json", seal({**unit.manifest, "file": f"{name}.parquet"}))
    os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))


def _keys(table: str, rows: pa.Table) -> str:
    """A hash of which rows these are."""
    keys = rows.select(schema.TABLES[table].key).to_pylist()
    return ids.digest(sorted(json.dumps(list(key.values())) for key in keys))


def _copy_shar(source: Path, target: Path, name: str) -> int:
    """The tar file `name` of a Shar and the files of the same number beside it (cuts)."""
    path = source / name
    number = path.name.split(".")[1:2]
    beside = [p for p in path.parent.iterdir() if p.name.split(".")[1:2] == number] if number else [path]
    beside = [p for p in beside if _inside(source, str(p.relative_to(source)))]
    for p in beside:
        files.check(p)
    return sum(_copy(p, target / p.relative_to(source)) for p in beside)


def _export_events(con, lab: Path, to: Path, what: str) -> int:
    event_tables, _ = events.read(lab)
    runs = {r[0] for r in con.execute("SELECT id FROM wanted WHERE kind = 'folder'").fetchall()}
    selections = {r[0] for r in con.execute("SELECT id FROM wanted WHERE kind = 'selection'").fetchall()}
    lines, carried = [], set()
    for name, rows in event_tables.items():
        for event in rows.to_pylist():
            belongs = {
                "decisions": event.get("selection_id") in selections or event.get("undoes") in carried,
                "run_notes": event.get("run_id") in runs,
                "votes": {event.get("left_run_id"), event.get("right_run_id")} & runs,
            }[name]
            if belongs or what == name:
                carried.add(event[events.ID[name]])
                lines.append(_event_line(name, event))
    return _write_events(to, lines)


def _event_line(table: str, event: dict) -> bytes:
    """An event of a table as the line of an event file."""
    fields = {key: value for key, value in event.items() if value is not None}
    return seal_line({"table": table, **fields, "at": event["at"].isoformat(timespec="microseconds")})


def _write_events(folder: Path, lines: list[bytes]) -> int:
    """Write event lines into a lab or bundle, in a file named by their content; returns how many there are."""
    if lines:
        lines = sorted(lines)
        name = f"imported-{hashlib.sha256(b''.join(lines)).hexdigest()[:12]}.jsonl"
        events.write_whole(folder / "events" / name, lines)
    return len(lines)


def _checked_list(bundle: Path) -> None:
    """Raise StoreError unless every file of a bundle is a plain file and matches its manifest, which a whole lab lacks."""
    for path in _parts(bundle):
        if path.is_symlink() or not path.is_file():
            name = path.relative_to(bundle)
            raise StoreError(
                f"{bundle} holds {name}, which is not a plain file; nothing was imported, because links are not followed"
            )
    if (bundle / MANIFEST).is_symlink():
        raise StoreError(f"{bundle / MANIFEST} is a link; nothing was imported")
    try:
        manifest = json.loads((bundle / MANIFEST).read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        raise StoreError(f"{bundle / MANIFEST} cannot be read; export it again") from None
    if not isinstance(manifest, dict) or "sum" not in manifest or not is_whole(manifest):
        raise StoreError(f"{bundle / MANIFEST}: its checksum does not agree with its content; export it again")
    if manifest.get("complete") is not True:
        raise StoreError(f"{bundle} is half an export, which was interrupted; export it again into a new folder")
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and Path(name).parts[:1] and ".." not in Path(name).parts
        and Path(name).parts[0] in ROOMS for name, entry in listed.items()
    ):  # fmt: skip
        raise StoreError(f"{bundle / MANIFEST}: its list of files cannot be read; export it again")
    for name, entry in sorted(listed.items()):
        path = bundle / name
        if not path.is_file():
            raise StoreError(f"the bundle is damaged: {name} is missing; copy it again, or export it again")
        if path.stat().st_size != entry.get("bytes") or verification.sha256(path) != entry["sha256"]:
            raise StoreError(f"the bundle is damaged: the bytes of {name} changed; copy it again, or export it again")


def import_(lab: Path | str | None, bundle: Path | str) -> dict[str, Any]:
    """Bring a bundle, or a whole other lab, into this one; what is here already does not come twice.

    Units come as they are, with their place in the log: whichever of two labs imports the other, both then answer the
    same. Where both say something else of one key the later published is shown, and the conflict is in `damaged`. Of a
    run that both hold the further one stays. Speech whose file name is taken by other bytes goes to a folder of its own.
    Returns rows brought by table, runs brought or brought on, events, and conflicts where there are any. Raises
    StoreError, before anything is written, where the bundle is damaged, half an export, or holds links."""
    lab, bundle = lab_path(lab), Path(bundle).expanduser().resolve()
    if not bundle.is_dir():
        raise StoreError(f"no bundle at {bundle}")
    if bundle == lab:
        raise StoreError(f"{bundle} is this lab itself")
    _checked_list(bundle)
    damaged = [
        item
        for kind, items in inspect(bundle).items()
        for item in items
        if (kind in ("units", "events", "runs", "audio", "checkpoints") or item.table == "cuts")
        and not item.reason.startswith(("its last line is torn", "conflict"))
    ]
    if damaged:
        raise StoreError(
            f"the bundle is damaged: {damaged[0].path}: {damaged[0].reason}"
            + (f", and {len(damaged) - 1} more" if len(damaged) > 1 else "")
            + "; export it again"
        )
    summary: dict = {}
    try:
        before = set(_conflicts(lab))
        moved = _import_speech(lab, bundle)
        bundle_units, _ = units.scan(bundle)
        bundle_history = history.read(bundle)
        if not history.read(lab).exists:
            units.adopt(lab)
        for name in bundle_units:
            summary[name] = sum(_import_unit(lab, unit, moved, bundle_history) for unit in bundle_units[name])
        _carry_log(lab, bundle_history)
        summary["runs"], refused = 0, []
        for folder in sorted((bundle / "runs").glob("*/config.json")):
            changed, clashes = _import_run(folder.parent, lab / "runs" / folder.parent.name)
            summary["runs"] += changed
            refused += clashes
        summary["events"] = _import_events(lab, bundle)
        conflicts = sorted(set(_conflicts(lab)) - before)
        if conflicts or refused:
            summary["conflicts"] = [f"{item.table}: {item.path}: {item.reason}" for item in conflicts] + refused
        if any(summary.values()):
            with contextlib.suppress(OSError):
                counts = {key: len(value) if key == "conflicts" else value for key, value in summary.items() if value}
                history.append(lab, [{"op": "import", "bundle": bundle.name, "brought": counts}])
    except OSError as error:
        raise StoreError(f"could not import into {lab}: {error}") from error
    connection.renew(lab)
    return summary


def _conflicts(lab: Path) -> list[Damage]:
    """What `damaged` says of conflicts in a lab."""
    units_here, damaged = units.scan(lab)
    _, conflicts = keys.overlaps(lab, units_here, history.read(lab))
    return [item for item in [*damaged, *conflicts] if item.reason.startswith("conflict")]


def _carry_log(lab: Path, other_history: history.History) -> None:
    """Log what the other lab's log says of units that are here now, and of what was preferred."""
    history_here = history.read(lab)
    present = {(v.table, v.unit_id, v.sha256) for versions in history_here.versions.values() for v in versions.values()}
    for table in schema.TABLES:
        for _, manifest in units.read_manifests(lab, table):
            if isinstance(manifest, dict):
                parts = [manifest, *manifest.get("members", [])]
                present |= {(table, part["unit_id"], part["sha256"]) for part in parts}
    history.carry(lab, [
        entry for node, entry in other_history.entries.items() if node not in history_here.entries and (
            entry["op"] in ("publish", "found") and (entry["table"], entry["unit_id"], entry["sha256"]) in present
            or entry["op"] == "file" and entry["path"].startswith("speech/") and files.is_as_recorded(lab, entry)
            or entry["op"] == "prefer")])  # fmt: skip


def _import_speech(lab: Path, bundle: Path) -> dict[str, str]:
    """Copy lab/speech; returns where folders went whose names were taken by other bytes."""
    moved = {}
    for folder in sorted(path for path in (bundle / "speech").glob("*") if path.is_dir()):
        files_there = sorted(path for path in folder.rglob("*") if path.is_file())
        target = lab / "speech" / folder.name
        clash = any(
            (target / file.relative_to(folder)).exists() and not _same(file, target / file.relative_to(folder))
            for file in files_there
        )
        if clash:
            name = f"{folder.name}-{ids.digest([[f.name, verification.sha256(f)] for f in files_there])}"
            moved[f"speech/{folder.name}/"] = f"speech/{name}/"
            target = lab / "speech" / name
        for file in files_there:
            if not (target / file.relative_to(folder)).exists():
                _copy(file, target / file.relative_to(folder))
    return moved


def _same(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and verification.sha256(first) == verification.sha256(second)


def _import_unit(lab: Path, unit: units.Unit, moved: dict[str, str], bundle_history: history.History) -> int:
    """Bring a unit that the lab lacks, as it is; returns how many of its rows have a key that was not here."""
    table, units_here = schema.TABLES[unit.table], units.scan(lab)[0].get(unit.table, [])
    sha = unit.manifest["sha256"]
    if any(u.unit_id == unit.unit_id and u.manifest["sha256"] == sha or u.members.get(unit.unit_id) == sha for u in units_here):
        return 0
    if units.version_is_here(lab, unit):
        return 0
    rows = rows_of(unit).drop_columns([MEMBER])
    after = None
    if unit.table == "syntheses" and moved:
        paths = rows["audio_path"].to_pylist()
        after = [next((to + p[len(old) :] for old, to in moved.items() if p and p.startswith(old)), p) for p in paths]
        after = None if after == paths else after
    made_from = {"imported": unit.unit_id, "sha256": sha, "moved": ids.digest(after)}
    if after is not None and units.exists(lab, unit.table, made_from):
        return 0
    con = duckdb.connect()
    con.register("incoming", rows)
    rows_here = catalogue.select_of(table, units_here)
    same = " AND ".join(f'h."{name}" IS NOT DISTINCT FROM i."{name}"' for name in table.key)
    query = f"SELECT count(*) FROM incoming i WHERE NOT EXISTS (SELECT 1 FROM ({rows_here}) h WHERE {same})"
    new = con.execute(query).fetchall()[0][0]
    if after is not None:
        rows = rows.set_column(rows.schema.get_field_index("audio_path"), "audio_path", pa.array(after, pa.string()))
        units.publish(lab, unit.table, rows, made_from, since=_since(unit, bundle_history))
    else:
        _copy_unit(unit, lab)
    return new


def _import_run(source: Path, target: Path) -> tuple[bool, list[str]]:
    """Bring a run's folder: (whether anything came, files that both hold and that neither continues)."""
    changed, refused = False, []
    whole = not (target / "config.json").exists()
    ahead = whole or _further(source / "status.json", target / "status.json")
    for path in _run_files(source, source.parent.parent):
        place = target / path.relative_to(source)
        if not place.exists():
            _copy(path, place)
            changed = True
        elif not _same(path, place):
            grows = path.suffix in (".jsonl", ".txt")
            if path.name == "status.json":
                if ahead:
                    _copy(path, place)
                    changed = True
            elif grows and _continues(path, place):
                _copy(path, place)
                changed = True
            elif not (grows and _continues(place, path)):
                name = path.relative_to(source.parent.parent)
                refused.append(f"runs: {name}: both labs have this file, and neither continues the other; this lab's stays")
    return changed, refused


def _further(first: Path, second: Path) -> bool:
    """Whether a run's status is of later than another's."""

    def order(path):
        status = read_document(path)
        status = status if isinstance(status, dict) else {}
        step = status.get("step")
        times = [str(status.get(name) or "") for name in ("heartbeat_at", "ended_at", "started_at")]
        return max(times), step if isinstance(step, (int, float)) else -1, status.get("state") not in ("starting", "running")

    return order(first) > order(second)


def _continues(longer: Path, shorter: Path) -> bool:
    """Whether a file begins with all that another holds, and goes on."""
    size = shorter.stat().st_size
    if longer.stat().st_size <= size:
        return False
    with open(longer, "rb") as file, open(shorter, "rb") as start:
        while piece := start.read(1 << 20):
            if file.read(len(piece)) != piece:
                return False
    return True


def _import_events(lab: Path, bundle: Path) -> int:
    events_here, bundle_events = events.read(lab)[0], events.read(bundle)[0]
    lines = []
    for name, rows in bundle_events.items():
        ids_here = set(events_here[name][events.ID[name]].to_pylist())
        for event in rows.to_pylist():
            if event[events.ID[name]] not in ids_here:
                lines.append(_event_line(name, event))
    return _write_events(lab, lines)
