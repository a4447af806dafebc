"""Speech on disk: Lhotse Shar (uncompressed JSONL cuts + tar of 16-bit FLAC at 16 kHz), written shard by shard.

A shard exists when its `cuts.NNNNNN.jsonl` does: both files are written into a hidden folder beside the Shar, flushed
and renamed, the tar first. So writing can be killed at any time and taken up by the same call. The folder holds
nothing else, and `lhotse.CutSet.from_shar(in_dir=folder)` reads it.
"""

import fcntl
import glob
import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import store
from salad import interrupts
from salad.errors import SaladError
from salad.speech.utterance import SAMPLE_RATE, Utterance, Word
from store.atomic import fsync_folder
from store.ids import digest

if TYPE_CHECKING:
    from lhotse import MonoCut


@dataclass
class Speech:
    """One utterance to be written. `id`: the synthesis id, or a recording's own id for natural speech. `voice`: the
    speaker. `text`: what the LLM reads; the utterance's words refer to it. `measured`: cer, wer, asr and the like,
    further columns of the store's `syntheses`. `custom`: anything JSON-able, kept with the cut (a licence …)."""

    id: str
    sample_id: str
    text: str
    utterance: Utterance
    voice: str
    tts: str = "recorded"
    seed: int = 0
    measured: dict = field(default_factory=dict)
    custom: dict = field(default_factory=dict)


def folder_of(lab: Path | str, name: str) -> Path:
    """The folder of the speech `name` of a lab, lab/speech/<name>, whether it is there or not."""
    return Path(lab, "speech", name)


def _paths(folder: Path, shard: int) -> tuple[Path, Path]:
    return folder / f"cuts.{shard:06d}.jsonl", folder / f"recording.{shard:06d}.tar"


def to_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    """float32 [T] at `rate` Hz -> float32 at 16 kHz, in [-1, 1]."""
    if rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.clip(samples, -1, 1).astype(np.float32)


def write(
    lab: Path | str,
    name: str,
    jobs: Sequence,
    make: Callable[..., Speech | None],
    *,
    job_id: Callable[..., str],
    shard_size: int = 200,
    progress: Callable[[int], None] | None = None,
) -> list[dict]:
    """Write `make(job)` of every job to lab/speech/<name>, `shard_size` jobs a shard; None leaves a job out.

    Shards that are there are not made again, unless they are damaged or have grown. `job_id(job)` names a job (a
    synthesis id). `progress(n)` is called with the number of jobs done. Returns the rows of `syntheses`, in order.
    Raises SaladError where a shard holds other speech than these jobs."""
    rows = []
    for shard, start in enumerate(range(0, len(jobs), shard_size)):
        part = jobs[start : start + shard_size]
        rows += write_shard(lab, name, shard, part, make, job_id=job_id, progress=progress)
    return rows


def write_shard(
    lab: Path | str,
    name: str,
    shard: int,
    jobs: Sequence,
    make: Callable[..., Speech | None],
    *,
    job_id: Callable[..., str],
    progress: Callable[[int], None] | None = None,
    replace: bool = False,
) -> list[dict]:
    """Write `make(job)` of the jobs as shard number `shard` of lab/speech/<name>, so that several workers can share the shards
    of one speech; the other arguments are those of `write`. Returns the shard's rows of `syntheses`, in order. `replace`:
    speech of other jobs that the shard holds is replaced; otherwise it raises SaladError."""
    folder, ids = folder_of(lab, name), [job_id(job) for job in jobs]
    if len(set(ids)) != len(ids):
        raise SaladError(f"two jobs for {folder} have the same id: {next(i for i in ids if ids.count(i) > 1)}")
    key = digest(ids)
    _sweep(folder, name, shard)
    if _paths(folder, shard)[0].exists():
        there = _read_cuts(_paths(folder, shard)[0])
        if not replace and not {cut["id"] for cut in there} <= set(ids):
            raise SaladError(f"{_paths(folder, shard)[0]} holds other speech than asked for: take another name")
        if damage(lab, name, shard) is None and all(_custom(cut)["jobs"] == key for cut in there):
            if progress:
                progress(len(jobs))
            return [_row(name, shard, cut) for cut in there]
    rows = _write_new(folder, name, shard, jobs, make, key, progress)
    store.files.record(lab, [_paths(folder, shard)[0]], "salad")
    return rows


def _write_new(folder: Path, name: str, shard: int, jobs, make, key: str, progress) -> list[dict]:
    cuts_path, tar_path = _paths(folder, shard)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_begun(name, shard)))
    lock = _locked(temporary)
    try:
        cuts = []
        with _tar_writer(temporary / tar_path.name) as tar:
            for job in jobs:
                speech = make(job)
                if speech is not None:
                    samples = to_rate(speech.utterance.samples, speech.utterance.sample_rate)
                    cut = _cut(speech, len(samples), key)
                    with interrupts.held():
                        tar.write(speech.id, samples[None], SAMPLE_RATE, cut.recording)
                    cuts.append(cut)
                if progress:
                    progress(1)
        lines = []
        if cuts:
            with tarfile.open(temporary / tar_path.name) as tar:
                flacs = [m for m in tar.getmembers() if m.name.endswith(".flac")]
                streams = [stream for member in flacs if (stream := tar.extractfile(member)) is not None]
                crcs = [zlib.crc32(stream.read()) for stream in streams]
            for cut, member, crc in zip(cuts, flacs, crcs, strict=True):
                cut.supervisions[0].custom |= {
                    "audio_offset": member.offset_data, "audio_bytes": member.size, "audio_crc32": crc
                }  # fmt: skip
                lines.append(cut.to_dict())
        else:
            with tarfile.open(temporary / tar_path.name, "w"):
                pass
        with open(temporary / cuts_path.name, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for path in (tar_path, cuts_path):
            with open(temporary / path.name, "rb") as file:
                os.fsync(file.fileno())
        cuts_path.unlink(missing_ok=True)  # of a damaged shard: the pair must never be of two kinds
        for path in (tar_path, cuts_path):
            os.replace(temporary / path.name, path)
        fsync_folder(folder)
    except OSError as error:
        raise SaladError(f"{cuts_path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)
    return [_row(name, shard, line) for line in lines]


def _tar_writer(path: Path):
    """lhotse's writer of FLAC into one tar, whose path is no pattern (lhotse takes a `%` for one)."""
    from lhotse.shar.writers.audio import AudioTarWriter
    from lhotse.shar.writers.tar import TarWriter

    class OneTar(TarWriter):
        def _next_stream(self):
            self.close()
            self.stream = open(path, "wb")
            self.tarstream = tarfile.open(fileobj=self.stream, mode="w|")
            self.num_items = 0

    writer = AudioTarWriter(path.name, shard_size=None, format="flac")
    writer.tar_writer = OneTar(path.name, None)
    return writer


def _begun(name: str, shard: int) -> str:
    return f".{name}.{shard:06d}."


def _locked(folder: Path) -> int | None:
    """A handle that holds the folder for as long as this process lives; None where another holds it, or nobody can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep(folder: Path, name: str, shard: int) -> None:
    """Remove what a killed writer of this shard had begun; one that lives holds its own."""
    for begun in folder.parent.glob(f"{glob.escape(_begun(name, shard))}*"):
        if (lock := _locked(begun)) is not None:
            shutil.rmtree(begun, ignore_errors=True)
            os.close(lock)


def _cut(speech: Speech, n_samples: int, key: str):
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
    from lhotse.supervision import AlignmentItem

    if n_samples == 0:
        raise SaladError(f"{speech.id} has no sound: leave it out, with its reason ({speech.text[:60]!r})")
    duration = n_samples / SAMPLE_RATE
    words = speech.utterance.words
    supervision = SupervisionSegment(
        id=speech.id,
        recording_id=speech.id,
        start=0,
        duration=duration,
        text=speech.text,
        speaker=speech.voice,
        alignment={"word": [AlignmentItem(w.word, w.start_s, w.end_s - w.start_s) for w in words]},
        custom={
            **speech.custom,
            "words": [list(word) for word in words],
            "sample_id": speech.sample_id,
            "synthesis_id": speech.id,
            "tts": speech.tts,
            "seed": speech.seed,
            "flags": list(speech.utterance.flags),
            "measured": speech.measured,
            "jobs": key,
        },
    )
    source = AudioSource(type="shar", channels=[0], source="")
    recording = Recording(speech.id, [source], SAMPLE_RATE, n_samples, duration)
    return MonoCut(speech.id, 0, duration, channel=0, supervisions=[supervision], recording=recording)


def _custom(cut: dict) -> dict:
    return cut["supervisions"][0]["custom"]


def _row(name: str, shard: int, cut: dict) -> dict:
    custom = _custom(cut)
    return {
        "synthesis_id": custom["synthesis_id"],
        "sample_id": custom["sample_id"],
        "cut_id": cut["id"],
        "audio_path": f"speech/{name}/recording.{shard:06d}.tar",
        "audio_offset": custom["audio_offset"],
        "audio_bytes": custom["audio_bytes"],
        "audio_crc32": custom.get("audio_crc32"),
        "tts": custom["tts"],
        "voice": cut["supervisions"][0]["speaker"],
        "seed": custom["seed"],
        "speech": name,
        "duration_s": cut["duration"],
        "words": [Word(*word)._asdict() for word in custom["words"]],
        "flags": custom["flags"],
        **custom["measured"],
    }


def _check(path: Path) -> None:
    """SaladError where a list of cuts, or one in a folder, is not what was recorded when it was written."""
    if reason := store.files.fault(path):
        raise SaladError(reason)


def _read_cuts(path: Path) -> list[dict]:
    _check(path)
    try:
        lines = path.read_bytes().split(b"\n")  # U+2028 stands within texts
    except OSError as error:
        raise SaladError(f"{path} cannot be read ({error.strerror}): remove it and run the same command again") from error
    return [_parsed(line, path) for line in lines if line]


def _parsed(line: bytes, path: Path | str) -> dict:
    """The cut of a line of `path`; SaladError where it is none, or lacks what this module wrote."""
    try:
        cut = json.loads(line)
        custom, about = _custom(cut), cut["recording"]
        texts = [cut["id"], custom["synthesis_id"], custom["sample_id"], custom["tts"], cut["supervisions"][0]["speaker"]]
        sizes = [custom["audio_offset"], custom["audio_bytes"], custom.get("audio_crc32", 0), about["num_samples"]]
        parts = [custom["words"], custom["flags"]]
        right = (
            all(isinstance(value, str) for value in texts)
            and all(type(value) is int and 0 <= value < 2**62 for value in sizes)
            and all(isinstance(value, list) for value in parts)
            and all(isinstance(word, list) and len(word) == len(Word._fields) for word in custom["words"])
            and isinstance(custom["measured"], dict)
            and isinstance(cut["duration"], (int, float))
            and {"seed", "jobs"} <= custom.keys()
        )
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        right = False
    if not right:
        raise SaladError(f"{path} is cut short or damaged: remove it and run the same command again")
    return cut


def damage(lab: Path | str, name: str, shard: int) -> str | None:
    """Why a shard cannot be used (a missing, shortened or changed tar), or None. Each FLAC's CRC-32 is checked once
    and that is remembered while the tar's size and times stay; `verify` decodes everything."""
    cuts_path, tar_path = _paths(folder_of(lab, name), shard)
    flacs = [_custom(cut) | {"id": cut["id"]} for cut in _read_cuts(cuts_path)]
    if fault := _short(tar_path, flacs):
        return fault

    def changed() -> str | None:
        with open(tar_path, "rb") as file:
            for flac in flacs:
                data = os.pread(file.fileno(), flac["audio_bytes"], flac["audio_offset"])
                if flac.get("audio_crc32", zlib.crc32(data)) != zlib.crc32(data):  # older shards tell none
                    return f"{tar_path} at {flac['id']} changed: its CRC-32 does not agree"
        return None

    try:
        return store.verification.remembered(lab, tar_path, digest([flac.get("audio_crc32") for flac in flacs]), changed)
    except OSError as error:
        return f"{tar_path} cannot be read ({error.strerror})"


def _short(tar_path: Path, flacs: list[dict]) -> str | None:
    """Why a tar cannot hold these recordings, by its size."""
    end = max((flac["audio_offset"] + flac["audio_bytes"] for flac in flacs), default=0)
    if not tar_path.exists():
        return f"{tar_path} is missing"
    if tar_path.stat().st_size < end:
        return f"{tar_path} is cut short: {tar_path.stat().st_size} of at least {end} bytes"
    return None


def decode_flac(data: bytes, where: str, n_samples: int | None = None) -> np.ndarray:
    """FLAC bytes -> float32 [T]. Raises SaladError, naming `where`, on anything but whole 16 kHz mono FLAC."""
    import soundfile

    try:
        with interrupts.held():
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    except (RuntimeError, OSError, IndexError, TypeError, ValueError) as error:  # libsndfile's own is a RuntimeError
        raise SaladError(f"{where} is damaged ({error}): remove its shard and run the same command again") from error
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise SaladError(f"{where} is not mono at {SAMPLE_RATE} Hz but {samples.shape} at {rate} Hz")
    if n_samples is not None and len(samples) != n_samples:
        raise SaladError(f"{where} is cut short: {len(samples)} of {n_samples} samples; remove its shard")
    return samples


class Shar:
    """Reads lab/speech/<name>: `shar[id]` and iteration give (cut, samples), a lhotse MonoCut and float32 [T] at
    16 kHz; an id is a cut's or, what is the same for synthesised speech, a synthesis'. Shards that appear later are
    seen by a new reader. Memory: an index of some 100 bytes a cut; cuts and audio are read when asked for."""

    def __init__(self, lab: Path | str, name: str):
        self.lab, self.name, self.folder = Path(lab), name, folder_of(lab, name)
        if not self.folder.is_dir():
            raise SaladError(f"no speech in {self.folder}")
        self.shards = sorted(int(path.name.split(".")[1]) for path in self.folder.glob("cuts.*.jsonl"))
        _check(self.folder)
        self._index: dict[str, tuple[int, int]] = {}  # id -> shard, byte offset of the line
        for shard in self.shards:
            offset = 0
            with open(_paths(self.folder, shard)[0], "rb") as file:
                for line in file:
                    self._index[_parsed(line, file.name)["id"]] = (shard, offset)
                    offset += len(line)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, id: str) -> bool:
        return id in self._index

    @property
    def ids(self) -> list[str]:
        """The ids of the cuts, in the order in which they were written."""
        return list(self._index)

    def row(self, id: str) -> dict:
        """The row of `syntheses`."""
        return _row(self.name, self._index[id][0], self._line(id))

    def rows(self) -> list[dict]:
        """The rows of `syntheses` of all cuts, in the order in which they were written."""
        return [_row(self.name, shard, cut) for shard in self.shards for cut in _read_cuts(_paths(self.folder, shard)[0])]

    def cut(self, id: str) -> "MonoCut":
        """The lhotse cut of an id, without its audio. Raises SaladError where there is none."""
        return _to_cut(self._line(id))

    def __getitem__(self, id: str):
        line = self._line(id)
        samples = self._samples(self._index[id][0], line)
        return _to_cut(line), samples

    def samples(self, id: str) -> np.ndarray:
        """float32 [T] at 16 kHz, without the cost of building a cut."""
        return self._samples(self._index[id][0], self._line(id))

    def __iter__(self) -> Iterator:
        for shard in self.shards:
            for line in _read_cuts(_paths(self.folder, shard)[0]):
                samples = self._samples(shard, line)
                yield _to_cut(line), samples

    def verify(self) -> list[str]:
        """Decodes everything; one line for each damaged recording or shard."""
        faults = []
        for shard in self.shards:
            cuts_path, tar_path = _paths(self.folder, shard)
            lines = _read_cuts(cuts_path)
            if fault := _short(tar_path, [_custom(line) for line in lines]):
                faults.append(fault)
                continue
            for line in lines:
                try:
                    self._samples(shard, line)
                except SaladError as error:
                    faults.append(str(error))
        return faults

    def _line(self, id: str) -> dict:
        if id not in self._index:
            raise SaladError(f"{self.folder} has no speech {id}")
        shard, offset = self._index[id]
        with open(_paths(self.folder, shard)[0], "rb") as file:
            file.seek(offset)
            return _parsed(file.readline(), file.name)

    def _samples(self, shard: int, line: dict) -> np.ndarray:
        custom, path = _custom(line), _paths(self.folder, shard)[1]
        where = f"{path} at {line['id']}"
        try:
            with open(path, "rb") as file:
                file.seek(custom["audio_offset"])
                data = file.read(custom["audio_bytes"])
        except OSError as error:
            raise SaladError(f"{path} cannot be read: {error.strerror}") from error
        if len(data) < custom["audio_bytes"]:
            raise SaladError(f"{where} is cut short: run the command that made it again")
        if custom.get("audio_crc32", zlib.crc32(data)) != zlib.crc32(data):  # older shards have none
            raise SaladError(f"{where} changed: its CRC-32 does not agree; run the command that made it again")
        return decode_flac(data, where, line["recording"]["num_samples"])


def _to_cut(line: dict):  # lhotse takes parts out of `line`: last use
    from lhotse.serialization import deserialize_item

    try:
        return deserialize_item(line)
    except Exception as error:  # lhotse checks nothing, and raises what comes
        raise SaladError(f"a cut is damaged: {str(error).splitlines()[0]:.200}; remove its shard") from error
