"""`salad prepare speech`: recordings with transcripts → a Lhotse Shar with FLAC, word times and licences, and the
tables `syntheses` and `samples`.

Shard by shard: decode, hear once (a CTC model or Whisper: its transcript checks the text, its log-probabilities align the words),
write. What cannot be used is set aside with its reason, in lab/speech/<name>.prepared/aside.*.jsonl. A shard that is
done is not done again; parts of the shards may go to other processes or machines.
"""

import glob
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import store
from salad.errors import SaladError
from salad.prepare.duplicates import Seen
from salad.prepare.recorded import Recorded, check_name, plain
from salad.prepare.recordings import count, not_listed, recordings, refuse_nothing
from salad.speech import SAMPLE_RATE, Utterance, shar
from salad.speech.align import align
from salad.speech.audio import Unusable
from salad.speech.check import MIN_S, CTCRecogniser, WhisperRecogniser, check_many, is_silent
from salad.speech.languages import find_language
from salad.speech.speakability import speakability
from salad.speech.spoken import spoken_form
from store import atomic

SHARD = 250  # recordings; their sound is in memory, 64 kB a second
BATCH = 100_000  # rows of `samples` a unit


@dataclass(frozen=True)
class SpeechOptions:
    """What a preparation is made with. `max_cer`: character error rate, both sides normalised, above which the text
    is held not to match; above 1 everything passes. `licence`, `domain`: of recordings that name none. `max_s`:
    longer recordings are set aside. `rows`: which share of the recordings, from and to, in the source's order (what is held
    out is then a contiguous block); `limit`: at most so many of them."""

    layout: str = "auto"
    language: str = "en"
    max_cer: float = 0.5
    max_s: float = 60.0
    licence: str = "unknown"
    domain: str | None = None
    rows: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None

    @property
    def takes_all(self) -> bool:
        return tuple(self.rows) == (0.0, 1.0) and self.limit is None

    def as_made_from(self) -> dict:
        """The options by name, without those that came later and are not used: a preparation keeps its name."""
        options = asdict(self) | {"rows": list(self.rows)}
        return {key: value for key, value in options.items() if key not in ("rows", "limit") or not self.takes_all}

    @property
    def spoken_as(self) -> str:
        """The code of the language in which numbers and the like are read. SaladError where it does not work here."""
        return "en" if self.language == "any" else find_language(self.language).code


def prepare_speech(lab: Path | str, source: Path | str, name: str, recogniser: CTCRecogniser | WhisperRecogniser,
                   options: SpeechOptions | None = None, *, part: tuple[int, int] = (0, 1), shard_size: int = SHARD,
                   progress: Callable[[int, int | None], None] | None = None) -> dict:  # fmt: skip
    """Prepare the recordings of `source` (layouts: salad.prepare.recordings) as lab/speech/<name>.

    Every recording is listed, and then kept or set aside with a reason: missing, unreadable, truncated, empty,
    silence, clipped, too long, no text, not aligned, text does not match, other language, listed twice (the first
    stays), bad number, unclear column, unclear, wrong number of fields, unsupported (docs/inputs.md). The rest is 16 kHz
    FLAC with word times by forced alignment under `recogniser` (Whisper: up to 30 s), its licence in the cut and in
    `samples`; a synthesis id is the hash of text and recording, `tts` is "recorded", `voice` the speaker.

    `part` (k, n): only shards k, k + n, …, for a process of its own; the last to finish publishes `samples`. Returns
    the counts (also in lab/speech/<name>.json once all shards are done; before, "shards" says how many are). The
    same call takes up what was killed and repairs a damaged shard. SaladError where the source lists nothing, the
    recogniser is neither a CTC nor a Whisper-type model, or the name is taken."""
    from salad.models import names

    lab, options = Path(lab), options or SpeechOptions()
    if not isinstance(recogniser, CTCRecogniser | WhisperRecogniser):
        raise SaladError(f"{recogniser.name} gives no word times: take a CTC model (a wav2vec 2.0) or a Whisper")
    check_name(name)
    refuse_nothing(source, options.layout, options.language)
    _ = options.spoken_as  # refused before anything is written
    work = lab / "speech" / f"{name}.prepared"
    made_from = {"prepare": "speech", "speech": name, "options": options.as_made_from(), "shard_size": shard_size,
                 "recogniser": names.kept(recogniser.name, lab), "source": Path(source).name}  # fmt: skip
    made_from = _begin(lab, name, work, made_from, recogniser.name)
    where = (source, options.layout, options.language, work / "tars")
    if options.takes_all:
        block, expected = slice(None), count(*where) if progress else None
    else:
        block = block_of(sum(1 for _ in recordings(*where)), options.rows, options.limit)
        expected = block.stop - block.start
    total, done, seen, files = 0, 0, 0, Seen()
    _keep_published(lab, name, work)
    wanted = itertools.islice(recordings(*where), block.start, block.stop)
    for number, listed in enumerate(_shards(wanted, shard_size)):
        files.add([recording.file for recording in listed if recording.file is not None])
        total, seen = total + 1, seen + len(listed)
        if number % part[1] == part[0]:
            _shard(lab, name, number, listed, recogniser, options, work, made_from)
        done += _outcome(work, number) is not None
        if progress:
            progress(seen, expected)
    if not total:
        raise SaladError(f"{source} lists no recording" + ("" if options.takes_all else " in the block that `rows` names"))
    # of a block of a source nothing is known about files that no list names
    unlisted = not_listed(source, options.layout, options.language, files) if options.takes_all else ()
    beside = [_aside(recording, Unusable(*recording.fault)) for recording in unlisted if recording.fault is not None]
    _write_where_new(work / "aside.not-listed.jsonl", _json_lines(beside))
    counts = _counts(work, range(total), seen, beside) | {"shards": f"{done} of {total}"}
    if done == total:
        counts |= {"texts": _publish_samples(lab, name, work, total, made_from, options), "shards": total}
        atomic.write_json(lab / "speech" / f"{name}.json", {"made_from": made_from, "counts": counts})
        for begun in (lab / "speech").glob(f".{glob.escape(name)}.??????.*"):  # shards that a killed process had begun
            shutil.rmtree(begun, ignore_errors=True)
    return counts


def block_of(total: int, share: tuple[float, float], limit: int | None) -> slice:
    """The places of a share of `total` recordings, at most `limit` of them."""
    start, end = round(share[0] * total), round(share[1] * total)
    return slice(start, end if limit is None else min(end, start + limit))


def _begin(lab: Path, name: str, work: Path, made_from: dict, heard_by: str) -> dict:
    """`made_from`, with the recogniser called as this preparation first called it; refused where it was another."""
    from salad.models.names import is_kept

    begun = work / "made_from.json"
    if begun.exists():
        there = atomic.load_json(begun)
        if is_kept(there["recogniser"], heard_by, lab):
            made_from = made_from | {"recogniser": there["recogniser"]}
        if there != made_from:
            flat, other = {**made_from, **made_from["options"]}, {**there, **there["options"]}
            differences = [f"{key} was {other.get(key)!r}" for key in flat if key != "options" and other.get(key) != flat[key]]
            raise SaladError(f"{work} was begun otherwise: {'; '.join(differences)}; take another --name")
    elif shar.folder_of(lab, name).exists():
        raise SaladError(f"{shar.folder_of(lab, name)} is there already and `salad prepare` did not make it; take another --name")
    else:
        atomic.write_json(begun, made_from)
    return made_from


def _write_where_new(path: Path, data: bytes) -> None:
    there = path.read_bytes() if path.exists() else b""
    if data != there:
        atomic.write_bytes(path, data)


def _shards(listed: Iterator[Recorded], size: int) -> Iterator[list[Recorded]]:
    """In the order of the list, each under an id of its own. The first that has an id keeps it, so that a list may grow;
    another recording (file, start, channel) of the same id is told apart by its place, and the same one again, in whatever
    shard, is marked."""
    ids, places = Seen(), Seen()
    while part := list(itertools.islice(listed, size)):
        again = places.add([f"{recording.id}\0{recording.place}" for recording in part])
        taken = ids.add([recording.id for recording in part])
        for n, (recording, same, known) in enumerate(zip(part, again, taken, strict=True)):
            if same:
                part[n] = replace(recording, fault=("listed twice", recording.id))
            elif known:
                own = f"{recording.id}@{store.ids.digest(recording.place)[:8]}" if recording.own_id else recording.place
                while ids.add([own])[0]:
                    own += "'"
                part[n] = replace(recording, id=own)
        yield part


def _keep_published(lab: Path, name: str, work: Path) -> None:
    """Remember under which name the `samples` of this preparation were published first, before any shard changes."""
    if not (work / "published.json").exists() and (lab / "speech" / f"{name}.json").exists():
        numbers = range(len(list(work.glob("texts.*.parquet"))))
        published = store.ids.digest([there["listed"] if (there := _outcome(work, n)) else None for n in numbers])
        atomic.write_json(work / "published.json", {"unit": published, "texts": published})


def _paths(work: Path, number: int) -> tuple[Path, Path]:
    return work / f"aside.{number:06d}.jsonl", work / f"texts.{number:06d}.parquet"


def _outcome(work: Path, number: int) -> dict | None:
    """Counts of a shard, from the metadata of its texts, which are written last; None where it is not done."""
    try:
        return json.loads(pq.read_schema(_paths(work, number)[1]).metadata[b"counts"])
    except (OSError, RecursionError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _shard(lab, name, number, listed: list[Recorded], recogniser, options, work: Path, made_from: dict) -> None:
    fingerprint = store.ids.digest([[plain(r.id), plain(r.text), *([plain(r.answer)] if r.answer else [])] for r in listed])
    there = _outcome(work, number)
    # a shard that is listed otherwise than before stays the same unit, which replaces the old one
    first = fingerprint if there is None else there.get("unit", there["listed"])
    unit = made_from | {"shard": number, "recordings": first}
    if (
        there is not None
        and there["listed"] == fingerprint
        and (not there["kept"] or (store.exists(lab, "syntheses", unit) and shar.damage(lab, name, number) is None))
    ):
        return
    kept, aside = _kept(listed, name, recogniser, options, made_from["recogniser"])
    aside_path, texts_path = _paths(work, number)
    if kept:
        rows = shar.write_shard(lab, name, number, kept, lambda speech: speech, job_id=lambda speech: speech.id,
                                replace=True)  # fmt: skip
        store.publish(lab, "syntheses", rows, unit)
    elif there is not None and there["kept"]:
        store.publish(lab, "syntheses", [], unit)
    atomic.write_bytes(aside_path, _json_lines(aside))
    counts = {
        "recordings": len(listed), "kept": len(kept), "aside": Counter(row["reason"] for row in aside),
        "seconds": sum(speech.utterance.duration_s for speech in kept), "listed": fingerprint,
        **({"unit": first} if first != fingerprint else {}),
        "flags": Counter(flag for speech in kept for flag in speech.utterance.flags),
        "licences": Counter(speech.custom["licence"] for speech in kept),
    }  # fmt: skip
    texts = {
        speech.sample_id: (speech.text, *(speech.custom.get(key) for key in ("licence", "domain", "answer"))) for speech in kept
    }
    table = pa.table({
        "sample_id": pa.array(list(texts), pa.string()),
        **{key: pa.array([row[i] for row in texts.values()], pa.string())
           for i, key in enumerate(("text", "licence", "domain", "answer"))},
        "shard": pa.array([number] * len(texts), pa.int64()),
    })  # fmt: skip
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"counts": json.dumps(counts)}), buffer)
    atomic.write_bytes(texts_path, buffer.getvalue().to_pybytes())


def _json_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _aside(recording: Recorded, why: Unusable) -> dict:
    """What is written of a recording that is set aside."""
    reason, detail = why.args
    return {"id": plain(recording.id), "reason": reason, "detail": plain(detail)[:200], "text": plain(recording.text)}


def _kept(listed, name, recogniser, options, asr: str) -> tuple[list[shar.Speech], list[dict]]:
    """What of a shard can be used, as speech with its words, and what cannot, with its reason."""
    aside: list[dict] = []
    decoded: list[tuple[Recorded, np.ndarray]] = []
    for recording in listed:
        try:
            decoded.append((recording, _sound(recording, options)))
        except Unusable as error:
            aside.append(_aside(recording, error))
    transcribed = recogniser.hear([samples for _, samples in decoded], [options.spoken_as] * len(decoded))
    code = options.spoken_as
    spoken = [spoken_form(recording.text, code).spoken for recording, _ in decoded]
    checks = check_many(
        [samples for _, samples in decoded],
        [recording.text for recording, _ in decoded],
        recogniser,
        spoken=spoken,
        transcripts=[transcript for transcript, _ in transcribed],
        languages=[code] * len(decoded),
    )
    kept = []
    for (recording, samples), (transcript, log_probs), check in zip(decoded, transcribed, checks, strict=True):
        try:
            if "clipping" in check.flags:
                raise Unusable("clipped", f"peak {np.abs(samples).max():.3f}")
            if check.cer > options.max_cer:
                raise Unusable("text does not match", f"CER {check.cer:.2f}, heard {transcript[:120]!r}")
            try:
                aligned = align(samples, recording.text, recogniser, log_probs, code)
            except SaladError as error:
                raise Unusable("not aligned", str(error)) from None
        except Unusable as error:
            aside.append(_aside(recording, error))
            continue
        sample_id = store.ids.sample_id(name, recording.text)
        custom = {
            "recording": recording.id, "licence": recording.licence or options.licence, "alignment_score": aligned.score,
            "domain": recording.domain or options.domain, **({"answer": recording.answer} if recording.answer else {}),
            **recording.custom,
        }  # fmt: skip
        utterance = Utterance(samples, SAMPLE_RATE, aligned.words, check.flags)
        kept.append(shar.Speech(
            store.ids.hash_id("y", sample_id, "recorded", recording.id), sample_id, recording.text, utterance, recording.speaker,
            measured=check.columns() | {"asr": asr}, custom=custom,
        ))  # fmt: skip
    return kept, aside


def _sound(recording: Recorded, options: SpeechOptions) -> np.ndarray:
    """float32 [T] at 16 kHz, or Unusable."""
    if recording.fault is not None:
        raise Unusable(*recording.fault)
    if not any(c.isalnum() for c in recording.text):
        raise Unusable("no text", recording.text)
    samples, rate = recording.load(options.max_s)
    seconds = len(samples) / rate
    if seconds < MIN_S:
        raise Unusable("empty", f"{seconds:.3f} s")
    if not np.isfinite(samples).all():
        raise Unusable("unreadable", "samples that are no numbers")
    if seconds > options.max_s:
        raise Unusable("too long", f"{seconds:.1f} s")
    samples = shar.to_rate(samples, rate)
    if is_silent(samples):
        raise Unusable("silence", f"{seconds:.2f} s without sound")
    return samples


def _counts(work: Path, numbers, listed: int, beside: list[dict]) -> dict:
    """Over the shards that are done and the files that no list names; SaladError where kept and set aside do not make up
    what there is."""
    aside: Counter[str] = Counter(row["reason"] for row in beside)
    flags: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    kept, done, seconds = 0, 0, 0.0
    for number in numbers:
        there = _outcome(work, number)
        if there is not None:
            aside.update(there["aside"])
            flags.update(there["flags"])
            licences.update(there["licences"])
            kept, done, seconds = kept + there["kept"], done + there["recordings"], seconds + there["seconds"]
    if kept + sum(aside.values()) != done + len(beside) or done > listed:
        raise SaladError(f"the counts do not add up: {kept} kept, {dict(aside)} set aside, of {done}; please report it")
    return {"listed": listed + len(beside), "kept": kept, "set aside": dict(sorted(aside.items())),
            "hours": round(seconds / 3600, 4), "flags": dict(sorted(flags.items())),
            "licences": dict(sorted(licences.items()))}  # fmt: skip


def _publish_samples(lab: Path, name: str, work: Path, total: int, made_from: dict, options: SpeechOptions) -> int:
    """Each text once, whatever number of recordings it has; returns how many."""
    from salad.prepare.duplicates import connection

    code, named = options.spoken_as, options.language
    now = store.ids.digest([there["listed"] for number in range(total) if (there := _outcome(work, number)) is not None])
    before = atomic.load_json(work / "published.json") if (work / "published.json").exists() else {"unit": now}
    unit, same = made_from | {"texts": before["unit"]}, before.get("texts") == now
    con = connection(work, "1GB")
    try:
        places = [glob.escape(str(_paths(work, number)[1])) for number in range(total)]
        reader = con.sql(
            """select * exclude (place) from (select *, row_number() over (
                partition by sample_id order by shard) as place from read_parquet(?, union_by_name = true)
            ) where place = 1 order by shard, sample_id""",
            params=[places],
        ).to_arrow_reader(BATCH)
        count = 0
        for number, batch in enumerate(reader):
            if not batch.num_rows:
                continue
            count += batch.num_rows
            if same and store.exists(lab, "samples", unit | {"part": number}):
                continue
            rows = [
                {"sample_id": row["sample_id"], "text": row["text"], "spoken": spoken_form(row["text"], code).spoken,
                 "corpus": name, "domain": row["domain"], "licence": row["licence"], "flags": sorted(reasons),
                 "reasons": json.dumps(reasons, ensure_ascii=False), "answer": row.get("answer"),
                 "language": None if named == "any" else code}
                for row in batch.to_pylist() for reasons in [speakability(row["text"], code)]
            ]  # fmt: skip
            store.publish(lab, "samples", rows, unit | {"part": number})
    finally:
        con.close()
        (work / "marks.duckdb").unlink(missing_ok=True)
    if before.get("texts") != now:
        atomic.write_json(work / "published.json", before | {"texts": now})
    return count
