"""Audio files of the wild as samples: the one place that decodes what people bring (lists, tars, uploads, data sets).

libsndfile decodes (WAV and its kin, FLAC, Ogg, MP3, AIFF, CAF, AU …); what it does not know (M4A, AAC, WebM, AMR, WMA) is
PyAV's, where that is installed. `salad.speech.containers` compares what the header promises with what the file holds.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from salad import interrupts
from salad.speech import containers
from salad.speech.containers import Container, Patched

SHORT_S = 0.1  # a recording may be shorter than the list or its header says by so much
RATES = (1_000, 1_000_000)  # Hz; what is outside is no recording
BLOCK = 1 << 20  # frames read at a time
INSTALL = "pip install 'salad-workbench[audio]' reads it"


class Unusable(Exception):
    """Why a recording is set aside: (reason, detail)."""


def decode(source: Path | bytes, start_s: float = 0.0, duration_s: float | None = None,
           channels: Sequence[int] | None = None, longest_s: float | None = None) -> tuple[np.ndarray, int]:  # fmt: skip
    """float32 [T] and the rate in Hz of a file, or of its bytes, the channels averaged.

    `start_s`, `duration_s`: the part that is wanted, in seconds. `channels`: those that are averaged, from 0; all by
    default. `longest_s`: more is not read. A file whose header does not tell its length is read to its end.

    Raises Unusable (reason, detail): "missing"; "unreadable"; "truncated", where there is less sound than the header or
    `duration_s` says by over 0.1 s; "too long"."""
    samples_TC, rate = decode_channels(source, start_s, duration_s, longest_s)
    if channels is not None:
        if not channels or not all(0 <= channel < samples_TC.shape[1] for channel in channels):
            wanted = ", ".join(map(str, channels)) or "none"
            raise Unusable("unreadable", f"channel {wanted} is asked for, and it has {samples_TC.shape[1]}, from 0")
        samples_TC = samples_TC[:, list(channels)]
    return samples_TC.mean(1, dtype=np.float32), rate


@interrupts.held()
def decode_channels(source: Path | bytes, start_s: float = 0.0, duration_s: float | None = None,
                    longest_s: float | None = None) -> tuple[np.ndarray, int]:  # fmt: skip
    """float32 [T, channels] and the rate; the rest is as in `decode`."""
    file = _opened(source)
    with file:
        container = containers.inspect(file, file.seek(0, io.SEEK_END), whole=duration_s is None)
        if container.cut and duration_s is None:
            raise Unusable("truncated", container.cut)
        direct = isinstance(source, Path) and not container.mended and source.suffix.lower() != ".raw"
        try:
            decoded = _libsndfile(str(source) if direct else Patched(file, container), start_s, duration_s, longest_s)
        except _NotKnown as error:
            if container.missing or container.cut:
                raise Unusable("truncated", _missing(container)) from None
            decoded = _pyav(file, container, start_s, duration_s, longest_s, str(error))
    samples_TC, rate, before, promised = decoded
    held = before + len(samples_TC)
    if before < round(start_s * rate) - SHORT_S * rate:
        raise Unusable("truncated", f"it should start at {start_s:g} s of {before / rate:.2f} s")
    if duration_s is not None:
        promised = round(start_s * rate) + round(duration_s * rate)
    elif 0 < container.missing < 1:
        promised = max(promised, round(held / (1 - container.missing)))
    if held < promised - SHORT_S * rate or (duration_s is None and container.missing == 1):
        lengths = f"{len(samples_TC) / rate:.2f} of {max(promised - before, 0) / rate:.2f} s"
        raise Unusable("truncated", lengths if promised else _missing(container))
    if container.digest and duration_s is None and not before and not _agrees(samples_TC, *container.digest):
        raise Unusable("truncated", "the checksum of its samples is that of others, or of more")
    return samples_TC, rate


def _agrees(samples_TC: np.ndarray, bits: int, md5: bytes) -> bool:
    """Whether float samples are those of a FLAC's MD5, which is of integers of whole bytes."""
    width = -(-bits // 8)
    whole = np.round(samples_TC.astype(np.float64) * (1 << bits - 1)).astype("<i4")
    data = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    return hashlib.md5(data, usedforsecurity=False).digest() == md5


def _refuse_longer(frames: int, rate: int, longest_s: float | None) -> None:
    if longest_s is not None and frames > longest_s * rate:
        raise Unusable("too long", f"{round(frames / rate, 1):g} s")


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if not source.is_file():
            raise Unusable("missing", str(source))
        return open(source, "rb")
    except (OSError, ValueError) as error:  # a name that is too long, or none
        raise Unusable("missing", f"{str(source)[:120]}: {getattr(error, 'strerror', None) or error}") from None


def _missing(container: Container) -> str:
    return container.cut or f"{container.held:,} of {container.promised:,} bytes of sound"


class _NotKnown(Exception):
    """libsndfile cannot open the file."""


def _libsndfile(source, start_s: float, duration_s: float | None, longest_s: float | None) -> tuple[np.ndarray, int, int, int]:
    """float32 [T, channels], the rate, the frames before them, and the frames that the header promises."""
    import soundfile

    try:
        file = soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError, IndexError) as error:
        raise _NotKnown(str(getattr(error, "error_string", error))) from None
    with file:
        rate, total = file.samplerate, file.frames
        if not RATES[0] <= rate <= RATES[1]:
            raise Unusable("unreadable", f"a rate of {rate:,} Hz")
        first = round(start_s * rate)
        wanted = None if duration_s is None else round(duration_s * rate)
        parts, before = [], 0
        try:
            if first and file.seekable():
                before = file.seek(min(first, total))
            while before < first and len(part := file.read(min(BLOCK, first - before), dtype="float32", always_2d=True)):
                before += len(part)
            left = total - before if wanted is None else wanted
            _refuse_longer(left, rate, longest_s)
            while left > 0 and len(part := file.read(min(BLOCK, left), dtype="float32", always_2d=True)):
                parts.append(part)
                left -= len(part)
        except (soundfile.LibsndfileError, RuntimeError, ValueError, IndexError) as error:  # its binding raises the last, too
            why = str(getattr(error, "error_string", error))
            raise Unusable("unreadable" if "psf_fseek" in why else "truncated", why) from None
        samples_TC = np.concatenate(parts) if parts else np.zeros((0, file.channels), np.float32)
        promised = _promised(file)
        if wanted is None and 0 < total - promised < PADDED and promised and file.subtype in _BLOCKS:
            samples_TC, total = samples_TC[: max(promised - before, 0)], promised  # the last block is filled up
        return samples_TC, rate, before, max(promised, total)


PADDED = 8_192  # frames that the last block of a compressed file may hold beyond the recording's end
_BLOCKS = {"IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32"}


def _promised(file) -> int:
    """Frames that the header promises, as libsndfile's log has them; 0 where it tells none."""
    log = file.extra_info
    if "eems to be a truncated file" in log or "File seems to be truncated" in log:
        counts = [int(n) for n in re.findall(r"<--> (\d+)", log)]
        width = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}.get(file.subtype, 4)
        return counts[-1] // (width * file.channels) if counts else 2 * file.frames + file.samplerate
    counts = [int(n) for n in re.findall(r"\b(?:Frames|frames|Cols)\s*: (\d+)", log)]
    counts += [int(n) for n in re.findall(r"^Data length (\d+) should be", log, re.M)]
    width = file.channels * 4  # at most; a count of frames that would be over 2 GB stands for an unknown length
    return max((n for n in counts if n * width < containers.UNKNOWN), default=0)


_FORMATS = {"MP4": "mov", "Matroska": "matroska"}
_SIGNS = [(rb"#!AMR", "amr"), (rb"0&\xb2u", "asf"), (rb"\xff[\xf0\xf1\xf8\xf9]", "aac")]


_NO_SOUND = [  # what lies in the place of sound, and what to do about it
    (rb"version https://", "a Git LFS pointer instead of the file: git lfs pull"),
    (rb"(?i)\s*<(?:!doctype|html|\?xml)", "a web page instead of sound: fetch the file again"),
    (rb"\x1f\x8b|PK\x03\x04|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file: unpack it first"),
]


def _pyav(file: BinaryIO, container: Container, start_s: float, duration_s: float | None,
          longest_s: float | None, error: str):  # fmt: skip
    """The same by FFmpeg's libraries, for formats that libsndfile has not."""
    file.seek(0)
    head = file.read(16)
    kind = _FORMATS.get(container.name) or next((name for sign, name in _SIGNS if re.match(sign, head)), None)
    if kind is None:
        hint = next((hint for sign, hint in _NO_SOUND if re.match(sign, head)), None) if head else "the file is empty"
        raise Unusable("unreadable", hint or error or "no audio format that is known")
    name = container.name or kind.upper()
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise Unusable("unreadable", f"{name} is not libsndfile's: {INSTALL}") from None
    file.seek(0)
    promised, parts, rate = 0, [], 0
    try:
        # the format is named, so that no playlist can lead to another file
        with av.open(file, "r", format=kind, metadata_errors="replace") as container_file:
            streams = container_file.streams.audio
            if len(streams) != 1:
                raise Unusable("unreadable", f"it has {len(streams)} audio tracks, and one is needed")
            stream = streams[0]
            rate = stream.rate
            if not rate or not RATES[0] <= rate <= RATES[1]:
                raise Unusable("unreadable", f"a rate of {rate} Hz")
            if kind == "mov" and stream.duration and stream.time_base:
                promised = round(float(stream.duration * stream.time_base) * rate)
            converter = av.AudioResampler(format="fltp", rate=rate)
            left = None if longest_s is None else (start_s + longest_s + 1) * rate
            for frame in container_file.decode(stream):
                parts += [part.to_ndarray() for part in converter.resample(frame)]
                if left is not None and (left := left - frame.samples) < 0:
                    break
            parts += [part.to_ndarray() for part in converter.resample(None)]
    except (FFmpegError, ValueError, OSError, IndexError) as error:
        raise Unusable("truncated" if parts else "unreadable", f"{name}: {error}"[:200]) from None
    if not parts or len({len(part) for part in parts}) > 1:
        raise Unusable("unreadable", f"{name}: " + ("its channels change" if parts else "it holds no sound"))
    samples_TC = np.concatenate(parts, 1).T
    if 0 < len(samples_TC) - promised < PADDED and promised:
        samples_TC = samples_TC[:promised]  # the last block is filled up
    first = min(round(start_s * rate), len(samples_TC))
    last = None if duration_s is None else first + round(duration_s * rate)
    _refuse_longer(max(len(samples_TC[first:last]), promised - first if last is None else 0), rate, longest_s)
    return samples_TC[first:last], rate, first, promised
