"""Recordings of Lhotse manifests of cuts (LibriHeavy's among them) and of Lhotse Shar folders, one supervision each.

A cut's start, duration, channel and source are honoured; transforms and mixes (padding, noise, cuts appended to one
another) are applied by lhotse where it can here. Whatever else a manifest can ask for (a command, a URL …) sets that cut
aside, naming it. In a Shar, cuts.NNNNNN.jsonl(.gz) lists the cuts and recording.NNNNNN.tar beside it holds their audio.
"""

import base64
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from salad.errors import SaladError
from salad.prepare.lists import LICENCE, first_file, named, number_of
from salad.prepare.recorded import Recorded, not_loaded, plain
from salad.speech.audio import SHORT_S, Unusable, decode
from store import lines
from store.errors import StoreError

OVERLAP_S = 0.05  # two supervisions of a mix that overlap by more are two voices at once


class _Tar(NamedTuple):
    """The members of a Shar's tar by cut id: (offset, size) of the audio, None where the writer left a placeholder.
    fault: why the tar cannot be read."""

    path: Path
    members: dict[str, list[tuple[int, int] | None]]
    fault: str | None = None


class _Place(NamedTuple):
    """Where a cut's audio is looked for: the manifest's folder, the tar of its shard and the cut's id in that."""

    folder: Path
    tar: _Tar | None
    cut_id: str


def find(source: Path) -> list[Path]:
    """The manifests of a folder, or the one that is named. Raises SaladError where there is none."""
    manifests = sorted(source.glob("*cuts*.json*")) if source.is_dir() else [source]
    if not manifests:
        raise SaladError(f"{source} contains no *cuts*.jsonl.gz")
    return manifests


def listed(source: Path) -> Iterator[Recorded]:
    """The recordings of all manifests of `source`, in order. Audio in a Shar's tar that no cut lists is set aside."""
    folder = source if source.is_dir() else source.parent
    tars = set()
    for manifest in find(source):
        tar = _tar_of(manifest)
        tars.add(tar.path if tar else None)
        asked = set()
        for number, item, fault in _items(manifest):
            if item is not None:
                asked.add(str(item.get("id")))
            yield from _recorded(f"{manifest.name.partition('.')[0]}-{number}", number, item, fault, folder, tar)
        if tar is not None:
            for cut_id in sorted(set(tar.members) - asked):
                yield _aside("no text", f"no cut of {manifest.name} lists {cut_id}", cut_id, f"{tar.path.name}:{cut_id}")
    if source.is_dir():
        for path in sorted({*source.glob("recording.*.tar"), *source.glob("recording.*.tar.gz")} - tars):
            yield _aside("no text", f"no cuts.*.jsonl beside {path.name} lists what it holds", path.name, path.name)


def _tar_of(manifest: Path) -> _Tar | None:
    """The tar of a Shar's shard of cuts; None for a manifest that is not part of a Shar."""
    first, _, rest = manifest.name.partition(".")
    if first != "cuts" or ".jsonl" not in rest:
        return None
    stem = manifest.with_name(f"recording.{rest.partition('.jsonl')[0]}")
    path = next((p for end in (".tar", ".tar.gz") if (p := stem.with_name(stem.name + end)).is_file()), None)
    if path is None:
        return None
    members: dict[str, list[tuple[int, int] | None]] = {}
    if path.suffix == ".gz":
        return _Tar(path, members, f"{path.name} is compressed: gunzip it first")
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                cut_id, _, kind = member.name.rpartition(".")
                if kind not in ("json", "nometa"):
                    members.setdefault(plain(cut_id), []).append(
                        None if kind == "nodata" or not member.isreg() else (member.offset_data, member.size)
                    )
    except tarfile.ReadError as error:
        if not members:
            return _Tar(path, members, f"{path.name} cannot be read as a tar: {error}")
    except OSError as error:
        raise SaladError(f"{path} cannot be read: {error.strerror}") from None
    return _Tar(path, members)


def _items(path: Path) -> Iterator[tuple[int, dict | None, str | None]]:
    """(number, cut as JSON, None) of each entry of a manifest, or (number, None, why it cannot be read)."""
    try:
        if path.name.removesuffix(".gz").endswith(".json"):
            with lines.opened(path) as file:
                items = json.load(file)
            if not isinstance(items, list):
                raise SaladError(f"{path} is not a manifest of cuts: a list of them is expected")
            for number, item in enumerate(items, 1):
                good = isinstance(item, dict) and not lines.has_surrogate(item)
                yield number, item if good else None, None if good else "it is not a JSON object of characters"
        else:
            yield from lines.rows(path, lines.encoding_of(path, whole=False))  # they are large
    except StoreError as error:
        raise SaladError(str(error)) from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise SaladError(f"{path} cannot be read: {error}") from None


def _aside(reason: str, why: str, id: str, place: str) -> Recorded:
    fault = (reason, plain(why))
    return Recorded(plain(id), "", "unknown", not_loaded(fault), fault=fault, place=plain(place))


def _recorded(name: str, number: int, item: dict | None, fault: str | None, folder: Path, tar: _Tar | None) -> Iterator[Recorded]:
    """One recording for each supervision of a cut, or one that says why the cut is set aside."""
    from lhotse.serialization import deserialize_item

    if item is None:
        yield _aside("unreadable", f"line {number}: {fault}", name, name)
        return
    id = str(item.get("id") or name)
    place = _Place(folder, tar, str(item.get("id")))
    try:
        cut = deserialize_item(item)  # lhotse takes parts out of `item`
        kind = type(cut).__name__
        if kind not in ("MonoCut", "MultiCut", "MixedCut"):
            raise Unusable("unsupported", f"a {kind}: save its audio with lhotse first (cut.save_audio)")
        if not cut.has_recording:
            raise Unusable("unsupported", "it has features, or nothing, and no recording")
        if not cut.supervisions:
            raise Unusable("no text", "the cut has no supervision")
        for part in (cut, *cut.supervisions):
            if not number_of(part.duration, "duration"):
                raise Unusable("bad number", f"duration is {part.duration!r}")
            if kind != "MixedCut" and (part is cut or part.start >= 0):
                number_of(part.start, "start")
        recordings = _of_mix(cut, place) if kind == "MixedCut" else [
            _of_supervision(part, place) for part in cut.trim_to_supervisions(keep_overlapping=False)]  # fmt: skip
    except Unusable as error:
        yield _aside(error.args[0], f"line {number}: {error.args[1]}", id, name)
        return
    except Exception as error:  # lhotse's own, of many kinds, for whatever a manifest can hold
        why = f"line {number}: lhotse cannot read this cut ({type(error).__name__}: {error})"[:300]
        yield _aside("unreadable", why, id, name)
        return
    yield from recordings


def _of_supervision(cut: Any, place: _Place) -> Recorded:
    """The recording of a cut that has been trimmed to its one supervision."""
    recording = cut.recording.id
    if place.tar and any(source.type == "shar" for source in cut.recording.sources):
        recording = f"{place.tar.path.name}:{place.cut_id}"
    where = plain(f"{recording}@{cut.start:g}+{cut.duration:g}#{cut.channel}")
    return _with_text(cut.supervisions[0], str(cut.id), lambda longest_s=None: _load(cut, place, longest_s), where)


def _with_text(supervision: Any, id: str, load: Callable[..., tuple[np.ndarray, int]], place: str) -> Recorded:
    custom = supervision.custom or {}
    texts = custom.get("texts")
    text = texts[0] if isinstance(texts, list) and texts and isinstance(texts[0], str) else supervision.text
    extra = {"language": supervision.language} if supervision.language else {}
    text = " ".join((text if isinstance(text, str) else "").split())
    return Recorded(id, text, str(supervision.speaker or "unknown"), load, named(custom, LICENCE), custom=extra, place=place)


def _load(cut: Any, place: _Place, longest_s: float | None) -> tuple[np.ndarray, int]:
    """float32 [T] of a MonoCut or MultiCut, its channels averaged, and the rate in Hz. Raises Unusable."""
    wanted = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    recording, parts, rate = cut.recording, [], 0
    chosen = [(source, [c for c in wanted if c in source.channels]) for source in recording.sources]
    sources = [(source, channels, _sound(source, place)) for source, channels in chosen if channels]
    if sorted(channel for _, channels, _ in sources for channel in channels) != sorted(wanted):
        raise Unusable("unreadable", f"channel {wanted} is asked for, and its recording has {recording.channel_ids}")
    if recording.transforms:
        return _transformed(cut, wanted, {id(source): sound for source, _, sound in sources}, longest_s)
    for source, channels, sound in sources:
        indices = [source.channels.index(channel) for channel in channels]
        samples, hertz = decode(sound, cut.start, cut.duration, indices, longest_s)
        if rate and hertz != rate:
            raise Unusable("unsupported", f"its channels have rates of {rate} and {hertz} Hz")
        rate = hertz
        parts.append((len(channels), samples))
    shortest = min(len(samples) for _, samples in parts)
    mixed = np.sum([count * samples[:shortest] for count, samples in parts], axis=0) / len(wanted)
    return mixed.astype(np.float32), rate


def _sound(source: Any, place: _Place) -> Path | bytes:
    """The file of an audio source, or its bytes. Raises Unusable for a source that is not read here."""
    if source.type == "memory":
        return base64.b64decode(source.source) if isinstance(source.source, str) else bytes(source.source)
    if source.type == "shar":
        return _of_shar(place)
    if source.type != "file":
        reasons = {"command": "a command, and none is run", "url": "a URL, and nothing is fetched"}
        raise Unusable("unsupported", f"its source is {reasons.get(source.type, repr(source.type))}")
    given = Path(source.source)
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("download",) else given  # as LibriHeavy's lists have it
    folder = place.folder
    return first_file([given] if given.is_absolute() else [folder / given, folder / inside, folder.parent / given,
                                                           folder.parent / inside, given])  # fmt: skip


def _of_shar(place: _Place) -> bytes:
    tar = place.tar
    if tar is None:
        raise Unusable("missing", "its source is a place in a Lhotse Shar, and no recording.*.tar lies beside its cuts.*.jsonl")
    if tar.fault:
        raise Unusable("unreadable", tar.fault)
    members = tar.members.get(plain(place.cut_id), [])
    if len(members) > 1:
        raise Unusable("unclear", f"{tar.path.name} has {len(members)} recordings of the name {place.cut_id}")
    if not members or members[0] is None:
        raise Unusable("missing", f"{tar.path.name} has no audio of {place.cut_id}")
    offset, size = members[0]
    try:
        with open(tar.path, "rb") as file:
            data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise Unusable("missing", f"{tar.path}: {error.strerror}") from None
    if len(data) < size:
        raise Unusable("truncated", f"{tar.path.name} ends in the middle of {place.cut_id}")
    return data


def _transformed(cut: Any, wanted: list[int], sounds: dict[int, Path | bytes], longest_s: float | None) -> tuple[np.ndarray, int]:
    """The same as `_load` where the recording asks for transforms: lhotse applies them to the files that were found, each
    of which must be whole."""
    from lhotse.utils import fastcopy

    transforms = cut.recording.transforms
    names = ", ".join(str(step.get("name") if isinstance(step, dict) else type(step).__name__) for step in transforms)
    if longest_s is not None and cut.duration > longest_s:
        raise Unusable("too long", f"{cut.duration:g} s")
    for sound in sounds.values():
        decode(sound)
    sources = [fastcopy(source, source=str(sounds[id(source)])) if source.type == "file" else source
               for source in cut.recording.sources if id(source) in sounds]  # fmt: skip
    recording = fastcopy(cut.recording, sources=sources)
    try:
        samples_CT = recording.load_audio(channels=wanted, offset=cut.start, duration=cut.duration)
    except Exception as error:  # of many kinds, and of the libraries that a transform needs
        why = f"it asks for {names}, which lhotse cannot do here ({type(error).__name__}: {error})"
        raise Unusable("unsupported", plain(" ".join(why.split()))[:200]) from None
    return samples_CT.mean(0).astype(np.float32), int(recording.sampling_rate)


# ------------------------------------------------------------------------------------------------------- mixes


def _of_mix(mix: Any, place: _Place) -> list[Recorded]:
    """The recordings of a MixedCut: of each supervision, its stretch of the whole mix. Raises Unusable."""
    for track in mix.tracks:
        kind = type(track.cut).__name__
        if kind not in ("MonoCut", "PaddingCut"):
            raise Unusable("unsupported", f"a MixedCut with a {kind} among its tracks: save its audio with lhotse first")
        if kind == "MonoCut" and not track.cut.has_recording:
            raise Unusable("unsupported", "a MixedCut with a track that has features and no recording")
        number_of(track.offset, "offset")
    supervisions = sorted(mix.supervisions, key=lambda supervision: supervision.start)
    reached = -1.0
    for supervision in supervisions:
        if supervision.start < reached - OVERLAP_S:
            raise Unusable("unsupported", "a MixedCut in which two voices speak at once")
        reached = max(reached, supervision.end)
    recordings = []
    for supervision in mix.supervisions:
        start, end = max(supervision.start, 0.0), min(supervision.end, mix.duration)
        if end <= start:
            raise Unusable(
                "bad number", f"a supervision from {supervision.start:g} to {supervision.end:g} s of {mix.duration:g} s"
            )

        def load(longest_s: float | None = None, start: float = start, end: float = end) -> tuple[np.ndarray, int]:
            if longest_s is not None and end - start > longest_s:
                raise Unusable("too long", f"{end - start:g} s")
            samples, rate = _mixed(mix, place)
            return samples[round(start * rate) : round(end * rate)], rate

        id = str(mix.id if len(supervisions) == 1 else supervision.id)
        recordings.append(_with_text(supervision, id, load, f"{mix.id}@{start:g}+{end - start:g}"))
    return recordings


def _mixed(mix: Any, place: _Place) -> tuple[np.ndarray, int]:
    """float32 [T] and the rate in Hz of a MixedCut: lhotse mixes what `_load` reads of each track. Raises Unusable."""
    import soundfile
    from lhotse import AudioSource, Recording
    from lhotse.utils import fastcopy

    tracks, rates = [], set()
    for track in mix.tracks:
        cut = track.cut
        if type(cut).__name__ == "MonoCut":
            samples, rate = _load(cut, place._replace(cut_id=str(cut.id)), None)
            rates.add(rate)
            wanted = round(cut.duration * rate)
            if abs(len(samples) - wanted) > SHORT_S * rate:
                raise Unusable("truncated", f"{len(samples) / rate:.2f} of {cut.duration:g} s of the track {cut.id}")
            samples = np.pad(samples[:wanted], (0, max(wanted - len(samples), 0)))
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
            source = AudioSource("memory", [0], buffer.getvalue())
            recording = Recording(cut.id, [source], rate, wanted, wanted / rate, channel_ids=[0])
            cut = fastcopy(cut, start=0, channel=0, recording=recording, supervisions=[])
        tracks.append(fastcopy(track, cut=cut))
    if len(rates) != 1:
        raise Unusable("unsupported", f"a MixedCut whose tracks have rates of {' and '.join(map(str, sorted(rates)))} Hz")
    try:
        samples_CT = fastcopy(mix, tracks=tracks).load_audio()
    except Exception as error:  # of many kinds, and of the libraries that a transform needs
        why = f"lhotse cannot mix it here ({type(error).__name__}: {error})"
        raise Unusable("unsupported", plain(" ".join(why.split()))[:200]) from None
    return samples_CT.mean(0).astype(np.float32), rates.pop()
