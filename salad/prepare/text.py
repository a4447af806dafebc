"""`salad prepare text`: documents → passages that can be spoken → lab/corpora/<name> and the table `samples`.

Two readings. First, chunk by chunk of documents (each a file of its own, so a kill costs a chunk): language, sentences,
passages, spoken form, speakability, overlap with the evaluation tasks, MinHash signature. Then duplicates are matched
over all chunks in DuckDB, which spills to disk, and each chunk is published. Memory is a chunk a worker and DuckDB's
limit, whatever the size of the corpus.
"""

import glob
import io
import itertools
import json
import multiprocessing
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

import store
from salad.errors import SaladError
from salad.prepare import documents as reading
from salad.prepare import duplicates
from salad.prepare.documents import Document
from salad.prepare.overlap import NGRAM, Benchmarks
from salad.prepare.passages import passages, sentences, whole
from salad.prepare.recorded import check_name
from salad.speech.languages import find_language
from salad.speech.speakability import speakability
from salad.speech.spoken import spoken_form
from store import atomic

CHUNK = 5_000  # documents
SHORT_TEXT = 40  # letters: below, no language can be told
SURE = 0.9  # that a document is in another language
CORPUS = ("doc_id", "text", "source", "licence", "language", "domain")


@dataclass(frozen=True)
class TextOptions:
    """What a preparation is made with. Seconds are those of expected speech. `language`: of salad.speech.languages, or
    "any" (read as English). `characters_per_s`: of the spoken form, the language's where None. `near`: estimated Jaccard
    similarity from which a text is a near-duplicate. `licence`: of documents that name none. `tokenizer`: a folder or
    repository whose tokens are counted in `samples.n_tokens`, or None. `answer`: the column that holds what a chat answers;
    its texts are not cut, whatever `min_s`, and a text without an answer is left out."""

    column: str = "text"
    language: str = "en"
    min_s: float = 5.0
    max_s: float = 30.0
    characters_per_s: float | None = None
    ngram: int = NGRAM
    near: float = duplicates.THRESHOLD
    licence: str = "unknown"
    tokenizer: str | None = None
    answer: str | None = None

    def as_stored(self) -> dict:
        """The options by name, without those that came later and are not used: a corpus keeps its name."""
        options = asdict(self) | {"characters_per_s": self.rate}
        return {key: value for key, value in options.items() if key != "answer" or value is not None}

    @property
    def rate(self) -> float:
        """Characters of the spoken form a second."""
        return find_language(self.spoken_as).characters_per_s if self.characters_per_s is None else self.characters_per_s

    @property
    def spoken_as(self) -> str:
        """The code of the language in which texts are read aloud."""
        return "en" if self.language == "any" else find_language(self.language).code

    def __post_init__(self):
        if not 0 < self.min_s < self.max_s:
            raise SaladError(f"passages of {self.min_s:g} to {self.max_s:g} s: the first must be below the second")
        if self.rate <= 0 or self.ngram < 1 or not 0 < self.near <= 1:
            raise SaladError("characters a second and the n of n-grams must be positive, near between 0 and 1")


def prepare_text(lab: Path | str, source: Path | str, name: str, options: TextOptions | None = None, *,
                 tasks: list[str] | None = None, workers: int = 1, chunk: int = CHUNK, memory: str = "2GB",
                 progress: Callable[[int, int | None], None] | None = None) -> dict:  # fmt: skip
    """Prepare the documents of `source` (Parquet, JSONL, a folder of either, or a saved dataset) as the corpus `name`.

    Every passage is a row of `samples` with its spoken form, licence and flags (why it cannot be spoken; near-duplicate;
    benchmark overlap, with the tasks in `benchmarks`), save exact duplicates, of which the first stays. Those without
    a flag stand in lab/corpora/<name>. `tasks`: of lab/tasks, by default all. `memory`: DuckDB's limit.

    Returns the counts, which are also in lab/corpora/<name>.json; they reconcile. The same call takes up what was
    killed, does nothing where all is done, and makes again what is missing (what is damaged, after `salad verify
    --repair`). SaladError where the source cannot be read, or the name is taken."""
    check_name(name)
    lab, options = Path(lab), options or TextOptions()
    files = reading.find(source)
    benchmarks = Benchmarks.of_lab(lab, tasks, options.ngram)
    made_from = {
        "prepare": "text", "corpus": name, "options": options.as_stored(), "files": files.fingerprint(), "chunk": chunk,
        "tasks": benchmarks.tasks, "items": benchmarks.fingerprint(),
    }  # fmt: skip
    if options.tokenizer and (lab / options.tokenizer).is_dir():  # the lab's own, such as models/tokenizer
        options = replace(options, tokenizer=str(lab / options.tokenizer))
    report = lab / "corpora" / f"{name}.json"
    if report.exists():
        stored = atomic.load_json(report)
        if stored.get("made_from") != made_from:
            raise SaladError(f"{report} tells of another corpus {name!r}: {_difference(stored, made_from)}; take another --name")
        if (
            all(store.exists(lab, "samples", _unit(made_from, n)) for n in stored.get("units", []))
            and all((lab / "corpora" / name / part).is_file() for part in stored.get("parts", []))
            and store.files.fault(lab / "corpora" / name) is None
        ):
            shutil.rmtree(lab / "corpora" / f".{name}", ignore_errors=True)
            return stored["counts"]
    work = _workplace(lab, name, made_from, made_here=report.exists())
    names, parts, total = [], {}, reading.count(files) if progress else None
    for number, part, counts in _cut_all(files, source, work, options, benchmarks, workers, chunk):
        names.append(part)
        parts[number] = counts
        if progress:
            progress(sum(c["documents"]["read"] for c in parts.values()), total)
    if not names:
        raise SaladError(f"{source} holds no document")
    con = duplicates.connection(work, memory)
    try:
        con.execute("create or replace view prepared as select * from read_parquet(?)".replace("?", _listed(names)))
        duplicates.mark(con, options.near)
        published: Counter[str] = Counter()
        tasks_seen: Counter[str] = Counter()
        licences: Counter[str] = Counter()
        units: list[int] = []
        hours = 0.0
        for number, part in enumerate(names):
            rows = _marked(con, number, part)
            outcome = _publish(lab, name, number, rows, made_from)
            published.update(outcome["passages"])
            units += [number] if rows.num_rows else []
            tasks_seen.update(outcome["benchmarks"])
            licences.update(outcome["licences"])
            hours += outcome["hours"]
            if progress:
                progress(number + 1, len(names))
    finally:
        con.close()
    counts = _counts(parts.values(), published, hours, tasks_seen, licences, benchmarks)
    written = sorted(path.name for path in (lab / "corpora" / name).glob("part-*.parquet"))
    store.files.record(lab, [lab / "corpora" / name], "salad prepare text")
    atomic.write_json(report, {"made_from": made_from, "counts": counts, "units": units, "parts": written})
    shutil.rmtree(work)
    return counts


def _workplace(lab: Path, name: str, made_from: dict, made_here: bool) -> Path:
    """lab/corpora/.<name>: what is begun and not done. Refused where the name is another's."""
    work, folder = lab / "corpora" / f".{name}", lab / "corpora" / name
    begun = work / "made_from.json"
    if begun.exists():
        there = atomic.load_json(begun)
        if there != made_from:
            difference = _difference({"made_from": there}, made_from)
            raise SaladError(f"{work} was begun otherwise: {difference}; remove it, or take another --name")
        return work
    if folder.exists() and not made_here:
        raise SaladError(f"{folder} is there already and `salad prepare` did not make it; take another --name")
    atomic.write_json(begun, made_from)
    return work


def _difference(stored: dict, made_from: dict) -> str:
    there = stored.get("made_from", {})
    flat = {**made_from, **made_from["options"]}
    other = {**there, **there.get("options", {})}
    differences = [f"{key} was {other.get(key)!r}" for key in flat if key != "options" and other.get(key) != flat[key]]
    return "; ".join(text[:120] for text in differences[:3]) or "another version of the program made it"


# ------------------------------------------------------------------------------------------------- cutting


def _cut_all(files, source, work: Path, options, benchmarks, workers: int, chunk: int) -> Iterator:
    """(number, file, counts) of each chunk, in order; chunks that are there are not cut again."""
    chunks = enumerate(_chunks(reading.read(source, options.column, options.answer), chunk))
    jobs = ((number, part, _part(work, number)) for number, part in chunks)
    if workers <= 1:
        for number, part, path in jobs:
            yield number, path, _counted(path) or _cut_file(part, number, path, options, benchmarks)
        return
    waiting: deque = deque()
    language_of(""), speakability("five words are needed here", options.spoken_as)  # before forking: loaded once
    sentences("Warm.", options.spoken_as)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(options, benchmarks)) as pool:
        for number, part, path in jobs:
            there = _counted(path)
            waiting.append((number, path, there, None if there else pool.submit(_cut_there, part, number, path)))
            while len(waiting) > 2 * workers:
                yield _done(waiting)
        while waiting:
            yield _done(waiting)


def _done(waiting: deque):
    number, path, there, future = waiting.popleft()
    return number, path, there or future.result()


_own: tuple = ()


def _begin(options, benchmarks) -> None:
    global _own
    _own = (options, benchmarks)


def _cut_there(part, number, path) -> dict:
    return _cut_file(part, number, path, *_own)


def _chunks(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    documents = iter(documents)
    while part := list(itertools.islice(documents, size)):
        yield part


def _part(work: Path, number: int) -> Path:
    return work / f"chunk-{number:05d}.parquet"


def _counted(path: Path) -> dict | None:
    """The counts of a chunk that is done, or None."""
    if not path.exists():
        return None
    try:
        return json.loads(pq.read_schema(path).metadata[b"counts"])
    except (OSError, RecursionError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _cut_file(part: list[Document], number: int, path: Path, options, benchmarks) -> dict:
    table, counts = cut(part, options, benchmarks, number)
    atomic.write_bytes(path, _parquet(table.replace_schema_metadata({"counts": json.dumps(counts)})))
    return counts


def cut(part: list[Document], options: TextOptions, benchmarks: Benchmarks, number: int = 0) -> tuple[pa.Table, dict]:
    """Passages of some documents with everything that can be said of each alone, and the counts of the documents."""
    outcome: Counter[str] = Counter()
    left: Counter[str] = Counter()
    rows: list[dict] = []
    for document in part:
        text = document.text or ""
        why = document.fault or _unwanted(text, options.language)
        if why is None:
            if options.answer is not None:
                pieces, rest = whole(text, options.max_s, options.rate, options.spoken_as)
            else:
                pieces, rest = passages(text, options.min_s, options.max_s, options.rate, options.spoken_as)
            left.update(rest)
            rows += [_row(document, passage, options, benchmarks) for passage in pieces]
            why = "kept" if pieces else "no passage"
        outcome[why] += 1
    texts = [row["text"] for row in rows]
    if options.tokenizer and rows:
        counted = _tokenizer(options.tokenizer)(texts, add_special_tokens=False)["input_ids"]
        for row, ids in zip(rows, counted, strict=True):
            row["n_tokens"] = len(ids)
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    first = number << 32
    table = table.append_column("n", pa.array(range(first, first + len(rows)), pa.int64()))
    prints = [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
    table = table.append_column("fingerprint", pa.array(prints, pa.uint64()))
    for name, column in duplicates.columns(duplicates.signatures(texts)).items():
        table = table.append_column(name, column)
    documents = {"read": len(part), **outcome}
    return table, {"documents": documents, "left over": dict(left), "passages": len(rows)}


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in (*CORPUS, "answer", "spoken", "reasons")),
        ("flags", pa.list_(pa.string())),
        ("benchmarks", pa.list_(pa.string())),
        ("n_tokens", pa.int32()),
        ("seconds", pa.float64()),
    ]
)


def _row(document: Document, passage, options: TextOptions, benchmarks: Benchmarks) -> dict:
    text = (document.text or "")[passage.start : passage.end]
    reasons = speakability(text, options.spoken_as)
    overlaps = benchmarks.overlaps(text if document.answer is None else f"{text} {document.answer}")
    if overlaps:
        reasons["benchmark overlap"] = ", ".join(overlaps)
    return {
        "doc_id": document.doc_id, "text": text, "answer": document.answer, "source": document.source,
        "licence": document.licence or options.licence,
        "language": None if options.language == "any" else options.spoken_as, "domain": document.domain,
        "spoken": spoken_form(text, options.spoken_as).spoken, "reasons": json.dumps(reasons, ensure_ascii=False),
        "flags": sorted(reasons), "benchmarks": overlaps, "n_tokens": None, "seconds": passage.seconds,
    }  # fmt: skip


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """Language of a text (its first 2,000 characters) as ISO 639-1, and how sure that is (py3langid)."""
    language, sure = _identifier().classify(text[:2_000])
    return language, float(sure)


def _unwanted(text: str, language: str) -> str | None:
    if language == "any" or sum(c.isalpha() for c in text[:2_000]) < SHORT_TEXT:
        return None
    detected, sure = language_of(text)
    return "other language" if detected != find_language(language).code and sure >= SURE else None


@cache
def _tokenizer(name: str):
    from salad.models.speech_lm import load_tokenizer

    return load_tokenizer(name, ".")


# ---------------------------------------------------------------------------------------------- publishing


def _listed(names: list[Path]) -> str:
    return "[" + ", ".join("'" + glob.escape(str(path)).replace("'", "''") + "'" for path in names) + "]"


def _marked(con, number: int, path: Path) -> pa.Table:
    """A chunk's passages without exact duplicates (how many: in the metadata), near-duplicates flagged."""
    low, high = number << 32, (number + 1) << 32
    exact = {n for (n,) in con.execute("select n from exact where n >= ? and n < ?", [low, high]).fetchall()}
    near = {n: (doc, similarity) for n, doc, similarity in con.execute(
        "select near.n, p.doc_id, similarity from near join prepared p on p.n = near.of where near.n >= ? and near.n < ?",
        [low, high]).fetchall()}  # fmt: skip
    names = [field.name for field in _SCHEMA]
    rows = pq.read_table(path, columns=[*names, "n"]).to_pylist()
    kept = []
    for row in rows:
        n = row.pop("n")
        if n in exact:
            continue
        if n in near:
            reasons = json.loads(row["reasons"]) | {"near-duplicate": f"{near[n][1]:.2f} like {near[n][0]}"}
            row |= {"reasons": json.dumps(reasons, ensure_ascii=False), "flags": sorted(reasons)}
        kept.append(row)
    return pa.Table.from_pylist(kept, schema=_SCHEMA).replace_schema_metadata({"exact": str(len(rows) - len(kept))})


def _publish(lab: Path, name: str, number: int, rows: pa.Table, made_from: dict) -> dict:
    """One chunk into `samples` and lab/corpora/<name>."""
    passages_kept = rows.to_pylist()
    passages: Counter[str] = Counter()
    benchmarks: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    clean: list[dict] = []
    hours = 0.0
    passages["exact duplicate"] = int(rows.schema.metadata[b"exact"])
    for row in passages_kept:
        row["sample_id"], row["corpus"] = store.ids.sample_id(name, row["text"]), name
        passages["flagged" if row["flags"] else "clean"] += 1
        for flag in row["flags"]:
            passages[f"flag {flag}"] += 1
        benchmarks.update(row["benchmarks"])
        licences[row["licence"]] += 1
        if not row["flags"]:
            clean.append(row)
            hours += row["seconds"] / 3600
    unit = _unit(made_from, number)
    if passages_kept and not store.exists(lab, "samples", unit):
        wanted = ("sample_id", "text", "spoken", "corpus", "domain", "n_tokens", "licence", "flags", "doc_id",
                  "language", "reasons", "benchmarks", "answer")  # fmt: skip
        store.publish(lab, "samples", [{key: row[key] for key in wanted} for row in passages_kept], unit)
    columns = CORPUS if made_from["options"].get("answer") is None else (*CORPUS, "answer")
    corpus = pa.Table.from_pylist(clean, schema=pa.schema([(key, pa.string()) for key in columns]))
    if clean:
        atomic.write_bytes(lab / "corpora" / name / f"part-{number:05d}.parquet", _parquet(corpus))
    return {"passages": passages, "benchmarks": benchmarks, "licences": licences, "hours": hours}


def _unit(made_from: dict, number: int) -> dict:
    """What the `samples` of a chunk are made from."""
    return made_from | {"part": number}


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _counts(parts, published: Counter, hours: float, tasks: Counter, licences: Counter, benchmarks) -> dict:
    """All counts; SaladError where they do not add up, which would be an error of this program."""
    documents: Counter[str] = Counter()
    left: Counter[str] = Counter()
    cut_out = 0
    for part in parts:
        documents.update(part["documents"])
        left.update(part["left over"])
        cut_out += part["passages"]
    flags = {key.removeprefix("flag "): n for key, n in sorted(published.items()) if key.startswith("flag ")}
    counts = {
        "documents": dict(sorted(documents.items())),
        "left over": dict(sorted(left.items())),
        "passages": {"cut": cut_out} | {key: published[key] for key in ("clean", "flagged", "exact duplicate")},
        "flags": flags,
        "benchmarks": dict(sorted(tasks.items())),
        "items too short to be looked for": benchmarks.too_short,
        "licences": dict(sorted(licences.items())),
        "hours": round(hours, 4),
    }
    read = documents["read"]
    if read != sum(documents.values()) - read or cut_out != sum(counts["passages"].values()) - cut_out:
        raise SaladError(f"the counts do not add up, so something was lost: {counts}; please report it")
    return counts
