"""Where a real study's data come from: the data folder, what of a source is taken, and what is missing."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from salad.errors import SaladError
from salad.prepare import block_of, documents
from salad.study.config import Source, Study, TaskSource, TextSource

DATA = "SALAD_DATA"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside a checkout, where one is kept


def data_folder() -> Path | None:
    """The folder under which sources lie: SALAD_DATA, else ../shared/data beside the checkout where it exists, else None.

    SaladError where SALAD_DATA is not a folder."""
    named = os.environ.get(DATA)
    if named:
        if not Path(named).is_dir():
            raise SaladError(f"the data folder {named} is not a folder; name the one that holds your data with --data")
        return Path(named).resolve()
    return BESIDE if BESIDE.is_dir() else None


def resolve(source: Source, what: str) -> Path:
    """The file or folder of a source. SaladError, saying how to get it, where it is missing."""
    path = Path(source.path)
    folder = data_folder()
    if not path.is_absolute() and folder is not None:
        path = folder / path
    if path.is_absolute() and path.exists():
        return path
    raise SaladError(f"{what}: {missing(source)}")


def missing(source: Source) -> str | None:
    """What is to be done about a source that is not there, in one line; None where it is there."""
    path, folder = Path(source.path), data_folder()
    if not path.is_absolute():
        if folder is not None and (folder / path).exists():
            return None
        where = f"{folder} has no {path}" if folder is not None else f"there is no data folder, and so no {path}"
    elif path.exists():
        return None
    else:
        where = f"there is no {path}"
    size = f" ({source.gb:g} GB)" if source.gb else ""
    how = f"get it{size}: {source.get}" if source.get else "name another path"
    return f"{where}; {how}; then name the folder that holds it with --data or {DATA}"


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on a document's id alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def caps(size_by_domain: dict[str, int], share: float) -> float:
    """Characters that a domain may give so that none gives more than `share` of all: the largest such number.

    SaladError where there are too few domains for that."""
    if share >= 1:
        return float("inf")
    if len(size_by_domain) * share < 1:
        raise SaladError(f"max_domain_share {share:g}: {len(size_by_domain)} domains cannot each give at most that share")
    low, high = 0.0, float(max(size_by_domain.values()))
    for _ in range(60):
        middle = (low + high) / 2
        fits = middle <= share * sum(min(size, middle) for size in size_by_domain.values())
        low, high = (middle, high) if fits else (low, middle)
    return low


def texts(lab: Path | str, source: TextSource, name: str) -> tuple[Path, str]:
    """(the documents to be prepared, what was taken in words): the source itself, or lab/.study/sources/<name>.jsonl with the
    documents that its `documents`, `max_domain_share` and `limit` let through, in their order.

    The source is read twice, and of each document only its place, domain and length are held."""
    path = resolve(source, name)
    if source.documents == (0.0, 1.0) and source.max_domain_share >= 1 and source.limit is None:
        return path, "all documents"
    low, high = source.documents
    in_range: list[tuple[float, int, str, int]] = []  # hash, place, domain, characters
    sizes: Counter[str] = Counter()
    faults = 0
    for place, document in enumerate(documents.read(path, source.column)):
        if document.fault is not None or not document.text:
            faults += 1
            continue
        key = _hash(document.doc_id)
        if low <= key < high:
            in_range.append((key, place, document.domain or "", len(document.text)))
            sizes[document.domain or ""] += len(document.text)
    if not in_range:
        raise SaladError(f"{name}: {path} has no document in the range {low:g} to {high:g} of `documents`")
    cap = caps(dict(sizes), source.max_domain_share)
    spent: Counter[str] = Counter()
    taken: set[int] = set()
    for _, place, domain, size in sorted(in_range):
        if len(taken) == source.limit:
            break
        if not spent[domain] or spent[domain] + size <= cap:
            spent[domain] += size
            taken.add(place)
    target = Path(lab) / ".study" / "sources" / f"{name}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        for place, document in enumerate(documents.read(path, source.column)):
            if place in taken:
                row = {"doc_id": document.doc_id, source.column: document.text, "source": document.source,
                       "licence": document.licence or source.licence, "domain": document.domain}  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(beside, target)
    unreadable = f", {faults} empty or unreadable" if faults else ""
    return target, f"{len(taken):,} of {len(in_range):,} documents in range{unreadable}"


def items(source: TaskSource) -> list[dict]:
    """The rows of a task's file as lab/tasks holds them, converted from its format. SaladError where a row is broken."""
    path = resolve(source, f"task {source.name}")
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
        if source.format == "piqa":
            labels = path.with_suffix(".labels").read_text().split()
            if len(labels) != len(rows):
                raise SaladError(f"task {source.name}: {len(rows)} items and {len(labels)} labels beside {path}")
            rows = [row | {"label": int(label)} for row, label in zip(rows, labels, strict=True)]
        elif source.format == "arc":
            rows = [_arc(row) for row in rows]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SaladError(f"task {source.name}: {path} is not in the format {source.format!r}: {error}") from None
    rows = rows[block_of(len(rows), source.rows, source.limit)]
    if not rows:
        raise SaladError(f"task {source.name}: {path} has no item in the range that `rows` names")
    return rows


def _arc(row: dict) -> dict:
    choices = row["question"]["choices"]
    return {
        "id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
        "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]},
    }  # fmt: skip


def of_study(config: Study) -> list[tuple[str, Source]]:
    """(what for, source) of every file that a study reads; tasks that the harness downloads have none."""
    named: list[tuple[str, Source | None]] = [
        ("text", config.text),
        ("held-out text", config.heldout_text),
        ("held-out speech", config.heldout),
    ]
    named += [(f"natural speech ({name})", source) for name, source in config.natural_speech.items()]
    named += [(f"task {task.name}", task) for task in config.tasks if task.path]
    return [(what, source) for what, source in named if source is not None]
