"""Recordings of Lhotse manifests of cuts (LibriHeavy's among them), one supervision each.

A cut's part, channel and source are honoured, and of its transforms Resample and Volume; what else a manifest can ask of a
recording (a mix, padding, a command, a URL …) sets that cut aside by name.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from salad.errors import SaladError
from salad.prepare.lists import LICENCE, first_file, named, number_of
from salad.prepare.recorded import Recorded, plain
from salad.speech.audio import Unusable, decode
from store import lines
from store.errors import StoreError


def find(source: Path) -> list[Path]:
    """The manifests of a folder, or the one that is named. SaladError where there is none."""
    found = sorted(source.glob("*cuts*.json*")) if source.is_dir() else [source]
    if not found:
        raise SaladError(f"{source} holds no *cuts*.jsonl.gz")
    return found


def listed(source: Path) -> Iterator[Recorded]:
    """The recordings of all manifests of `source`, in order."""
    folder = source if source.is_dir() else source.parent
    for manifest in find(source):
        for number, item, fault in _items(manifest):
            yield from _recorded(f"{manifest.name.partition('.')[0]}-{number}", number, item, fault, folder)


def _items(path: Path) -> Iterator[tuple[int, dict | None, str | None]]:
    try:
        if path.name.removesuffix(".gz").endswith(".json"):
            with lines.opened(path) as file:
                found = json.load(file)
            if not isinstance(found, list):
                raise SaladError(f"{path} is no manifest of cuts: a list of them is expected")
            for number, item in enumerate(found, 1):
                good = isinstance(item, dict) and not lines.has_surrogate(item)
                yield number, item if good else None, None if good else "it is no JSON object of characters"
        else:
            yield from lines.rows(path, lines.encoding_of(path, whole=False))  # they are large
    except StoreError as error:
        raise SaladError(str(error)) from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise SaladError(f"{path} cannot be read: {error}") from None


def _recorded(name: str, number: int, item: dict | None, fault: str | None, folder: Path) -> Iterator[Recorded]:
    from lhotse.serialization import deserialize_item

    def aside(reason: str, why: str, id: str = name) -> Recorded:
        return Recorded(plain(id), "", "unknown", lambda longest_s=None: None, fault=(reason, plain(why)), place=f"{name}")

    if item is None:
        yield aside("unreadable", f"line {number}: {fault}")
        return
    id = str(item.get("id") or name)
    try:
        cut = deserialize_item(item)  # lhotse takes parts out of `item`
        kind = type(cut).__name__
        if kind not in ("MonoCut", "MultiCut"):
            yield aside("unsupported", f"a {kind}: save its audio with lhotse first (cut.save_audio)", id)
            return
        if not cut.has_recording:
            yield aside("unsupported", "it has features, or nothing, and no recording", id)
            return
        if not cut.supervisions:
            yield aside("no text", "the cut has no supervision", id)
            return
        for one in (cut, *cut.supervisions):
            if not number_of(one.duration, "duration"):
                raise Unusable("bad number", f"duration is {one.duration!r}")
            if one is cut or one.start >= 0:
                number_of(one.start, "start")
        trimmed = list(cut.trim_to_supervisions(keep_overlapping=False))
    except Unusable as error:
        yield aside(error.args[0], f"line {number}: {error.args[1]}", id)
        return
    except Exception as error:  # lhotse's own, of many kinds, for whatever a manifest can hold
        yield aside("unreadable", f"line {number}: lhotse cannot read this cut ({type(error).__name__}: {error})"[:300], id)
        return
    for one in trimmed:
        yield _of_supervision(one, folder)


def _of_supervision(cut, folder: Path) -> Recorded:
    said = cut.supervisions[0]
    custom = said.custom or {}
    texts = custom.get("texts")
    text = texts[0] if isinstance(texts, list) and texts and isinstance(texts[0], str) else said.text
    place = f"{cut.recording.id}@{cut.start:g}+{cut.duration:g}#{cut.channel}"
    extra = {"language": said.language} if said.language else {}
    return Recorded(
        str(cut.id), " ".join((text if isinstance(text, str) else "").split()), str(said.speaker or "unknown"),
        lambda longest_s=None: _load(cut, folder, longest_s), named(custom, LICENCE), custom=extra, place=place,
    )  # fmt: skip


def _load(cut, folder: Path, longest_s: float | None) -> tuple[np.ndarray, int]:
    wanted = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    recording, parts, rate = cut.recording, [], 0
    sources = [(source, [c for c in wanted if c in source.channels]) for source in recording.sources]
    sources = [(source, channels, _sound(source, folder)) for source, channels in sources if channels]
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
    mixed = sum(count * samples[:shortest] for count, samples in parts) / len(wanted)
    return mixed.astype(np.float32), rate


def _sound(source, folder: Path) -> Path | bytes:
    if source.type == "memory":
        return base64.b64decode(source.source) if isinstance(source.source, str) else bytes(source.source)
    if source.type != "file":
        told = {"command": "a command, and none is run", "url": "a URL, and nothing is fetched",
                "shar": "a place in a Lhotse Shar: give its tars, or save it as files"}  # fmt: skip
        raise Unusable("unsupported", f"its source is {told.get(source.type, repr(source.type))}")
    given = Path(source.source)
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("download",) else given  # as LibriHeavy's lists have it
    return first_file([given] if given.is_absolute() else [folder / given, folder / inside, folder.parent / given,
                                                           folder.parent / inside, given])  # fmt: skip


def _transformed(cut, wanted: list[int], sounds: dict[int, Path | bytes], longest_s: float | None) -> tuple[np.ndarray, int]:
    """As lhotse does it, from the files that were found, each of which must be whole."""
    from lhotse.utils import fastcopy

    names = ", ".join(str(one.get("name") if isinstance(one, dict) else type(one).__name__) for one in cut.recording.transforms)
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
