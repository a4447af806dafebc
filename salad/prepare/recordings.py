"""Recordings with their transcripts, as corpora lay them out, one after the other and none of them decoded yet.

Manifests of cuts are read by lhotse, a line at a time. Its recipes for LibriSpeech and Emilia hold the whole corpus in
memory, leave out what is missing without a word and stop at the first file that is broken; so those lists are read here.

| layout | what it looks like |
| --- | --- |
| librispeech | <part>/<speaker>/<chapter>/*.trans.txt and FLAC beside it |
| cuts | Lhotse manifests of cuts, *cuts*.jsonl.gz: LibriHeavy's, beside or above Libri-Light's audio |
| emilia | raw/<LANGUAGE>/*.jsonl with wav, text, speaker, language, dnsmos; or, as published, tars (the next) |
| webdataset | tars of <key>.mp3 (flac, wav, ogg, opus) and <key>.json: salad.prepare.tars |
| table | TSV or JSONL with a path and a text a row, Common Voice's among them |
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from salad.prepare import tars
from salad.speech.audio import Unusable, decode

LICENCES = {"librispeech": "CC BY 4.0", "emilia": "CC BY-NC 4.0"}  # where neither row nor user names one
AUDIO = ("audio", "path", "wav", "audio_filepath", "file_name", "file", "filename")
TEXT = ("text", "sentence", "transcript", "transcription")
SPEAKER = ("speaker", "speaker_id", "client_id", "voice")
LICENCE = ("licence", "license")


@dataclass(frozen=True)
class Recorded:
    """A recording that is listed. `load()` gives float32 [T] and its rate in Hz, or raises Unusable. `fault`: the
    (reason, detail) for which it is set aside unheard; `answer`: what a chat answers to the text."""

    id: str
    text: str
    speaker: str
    load: Callable[[], tuple[np.ndarray, int]]
    licence: str | None = None
    domain: str | None = None
    custom: dict = field(default_factory=dict)
    fault: tuple[str, str] | None = None
    answer: str | None = None


def recordings(source: Path | str, layout: str = "auto", language: str = "en", cache: Path | None = None) -> Iterator[Recorded]:
    """Everything that `source` lists, in an order that does not change. SaladError where it lists nothing.

    `language`: of Emilia's folders. `cache`: a folder for the indices of tars, which are read once then."""
    source = Path(source)
    if not source.exists():
        raise SaladError(f"{source} does not exist")
    layout = layout_of(source) if layout == "auto" else layout
    if layout not in _LAYOUTS:
        raise SaladError(f"no layout {layout!r}; there are auto, {', '.join(_LAYOUTS)}")
    if _in_tars(source, layout):
        yield from _of_tars(source, language, cache)
    else:
        yield from _LAYOUTS[layout](source, language)


def count(source: Path | str, layout: str = "auto", language: str = "en", cache: Path | None = None) -> int | None:
    """How many recordings there are, for an estimate of the time left: about, in tars; None for cuts, which take long
    to read twice."""
    source = Path(source)
    layout = layout_of(source) if layout == "auto" and source.exists() else layout
    if _in_tars(source, layout):
        return tars.estimate(source, language, cache)
    return None if layout == "cuts" else sum(1 for _ in recordings(source, layout, language))


def refuse_nothing(source: Path | str, layout: str = "auto", language: str = "en") -> None:
    """SaladError where `source` lists no recording, before anything is loaded or written for it."""
    source = Path(source)
    found = layout_of(source) if layout == "auto" and source.exists() else layout
    if source.exists() and _in_tars(source, found):
        tars.find(source, language)
    elif next(recordings(source, layout, language), None) is None:
        raise SaladError(f"{source} lists no recording")


def _in_tars(source: Path, layout: str) -> bool:
    return layout == "webdataset" or layout == "emilia" and not (source / "raw").is_dir()


def layout_of(source: Path) -> str:
    """The layout of a folder or file, by the first of its signs."""
    if source.is_file():
        if source.suffix == ".tar":
            return "webdataset"
        return "cuts" if "cuts" in source.name and ".json" in source.name else "table"
    if next(source.rglob("*.trans.txt"), None):
        return "librispeech"
    if (source / "raw").is_dir():
        return "emilia"
    if next(source.glob("*cuts*.json*"), None):
        return "cuts"
    if _tables(source):
        return "table"
    if next(source.rglob("*.tar"), None):
        return "webdataset"
    raise SaladError(
        f"{source} is none of the known layouts: it has no *.trans.txt (LibriSpeech), no *cuts*.jsonl.gz (LibriHeavy), "
        "no *.tar or raw/EN/*.jsonl (Emilia), and no TSV or JSONL with a path and a text a row"
    )


# ------------------------------------------------------------------------------------------------- layouts


def _librispeech(source: Path, language: str) -> Iterator[Recorded]:
    lists = sorted(source.rglob("*.trans.txt"))
    if not lists:
        raise SaladError(f"{source} holds no *.trans.txt, so it is no LibriSpeech")
    for transcripts in lists:
        with open(transcripts, encoding="utf-8") as lines:
            for line in lines:
                name, _, text = line.strip().partition(" ")
                if name:
                    path = transcripts.parent / f"{name}.flac"
                    yield Recorded(name, _sentence_case(text), name.partition("-")[0], lambda path=path: decode(path),
                                   LICENCES["librispeech"], custom={"as_written": text})  # fmt: skip


def _sentence_case(text: str) -> str:
    """LibriSpeech's capitals as an LLM knows text: small letters, the first and "I" large."""
    text = text.strip()
    if not text.isupper():
        return text
    small = " ".join("I" + w[1:] if w == "i" or w.startswith("i'") else w for w in text.lower().split())
    return small[:1].upper() + small[1:]


def _cuts(source: Path, language: str) -> Iterator[Recorded]:
    from lhotse import CutSet

    folder = source if source.is_dir() else source.parent
    lists = sorted(source.glob("*cuts*.json*")) if source.is_dir() else [source]
    if not lists:
        raise SaladError(f"{source} holds no *cuts*.jsonl.gz")
    for manifest in lists:
        for cut in CutSet.from_file(manifest).trim_to_supervisions(keep_overlapping=False):
            said = next(iter(cut.supervisions), None)
            texts = (said.custom or {}).get("texts") if said is not None else None
            text = (texts[0] if texts else said.text if said is not None else "") or ""
            speaker = (said.speaker if said is not None else None) or "unknown"
            licence = _named(said.custom or {}, LICENCE) if said is not None else None
            yield Recorded(cut.id, " ".join(text.split()), speaker, lambda cut=cut: _of_cut(cut, folder), licence)


def _of_cut(cut, folder: Path) -> tuple[np.ndarray, int]:
    source = cut.recording.sources[0] if cut.has_recording else None
    if source is None or source.type != "file":
        raise Unusable("unreadable", f"{cut.id} has no audio file")
    given = Path(source.source)
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("download",) else given  # as LibriHeavy's lists have it
    places = [given] if given.is_absolute() else [folder / given, folder / inside, folder.parent / given,
                                                  folder.parent / inside, given]  # fmt: skip
    return decode(next((path for path in places if path.is_file()), places[0]), cut.start, cut.duration)


def _emilia(source: Path, language: str) -> Iterator[Recorded]:
    folder = source / "raw" / language.upper()
    lists = sorted(folder.glob("*.jsonl"))
    if not lists:
        raise SaladError(f"{folder} holds no *.jsonl, so it is no Emilia in {language!r}")
    for path in lists:
        yield from _rows(path, folder, LICENCES["emilia"])


def _of_tars(source: Path, language: str, cache: Path | None) -> Iterator[Recorded]:
    for path in tars.find(source, language):
        for row in tars.index(path, cache).to_pylist():
            fault = None if row["reason"] is None else (row["reason"], row["detail"])
            if fault is None and (row["language"] or language).lower() != language.lower():
                fault = ("other language", f"{row['language']!r}, not {language!r}")
            extra = {"tar": path.name} | ({} if row["dnsmos"] is None else {"dnsmos": row["dnsmos"]})
            yield Recorded(row["id"], " ".join((row["text"] or "").split()), row["speaker"] or "unknown",
                           lambda path=path, row=row: _of_tar(path, row), row["licence"], None, extra, fault)  # fmt: skip


def _of_tar(path: Path, row: dict) -> tuple[np.ndarray, int]:
    try:
        data = tars.read(path, row["offset"], row["size"])
    except OSError as error:
        raise Unusable("missing", f"{path}: {error.strerror}") from None
    return decode(data, 0.0, row["duration"])


def _tables(source: Path) -> list[Path]:
    return sorted(path for end in ("*.tsv", "*.jsonl", "*.ndjson") for path in source.glob(end) if "cuts" not in path.name)


def _table(source: Path, language: str) -> Iterator[Recorded]:
    lists = [source] if source.is_file() else _tables(source)
    if not lists:
        raise SaladError(f"{source} holds no TSV and no JSONL")
    for path in lists:
        yield from _rows(path, path.parent, None)


def _rows(path: Path, folder: Path, licence: str | None) -> Iterator[Recorded]:
    known = False
    for number, row in enumerate(_read(path), 1):
        audio, text = _named(row, AUDIO), _named(row, TEXT)
        if not known and not (any(k in row for k in AUDIO) and any(k in row for k in TEXT)):
            raise SaladError(
                f"{path}: a row needs a path ({', '.join(AUDIO)}) and a text ({', '.join(TEXT)}); it has {', '.join(row)}"
            )
        known = True
        name = _named(row, ("id", "utt_id")) or (Path(audio).stem if audio else f"{path.stem}-{number}")
        start_s, seconds = row.get("start_s") or 0, row.get("duration")
        extra = {"dnsmos": row["dnsmos"]} if "dnsmos" in row else {}
        yield Recorded(name, " ".join((text or "").split()), _named(row, SPEAKER) or "unknown",
                       lambda audio=audio, a=float(start_s), s=seconds: _at(folder, audio, a, s),
                       _named(row, LICENCE) or licence, _named(row, ("domain",)), extra,
                       answer=_named(row, ("answer",)))  # fmt: skip


def _at(folder: Path, audio: str | None, start_s: float, seconds) -> tuple[np.ndarray, int]:
    if not audio:
        raise Unusable("missing", "the row names no file")
    places = [folder / audio, folder / "clips" / audio, folder / "wavs" / audio]
    return decode(next((p for p in places if p.is_file()), places[0]), start_s, float(seconds) if seconds else None)


def _read(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".tsv":
            yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise SaladError(f"{path} line {number} is not JSON ({error}): mend or remove it") from None
                yield row


def _named(row: dict, names: tuple[str, ...]) -> str | None:
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), None)


_LAYOUTS = {"librispeech": _librispeech, "cuts": _cuts, "emilia": _emilia, "webdataset": _of_tars, "table": _table}
