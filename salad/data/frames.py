"""Frozen encoder frames on disk, as `salad pass encode` writes them, and training and scoring read them.

lab/frames/<speech>/<first 12 digits of the encoder's hash>-<dtype>/recording.NNNNNN.safetensors holds the frames of one
shard of lab/speech/<speech>, a tensor [F, D] a recording, by synthesis id. The manifest beside it (.json), written last,
says of what encoder and what sound they are, with a SHA-256 of the file and of each recording's frames.
"""

import hashlib
import json
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from salad.data.corpora import SpokenText, audio
from salad.errors import SaladError
from salad.models.encoders import SpeechEncoder, fingerprint
from store import atomic

DTYPES = ("float32", "float16")  # the first is what training computes with
OPEN = 64  # files that a reader holds open
ABANDONED_S = 600  # a temporary file in which nobody has written for so long is left from a process that was killed


class DamagedFrames(UserWarning):
    """Frames that are passed over; training encodes these recordings anew."""


def path_of(lab: Path | str, audio_path: str, encoder_sha256: str, dtype: str) -> Path:
    """Where the frames of the recordings in `audio_path` (speech/<name>/recording.NNNNNN.tar) lie."""
    shard = Path(audio_path)
    return Path(lab, "frames", shard.parent.name, f"{encoder_sha256[:12]}-{dtype}", f"{shard.stem}.safetensors")


def size_gb(seconds: float, encoder: SpeechEncoder, dtype: str) -> float:
    """What the frames of so much speech take, in GB (1e9 bytes)."""
    return seconds * encoder.frame_rate * encoder.dim * np.dtype(dtype).itemsize / 1e9


def sound_of(lab: Path | str, spoken: SpokenText) -> str:
    """What tells a recording from another: its length in bytes and the MD5 of its samples, which FLAC has in its header.

    OSError where the file cannot be read."""
    with open(Path(lab, spoken.audio_path), "rb") as file:
        file.seek(spoken.audio_offset)
        return f"{spoken.audio_bytes}-{file.read(42)[26:].hex()}"


def made_from(lab: Path | str, group: Sequence[SpokenText], encoder_sha256: str, dtype: str) -> dict:
    """Of what the frames of a shard are made; `shard` is a SHA-256 over its recordings and their sound."""
    sounds = [[recording.synthesis_id, sound_of(lab, recording)] for recording in group]
    return {
        "encoder": encoder_sha256,
        "dtype": dtype,
        "audio": group[0].audio_path,
        "shard": hashlib.sha256(json.dumps(sounds).encode()).hexdigest(),
    }


def whole(lab: Path | str, group: Sequence[SpokenText], encoder_sha256: str, dtype: str) -> bool:
    """Whether the frames of a shard are there, undamaged, and of the sound that it now holds."""
    path = path_of(lab, group[0].audio_path, encoder_sha256, dtype)
    try:
        manifest = json.loads(path.with_suffix(".json").read_text())
        if manifest["made_from"] != made_from(lab, group, encoder_sha256, dtype):
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == manifest["sha256"]
    except (OSError, RecursionError, ValueError, KeyError, TypeError):
        return False


def write(
    lab: Path | str,
    group: Sequence[SpokenText],
    encoder: SpeechEncoder,
    encoder_sha256: str,
    dtype: str,
    tick: Callable[[int], None],
) -> None:
    """Encode a shard's recordings, each alone, and write their frames: whole or not there.

    SaladError where a recording cannot be read, or the file not be written."""
    import torch

    path = path_of(lab, group[0].audio_path, encoder_sha256, dtype)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    frames, entries = {}, {}
    for recording in group:
        samples = torch.from_numpy(audio(lab, recording, encoder.sample_rate)).to(device)
        encoded = np.ascontiguousarray(encoder(samples).cpu().numpy().astype(dtype))
        if not np.isfinite(encoded).all():
            raise SaladError(f"{recording.audio_path}: frames of {recording.synthesis_id} are not finite in {dtype}")
        frames[recording.synthesis_id] = encoded
        entries[recording.synthesis_id] = {"sound": sound_of(lab, recording), "sha256": hashlib.sha256(encoded.data).hexdigest()}
        tick(1)
    data = safetensors.numpy.save(frames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.stem}.*.tmp"):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)  # the pair must never be of two kinds
        atomic.write_bytes(path, data)
        atomic.write_json(path.with_suffix(".json"), {
            "made_from": made_from(lab, group, encoder_sha256, dtype), "sha256": hashlib.sha256(data).hexdigest(),
            "frame_rate": encoder.frame_rate, "dim": encoder.dim, "recordings": entries,
        })  # fmt: skip
    except OSError as error:
        raise SaladError(f"{path} cannot be written: {error.strerror or error}") from error


class Frames:
    """Reads what the pass has written for this encoder: `frames.of(spoken)`, None where there is nothing that fits.

    `dtypes`: those that are taken, in this order; by default float32 before float16. What is damaged, or of other sound,
    is named once in a DamagedFrames warning and passed over. Memory: the manifests and headers of at most 64 files. For
    one thread at a time."""

    def __init__(self, lab: Path | str, encoder: SpeechEncoder, dtypes: tuple[str, ...] = DTYPES):
        self.lab, self.encoder, self.dtypes = Path(lab), encoder, dtypes
        there = encoder.is_causal and (self.lab / "frames").is_dir()
        self.sha256 = fingerprint(encoder) if there else None
        self._open: OrderedDict[Path, tuple | None] = OrderedDict()
        self._told: set[Path] = set()

    def folders(self, speech: str) -> list[str]:
        """The folders of the lab with this encoder's frames of a speech folder, the one that is taken first."""
        if self.sha256 is None:
            return []
        written = [path_of("", f"speech/{speech}/-.tar", self.sha256, dtype).parent for dtype in self.dtypes]
        return [str(folder) for folder in written if (self.lab / folder).is_dir()]

    def of(self, spoken: SpokenText) -> np.ndarray | None:
        """Frames float32 [F, D] of a recording at its own speed."""
        if self.sha256 is None:
            return None
        for dtype in self.dtypes:
            path = path_of(self.lab, spoken.audio_path, self.sha256, dtype)
            if path in self._told:
                continue
            try:
                opened = self._opened(path)
                if opened is None or spoken.synthesis_id not in opened[0]["recordings"]:
                    continue
                entry = opened[0]["recordings"][spoken.synthesis_id]
                if entry["sound"] != sound_of(self.lab, spoken):
                    raise ValueError(f"{spoken.synthesis_id} is of other sound than the recording")
                frames = opened[1].get_tensor(spoken.synthesis_id)
                if hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest() != entry["sha256"]:
                    raise ValueError(f"the frames of {spoken.synthesis_id} have changed")
                return frames.astype(np.float32, copy=False)
            except (OSError, RecursionError, ValueError, KeyError, TypeError, SafetensorError) as error:
                self._told.add(path)
                self._open.pop(path, None)
                warnings.warn(
                    f"{path} is skipped and its recordings are encoded again: {error}; `salad pass encode` repairs it",
                    DamagedFrames,
                    stacklevel=2,
                )
        return None

    def _opened(self, path: Path) -> tuple | None:
        """(manifest, open file) of a shard's frames, None where there are none."""
        if path not in self._open:
            manifest = path.with_suffix(".json")
            opened = None
            if manifest.exists():
                content = json.loads(manifest.read_text())
                if content["made_from"]["encoder"] == self.sha256:
                    opened = content, safe_open(path, framework="np")
            self._open[path] = opened
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]
