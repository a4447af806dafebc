"""Recordings with their transcripts, as corpora lay them out, one after the other and none of them decoded yet.

Lhotse's recipes for LibriSpeech and Emilia hold the whole corpus in memory, leave out what is missing without a word and
stop at the first file that is broken; so those lists are read here.

| layout | what it looks like |
| --- | --- |
| librispeech | <part>/<speaker>/<chapter>/*.trans.txt and FLAC beside it |
| cuts | Lhotse manifests of cuts, *cuts*.jsonl.gz: LibriHeavy's, beside or above Libri-Light's audio (salad.prepare.cuts) |
| emilia | raw/<LANGUAGE>/*.jsonl with wav, text, speaker, language, dnsmos; or, as published, tars (the next) |
| webdataset | tars of <key>.mp3 (flac, wav, m4a …) and <key>.json or <key>.txt (salad.prepare.tars) |
| table | TSV, CSV or JSONL with a path and a text a row, Common Voice's among them (salad.prepare.lists) |
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from salad.prepare import cuts, lists, tars
from salad.prepare.duplicates import Seen
from salad.prepare.lists import NotAList
from salad.prepare.recorded import Recorded, comparable, files_under, not_loaded
from salad.speech.audio import Unusable, decode
from store import lines
from store.errors import StoreError

LICENCES = {"librispeech": "CC BY 4.0", "emilia": "CC BY-NC 4.0"}  # where neither row nor user names one
_TABLES = tuple(f"{end}{packed}" for end in (".tsv", ".csv", ".jsonl", ".ndjson") for packed in ("", ".gz"))
_LANGUAGES = {"english": "en", "eng": "en", "german": "de", "deutsch": "de", "deu": "de", "ger": "de", "chinese": "zh",
              "mandarin": "zh", "zho": "zh", "chi": "zh", "cmn": "zh", "french": "fr", "fra": "fr", "fre": "fr",
              "spanish": "es", "spa": "es", "italian": "it", "ita": "it", "japanese": "ja", "jpn": "ja", "korean": "ko",
              "kor": "ko", "portuguese": "pt", "por": "pt", "dutch": "nl", "nld": "nl", "russian": "ru", "rus": "ru",
              "polish": "pl", "pol": "pl"}  # fmt: skip


def recordings(source: Path | str, layout: str = "auto", language: str = "en", cache: Path | None = None) -> Iterator[Recorded]:
    """Everything that `source` lists, in an order that does not change. SaladError where it lists nothing.

    `language`: of Emilia's folders, and of what names its language; another's is set aside ("any": none). `cache`: a folder
    for the indices of tars, which are read once then."""
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
    resolved = layout_of(source) if layout == "auto" and source.exists() else layout
    if source.exists() and _in_tars(source, resolved):
        tars.find(source, language)
    elif next(recordings(source, layout, language), None) is None:
        raise SaladError(f"{source} lists no recording")


def not_listed(source: Path | str, layout: str, language: str, known: Seen) -> Iterator[Recorded]:
    """Audio files of a folder that its lists do not name: what the folder holds is accounted for. `known`: `Recorded.file`
    of everything that is listed. Of manifests of cuts and of tars, none."""
    source = Path(source)
    layout = layout_of(source) if layout == "auto" else layout
    if not source.is_dir() or layout in ("cuts", "webdataset") or _in_tars(source, layout):
        return
    root = source / "raw" / language.upper() if layout == "emilia" else source
    for path in sorted(_sounds(root)):
        file = path.relative_to(root).as_posix()
        inside = [file.removeprefix(f"{beside}/") for beside in lists.BESIDE if beside]
        names = [file, *inside, str(path), os.path.abspath(path)]
        if not any(known.knows([*names, *map(comparable, names)])):
            fault = ("no text", f"no list names {file}")
            yield Recorded(str(Path(file).with_suffix("")), "", "unknown", not_loaded(fault), fault=fault, place=file, file=file)


def _sounds(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path for path in files_under(root)
                    if path.name.rpartition(".")[2].lower() in tars.AUDIO and not path.name.startswith("."))  # fmt: skip


def _in_tars(source: Path, layout: str) -> bool:
    return layout == "webdataset" or layout == "emilia" and not (source / "raw").is_dir()


def layout_of(source: Path) -> str:
    """The layout of a folder or file, by the first of its signs."""
    if source.is_file():
        if source.suffix == ".tar":
            return "webdataset"
        return "cuts" if "cuts" in source.name and ".json" in source.name else "table"
    if any(path.name.endswith(".trans.txt") for path in files_under(source)):
        return "librispeech"
    if (source / "raw").is_dir():
        return "emilia"
    if next(source.glob("*cuts*.json*"), None):
        return "cuts"
    if _tables(source):
        return "table"
    if any(path.suffix == ".tar" for path in files_under(source)):
        return "webdataset"
    raise SaladError(
        f"{source} is none of the known layouts: it has no *.trans.txt (LibriSpeech), no *cuts*.jsonl.gz (LibriHeavy), "
        "no *.tar or raw/EN/*.jsonl (Emilia), and no TSV, CSV or JSONL with a path and a text a row"
    )


def other_language(named: str | None, wanted: str) -> bool:
    """Whether a recording says that it is in another language than is asked for. "en", "en-US", "eng" and "English" are
    one; a name that is not known decides nothing."""
    code = re.split("[-_ ]", (named or "").strip().lower())[0]
    code = _LANGUAGES.get(code, code)
    asked = re.split("[-_ ]", wanted.strip().lower())[0]
    return bool(code) and asked != "any" and code != asked and len(code) in (2, 3)


# ------------------------------------------------------------------------------------------------- layouts


def _librispeech(source: Path, language: str) -> Iterator[Recorded]:
    transcripts = sorted(path for path in files_under(source) if path.name.endswith(".trans.txt"))
    if not transcripts:
        raise SaladError(f"{source} holds no *.trans.txt, so it is no LibriSpeech")
    for path in transcripts:
        try:
            for line in lines.lines(path, lines.encoding_of(path)):
                if line.text is None or line.text.strip():
                    yield _of_transcript(source, path, line)
        except StoreError as error:
            raise SaladError(str(error)) from None


def _of_transcript(source: Path, path: Path, line: lines.TextLine) -> Recorded:
    name, *rest = (line.text or "").split(None, 1) or [f"{path.name.partition('.')[0]}:{line.number}"]
    text = rest[0].strip() if rest else ""
    fault = None if line.text is not None else ("unreadable", f"{path.name} line {line.number}: {line.fault}")
    if lines.has_surrogate(line.text or ""):
        fault = ("unreadable", f"{path.name} line {line.number} holds half of a surrogate pair, which is no character")
    sound = path.parent / f"{name}.flac"
    # LibriSpeech's own names tell speaker and chapter, so that they are a recording's wherever it lies
    full = name.startswith(f"{path.parent.parent.name}-{path.parent.name}-")
    file = (path.parent.relative_to(source) / f"{name}.flac").as_posix()
    return Recorded(name, _sentence_case(text), name.partition("-")[0] if "-" in name else "unknown",
                    lambda longest_s=None: decode(sound, longest_s=longest_s), LICENCES["librispeech"],
                    custom={"as_written": text}, fault=fault, place=name if full else file, own_id=full, file=file)  # fmt: skip


def _sentence_case(text: str) -> str:
    """LibriSpeech's capitals as an LLM knows text: small letters, the first and "I" large."""
    text = text.strip()
    if not text.isupper():
        return text
    small = " ".join("I" + w[1:] if w == "i" or w.startswith("i'") else w for w in text.lower().split())
    return small[:1].upper() + small[1:]


def _cuts(source: Path, language: str) -> Iterator[Recorded]:
    for recording in cuts.listed(source):
        named = recording.custom.get("language")
        if recording.fault is None and other_language(named, language):
            yield replace(recording, fault=("other language", f"{named!r}, not {language!r}"))
        else:
            yield recording


def _emilia(source: Path, language: str) -> Iterator[Recorded]:
    folder = source / "raw" / language.upper()
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise SaladError(f"{folder} holds no *.jsonl, so it is no Emilia in {language!r}")
    for path in paths:
        yield from lists.listed(path, folder, LICENCES["emilia"], unclear=False)  # start and end are of another sound


def _of_tars(source: Path, language: str, cache: Path | None) -> Iterator[Recorded]:
    for path in tars.find(source, language):
        where = (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix("").as_posix()
        for row in tars.index(path, cache).to_pylist():
            fault = None if row["reason"] is None else (row["reason"], row["detail"])
            if fault is None and other_language(row["language"], language):
                fault = ("other language", f"{row['language']!r}, not {language!r}")
            extra = {"tar": path.name} | ({} if row["dnsmos"] is None else {"dnsmos": row["dnsmos"]})
            text = " ".join((row["text"] or "").split())
            place = f"{row['id']} {text}" if row["own_id"] else f"{where}:{row['key']}"
            yield Recorded(row["id"], text, row["speaker"] or "unknown",
                           lambda longest_s=None, path=path, row=row: _of_tar(path, row, longest_s), row["licence"], None, extra,
                           fault, row["answer"], place, row["own_id"])  # fmt: skip


def _of_tar(path: Path, row: dict, longest_s: float | None) -> tuple[np.ndarray, int]:
    try:
        data = tars.read(path, row["offset"], row["size"])
    except OSError as error:
        raise Unusable("missing", f"{path}: {error.strerror}") from None
    return decode(data, row["start"] or 0.0, row["duration"], row["channels"], longest_s)


def _tables(source: Path) -> list[Path]:
    paths = (path for path in source.iterdir() if path.name.lower().endswith(_TABLES) and "cuts" not in path.name)
    return sorted(path for path in paths if path.is_file())


def _table(source: Path, language: str) -> Iterator[Recorded]:
    if source.is_file():
        yield from lists.listed(source, source.parent)
        return
    paths, refused = _tables(source), None
    if not paths:
        raise SaladError(f"{source} holds no TSV, no CSV and no JSONL")
    any_is = False
    for path in paths:  # Common Voice has a table of reports beside its lists
        try:
            for recording in lists.listed(path, path.parent):
                any_is = True
                yield recording
            any_is = True
        except NotAList as error:
            refused = refused or error
    if not any_is and refused:
        raise refused


_LAYOUTS: dict[str, Callable[..., Iterator[Recorded]]] = {
    "librispeech": _librispeech,
    "cuts": _cuts,
    "emilia": _emilia,
    "webdataset": _of_tars,
    "table": _table,
}
