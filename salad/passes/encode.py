"""Keep a frozen causal encoder's frames of a speech folder, so that training and scoring need not encode them again."""

import shutil
from collections.abc import Callable
from pathlib import Path

from salad.data import frames
from salad.data.corpora import SpokenText
from salad.errors import SaladError
from salad.models.encoders import SpeechEncoder
from salad.passes import Part, Progress, run_parts

ASKED_GB = 50.0  # more than this is written only with --yes


def encode(
    lab: Path | str,
    load: Callable[[], SpeechEncoder],
    encoder_sha256: str,
    spoken: list[SpokenText],
    dtype: str = "float32",
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the frames of `spoken` under the encoder that `load` gives to lab/frames (salad.data.frames).

    A shard of lab/speech is a part, done when its frames are whole and of the sound that the shard now holds. SaladError
    where recordings cannot be read: their parts are left out, the others done."""
    run_parts(lab, parts(lab, load, encoder_sha256, spoken, dtype), shard, shards, progress)


def parts(
    lab: Path | str, load: Callable[[], SpeechEncoder], encoder_sha256: str, spoken: list[SpokenText], dtype: str = "float32"
) -> list[Part]:
    """The pass's parts, one for each shard of speech. They publish no unit: `whole` says whether one is done."""
    if dtype not in frames.DTYPES:
        raise SaladError(f"--dtype {dtype}: frames are kept in {' or '.join(frames.DTYPES)}")
    files: dict[str, list[SpokenText]] = {}
    for recording in sorted(spoken, key=lambda s: s.synthesis_id):
        files.setdefault(recording.audio_path, []).append(recording)
    loaded: list[SpeechEncoder] = []

    def of(group: list[SpokenText]) -> Part:
        def make(tick) -> None:
            if not loaded:
                loaded.append(load())
            frames.write(lab, group, loaded[0], encoder_sha256, dtype, tick)

        return Part({}, (), len(group), make, lambda: frames.whole(lab, group, encoder_sha256, dtype))

    return [of(files[path]) for path in sorted(files)]


def refuse_look_ahead(encoder: SpeechEncoder, name: str) -> None:
    """SaladError for an encoder whose frames are not a recording's own."""
    if not encoder.is_causal:
        raise SaladError(f"encoder {name!r} looks ahead: its frames depend on the spans that it hears, and cannot be kept")


def room_for(lab: Path | str, speech: str, size: float, encoder_sha256: str, dtype: str) -> None:
    """SaladError where the disk has no room for `size` GB of frames, less those that are there already."""
    folder = frames.path_of(lab, f"speech/{speech}/-.tar", encoder_sha256, dtype).parent
    size -= sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free / 1e9
    if size > free:
        raise SaladError(
            f"frames of {speech} would take {size:,.1f} GB more in {folder}, and {free:,.1f} GB are free there: make room"
            + (", or take half with --dtype float16" if dtype == "float32" else "")
        )


def estimate_size(speech: str, spoken: list[SpokenText], encoder: SpeechEncoder, dtype: str) -> tuple[float, str]:
    """(GB, a line that says so)."""
    seconds = sum(recording.duration_s for recording in spoken)
    size = frames.size_gb(seconds, encoder, dtype)
    written = f"{size:,.1f} GB" if size >= 0.1 else f"{size * 1000:,.1f} MB"
    return size, (
        f"{len(spoken)} recordings of {speech}, {seconds / 3600:,.2f} h at {encoder.frame_rate:g} frames of {encoder.dim} a "
        f"second in {dtype}: {written} in lab/frames/{speech}"
    )
