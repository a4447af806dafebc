"""Keep a frozen causal encoder's frames of a speech folder, so that training need not encode them in every epoch."""

from collections.abc import Callable
from pathlib import Path

from salad.data import frames
from salad.data.corpora import SpokenText
from salad.errors import SaladError
from salad.models.encoders import SpeechEncoder
from salad.passes import Part, Progress, do

ASKED_GB = 50.0  # more than this is written only with --yes


def encode(lab: Path | str, load: Callable[[], SpeechEncoder], encoder_sha256: str, spoken: list[SpokenText],
           dtype: str = "float32", shard: int = 0, shards: int = 1, progress: Progress | None = None) -> None:  # fmt: skip
    """Write the frames of `spoken` under the encoder that `load` gives to lab/frames (salad.data.frames).

    A shard of lab/speech is a part, done when its frames are whole and of the sound that the shard now holds. SaladError
    where recordings cannot be read: their parts are left out, the others done."""
    do(lab, parts(lab, load, encoder_sha256, spoken, dtype), shard, shards, progress)


def parts(lab: Path | str, load: Callable[[], SpeechEncoder], encoder_sha256: str, spoken: list[SpokenText],
          dtype: str = "float32") -> list[Part]:  # fmt: skip
    """The pass's parts, one for each shard of speech. They publish no unit: `whole` says whether one is done."""
    if dtype not in frames.DTYPES:
        raise SaladError(f"--dtype {dtype}: frames are kept in {' or '.join(frames.DTYPES)}")
    files: dict[str, list[SpokenText]] = {}
    for one in sorted(spoken, key=lambda s: s.synthesis_id):
        files.setdefault(one.audio_path, []).append(one)
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
    if not encoder.causal:
        raise SaladError(f"encoder {name!r} looks ahead: its frames depend on the spans that it hears, and cannot be kept")


def told_size(speech: str, spoken: list[SpokenText], encoder: SpeechEncoder, dtype: str) -> tuple[float, str]:
    """(GB, a line that says so)."""
    seconds = sum(one.duration_s for one in spoken)
    size = frames.size_gb(seconds, encoder, dtype)
    written = f"{size:,.1f} GB" if size >= 0.1 else f"{size * 1000:,.1f} MB"
    return size, (
        f"{len(spoken)} recordings of {speech}, {seconds / 3600:,.2f} h at {encoder.frame_rate:g} frames of {encoder.dim} a "
        f"second in {dtype}: {written} in lab/frames/{speech}"
    )
