"""The lab's history: `lab/log/<writer>.jsonl`, in which each writer appends what it published and removed.

The log says what there should be: a unit that it names and that is gone is missed. An entry has the writer's sequence
number, the last entries of others that it had seen (`after`), and a hybrid logical clock: microseconds since 1970 by
the wall clock, but always later than every entry seen. So what came after is later, whatever a machine's clock says, and
an entry that others have seen cannot vanish unnoticed. Entries are merged by copying; `salad log` prints them."""

import datetime
import functools
import getpass
import json
import os
import re
import threading
import time
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from . import atomic, ids, jsonl, schema
from .errors import Damage, StoreError
from .lab import lab_path, seal_line

OPERATIONS = ("publish", "found", "remove", "prefer", "import", "file")
LONGEST_MADE_FROM = 2000  # characters of JSON; a longer one is left out of the log, the manifest has it
LATEST_CLOCK = 253_402_300_799_000_000  # the end of the year 9999, in microseconds
_lock = threading.RLock()
_writers: dict[tuple[int, str], jsonl.Appender] = {}
_histories: dict[str, "History"] = {}


class Version(NamedTuple):
    """A unit as it was published once. `clock` orders it among the others, `writer` and `seq` break ties."""

    clock: int
    writer: str
    seq: int
    table: str
    unit_id: str
    sha256: str
    entry: dict

    @property
    def order(self) -> tuple[int, str, int]:
        """What orders versions: the one with the greatest was published last."""
        return self.clock, self.writer, self.seq


def moment(at: str | datetime.datetime) -> int:
    """A time (ISO 8601 with its zone, or aware) as a reading of the clock. Raises StoreError."""
    try:
        time = datetime.datetime.fromisoformat(at) if isinstance(at, str) else at
    except ValueError:
        raise StoreError(f"{at!r} is not a time such as 2026-11-27T10:00Z") from None
    if time.tzinfo is None:
        raise StoreError(f"{at}: give the time with its zone, such as {time.isoformat()}Z for UTC")
    return (time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def next_clock(seen: int) -> int:
    """A reading that is later than `seen`, and the wall clock's where that is later still."""
    return max(time.time_ns() // 1000, seen + 1)


@functools.cache
def author() -> str:
    """Who runs this process, as the system says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _fault(entry: dict) -> str | None:
    """What is wrong with an entry of the log, or None."""

    def number(name, least, most=LATEST_CLOCK):
        value = entry.get(name)
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    if not isinstance(entry.get("writer"), str) or not re.fullmatch(r"[\w.-]{1,120}", entry["writer"]):
        return "no writer"
    if not number("seq", 1) or not number("clock", 0):
        return "no sequence number or clock"
    if entry.get("op") not in OPERATIONS:
        return f"an unknown operation {str(entry.get('op'))!r:.40}"
    after = entry.get("after", {})
    if not isinstance(after, dict) or not all(isinstance(seq, int) and seq >= 1 for seq in after.values()):
        return "`after` does not map writers to numbers"
    if entry["op"] in ("publish", "found", "remove", "prefer"):
        named = isinstance(entry.get("table"), str) and isinstance(entry.get("unit_id"), str)
        if not named or entry["table"] not in schema.TABLES:
            return "no unit of a known table"
        if entry["op"] != "prefer" and not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
            return "no sha256"
        if entry["op"] == "found" and not number("since", 0):
            return "no time since when it is there"
        if entry["op"] in ("publish", "found") and not isinstance(entry.get("file"), str):
            return "no file"
    if entry["op"] == "file":
        if not isinstance(entry.get("path"), str) or not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
            return "no path and sha256"
        if not number("bytes", 0) or not isinstance(entry.get("made_by", ""), str):
            return "no number of bytes, or no name of the program that wrote the file"
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or str(path) != entry["path"] or "\0" in str(path):
            return "its path is not that of a file inside the lab"
    try:
        jsonl.plain(entry)
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


class History:
    """What the entries read so far say. Their order of arrival does not matter."""

    def __init__(self, lab: Path):
        self.lab = lab
        self.clock = 0
        self.entries: dict[tuple[str, int], dict] = {}  # (writer, seq) -> entry
        self.versions: dict[tuple[str, str], dict[str, Version]] = {}  # (table, unit) -> sha256 -> version
        self.removed: dict[tuple[str, str, str], tuple] = {}  # (table, unit, sha256) -> order, why
        self.preferred: dict[tuple[str, str], int] = {}  # (table, unit) -> clock
        self.preferred_shas: dict[tuple[str, str], tuple] = {}  # (table, unit) -> order, sha256
        self.files: dict[str, tuple[tuple, dict]] = {}  # path -> order, entry
        self.heads: set[tuple[str, int]] = set()  # entries that none has seen
        self.referenced: set[tuple[str, int]] = set()
        self.damaged: list[Damage] = []
        self._lines: dict[str, jsonl.Lines] = {}
        self._stats: dict[str, tuple] = {}

    def add(self, entry: dict) -> None:
        """Take in one entry, which `_fault` has passed."""
        node = entry["writer"], entry["seq"]
        before = self.entries.get(node)
        if before is not None and not before.get("carried"):
            return
        self.entries[node] = entry
        self.clock = max(self.clock, entry["clock"])
        if node not in self.referenced:
            self.heads.add(node)
        if not entry.get("carried"):  # one that came with a bundle came without those before it
            predecessors = [*entry.get("after", {}).items(), *([(node[0], node[1] - 1)] if node[1] > 1 else [])]
            self.referenced.update(predecessors)
            self.heads.difference_update(predecessors)
        operation, table, unit = entry["op"], entry.get("table", ""), entry.get("unit_id", "")
        order = (entry["clock"], *node)
        if operation in ("publish", "found"):
            clock = entry["clock"] if operation == "publish" else min(entry["since"], entry["clock"])
            version = Version(clock, *node, table, unit, entry["sha256"], entry)
            versions_here = self.versions.setdefault((table, unit), {})
            earlier = versions_here.get(entry["sha256"])
            # what was found is known better where its publishing is logged too
            if earlier is None or (version.entry["op"] == "publish", version.order) > (
                earlier.entry["op"] == "publish",
                earlier.order,
            ):
                versions_here[entry["sha256"]] = version
        elif operation == "remove":
            key = (table, unit, entry["sha256"])
            self.removed[key] = max(self.removed.get(key, ((0,), "")), (order, str(entry.get("why", ""))))
        elif operation == "prefer":
            self.preferred[table, unit] = max(self.preferred.get((table, unit), 0), entry["clock"])
            if entry.get("sha256"):
                before_it = self.preferred_shas.get((table, unit), ((0,), ""))
                self.preferred_shas[table, unit] = max(before_it, (order, entry["sha256"]))
        elif operation == "file":
            if entry["path"] not in self.files or self.files[entry["path"]][0] < order:
                self.files[entry["path"]] = order, entry

    def latest(self, table: str, unit_id: str) -> Version | None:
        """The version of a unit that was published last."""
        return max(self.versions.get((table, unit_id), {}).values(), key=lambda version: version.order, default=None)

    def preferred_version(self, table: str, unit_id: str) -> str | None:
        """The sha256 of the version that a user preferred, unless one was published since."""
        order, sha = self.preferred_shas.get((table, unit_id), ((0,), None))
        later = any(version.order > order for version in self.versions.get((table, unit_id), {}).values())
        return None if later else sha

    def stands(self, version: Version) -> bool:
        """Whether nobody has removed it since."""
        gone = self.removed.get((version.table, version.unit_id, version.sha256))
        return gone is None or gone[0] < version.order

    def until(self, clock: int) -> "History":
        """The history as of a reading of the clock."""
        then = History(self.lab)
        for entry in self.entries.values():
            since = entry["since"] if entry["op"] == "found" else entry["clock"]
            if since <= clock:
                then.add(entry)
        return then

    def lost(self) -> list[Damage]:
        """Entries that others had seen and that are gone."""
        gone: dict[str, list[int]] = {}
        for writer, seq in self.referenced - self.entries.keys():
            gone.setdefault(writer, []).append(seq)
        return [
            Damage("log", f"log/{writer}.jsonl", f"entries are missing: {len(seqs)}, the last is number {max(seqs)}")
            for writer, seqs in sorted(gone.items())
        ]

    def _again(self, attempts: int) -> "History":
        return History(self.lab).refresh(attempts - 1) if attempts else self

    def refresh(self, attempts: int = 5) -> "History":
        """Read what is new in the lab's log; a new History where a file is gone or was changed. `attempts`: how often to
        begin again where files go while they are read."""
        folder, stats = self.lab / "log", {}
        try:
            with os.scandir(folder) as entries:
                for item in entries:
                    if item.name.endswith(".jsonl") and not item.name.startswith("."):
                        stat = item.stat()
                        stats[item.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            pass
        for name, (inode, size, _) in self._stats.items():
            if name not in stats or stats[name][0] != inode or stats[name][1] < size:
                return History(self.lab).refresh()
        for name in sorted(stats):
            if self._stats.get(name) == stats[name]:
                continue
            earlier = self._lines.get(name)
            try:
                lines = jsonl.read_new(folder / name, earlier)
            except FileNotFoundError:  # joined with others meanwhile: look again, or entries would be missed
                return self._again(attempts)
            except OSError as error:
                self.damaged.append(Damage("log", f"log/{name}", f"cannot be read ({error.strerror})"))
                continue
            if earlier and lines.lines[: len(earlier.lines)] != earlier.lines:
                return History(self.lab).refresh()
            self._stats[name], self._lines[name] = stats[name], lines
            self.damaged += [Damage("log", f"log/{name}", why) for why in lines.damage[len(earlier.damage) if earlier else 0 :]]
            for line in lines.lines[len(earlier.lines) if earlier else 0 :]:
                fault = _fault(line)
                if fault:
                    self.damaged.append(Damage("log", f"log/{name}", f"line {line.number}: {fault}; it is left out"))
                else:
                    self.add(line)
        return self

    @property
    def exists(self) -> bool:
        """Whether the lab has a log at all."""
        return bool(self._stats)


def read(lab: Path) -> History:
    """The lab's history as it stands now."""
    with _lock:
        history = _histories[str(lab)] = _histories.get(str(lab), History(lab)).refresh()
        return history


def clear_cache() -> None:
    """Forget what this process has read of logs, as a new process would."""
    with _lock:
        _histories.clear()


def close_writers() -> None:
    """Write to a new file from the next entry on, as another process would."""
    with _lock:
        for writer in _writers.values():
            writer.close()
        _writers.clear()


def append(lab: Path, entries: list[dict]) -> None:
    """Log what has been done, flushed to the disk. Each entry names its operation `op` and what that needs.

    Raises OSError where the disk refuses: what has been done is done, and whoever writes next finds and logs it."""
    if not entries:
        return
    with _lock:
        history, key = read(lab), (os.getpid(), str(lab))
        writer = _writers.get(key)
        if writer is None or not writer.is_there():
            writer = _writers[key] = jsonl.Appender(lab / "log")
        name, clock, lines = writer.path.stem, next_clock(history.clock), []
        after = {other: seq for other, seq in sorted(history.heads) if other != name}
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        for number, entry in enumerate(entries, 1):
            lines.append(seal_line({
                "writer": name, "seq": writer.lines + number, "clock": clock + number - 1, "at": at, "by": author(),
                **({"after": after} if after and number == 1 else {}), **entry}))  # fmt: skip
        writer.write(b"".join(lines))


def of_manifest(manifest: dict, folder: str, op: str = "publish") -> dict:
    """The entry that says that a unit was published in `folder` (its name under the table's), or found there."""
    entry = {
        "op": op, "table": manifest["table"], "unit_id": manifest["unit_id"], "sha256": manifest["sha256"],
        "rows": manifest["rows"], "file": f"{folder}/{manifest['file']}",
    }  # fmt: skip
    if "members" in manifest:
        return entry | {"members": len(manifest["members"])}
    made_from = manifest["made_from"]
    if len(json.dumps(made_from, ensure_ascii=False)) <= LONGEST_MADE_FROM:
        entry["made_from"] = made_from
    return entry


def carry(lab: Path, entries: list[dict]) -> None:
    """Write entries of another lab's log into this one's, under their own writers, numbers and clocks. Raises OSError."""
    lines = sorted(
        seal_line({**{key: value for key, value in entry.items() if key not in ("sum", "after")}, "carried": True})
        for entry in entries
    )
    if lines:
        name = f"carried-{ids.digest([line.decode() for line in lines])}.jsonl"
        atomic.write_bytes(lab / "log" / name, b"".join(lines))


def rows(lab: Path | str | None = None, as_of: str | None = None) -> list[dict]:
    """The log's entries in order, with who, when and what. Raises StoreError where `as_of` is not a time."""
    history = read(lab_path(lab))
    if as_of is not None:
        history = history.until(moment(as_of))
    return sorted(history.entries.values(), key=lambda entry: (entry["clock"], entry["writer"], entry["seq"]))


def in_words(entry: dict) -> list[str]:
    """An entry as what a person reads: when, who, what, of what, and why or how many rows."""
    unit = entry.get("path") or entry.get("bundle") or ""
    if "unit_id" in entry:
        unit = f"{entry['table']} {entry['unit_id']}" + (f"-{entry['sha256'][:8]}" if entry.get("sha256") else "")
    rows = f"{entry['rows']} rows" if "rows" in entry else ""
    more = entry.get("why") or entry.get("made_by") or (json.dumps(entry["brought"]) if "brought" in entry else "") or rows
    if entry.get("members"):
        more += f", joined from {entry['members']} units"
    parts = [str(entry.get("at", ""))[:19], f"{entry.get('by', '?')} ({entry['writer']})", entry["op"], str(unit), str(more)]
    return [part for part in parts if part]
