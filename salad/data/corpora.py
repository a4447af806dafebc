"""Texts and spoken texts of a lab, as training and scoring read them: rows of the store, audio out of its Shar."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from salad.errors import SaladError


@dataclass(frozen=True)
class SpokenText:
    """A text and one recording of it. `words`: (word, char_start, char_end, start_s, end_s), offsets into `text`;
    the FLAC is `audio_bytes` bytes from `audio_offset` of the lab's file `audio_path`."""

    sample_id: str
    synthesis_id: str
    text: str
    words: tuple
    duration_s: float
    audio_path: str
    audio_offset: int
    audio_bytes: int


_COLUMNS = """y.sample_id, y.synthesis_id, s.text, y.words, y.duration_s, y.audio_path, y.audio_offset, y.audio_bytes
    from syntheses y join samples s using (sample_id)"""


def _spoken_texts(con, tail: str, parameters: list) -> list[SpokenText]:
    rows = con.execute(f"select {_COLUMNS} {tail}", parameters).fetchall()
    return [SpokenText(*row[:3], tuple(tuple(word.values()) for word in row[3] or ()), *row[4:]) for row in rows]


def of_speech(con, names: list[str]) -> list[SpokenText]:
    """Everything in the speech folders `names` (lab/speech/<name>), in the order of its ids.

    A folder that holds nothing is a SaladError."""
    found = _spoken_texts(con, "where y.speech in (select unnest(?)) order by y.synthesis_id", [list(names)])
    if not found:
        raise SaladError(f"no speech in {', '.join(names)}: nothing in `syntheses` names these folders of lab/speech")
    return found


def of_selection(con, selection_id: str) -> list[SpokenText]:
    """The spoken texts of a (frozen) selection in draw order, one synthesis a text."""
    found = _spoken_texts(
        con,
        """join selected using (sample_id) where selection_id = ? and y.tts <> 'recorded'
           qualify row_number() over (partition by y.sample_id order by y.seed, y.synthesis_id) = 1
           order by draw""",
        [selection_id],
    )
    if not found:
        raise SaladError(f"selection {selection_id} holds no synthesised text: synthesise it first")
    return found


def audio(lab: Path | str, spoken: SpokenText, sample_rate: int) -> np.ndarray:
    """The recording, float32 [T] at `sample_rate`; a file cut short is a SaladError that names it."""
    return audio_of(lab, vars(spoken), sample_rate)


def audio_of(lab: Path | str, row: dict, sample_rate: int) -> np.ndarray:
    """The same for a row of `syntheses`."""
    import soundfile
    import soxr

    path = Path(lab) / row["audio_path"]
    try:
        with open(path, "rb") as file:
            file.seek(row["audio_offset"])
            samples, rate = soundfile.read(io.BytesIO(file.read(row["audio_bytes"])), dtype="float32")
    except (OSError, soundfile.LibsndfileError) as error:
        raise SaladError(f"{path}: the recording of {row['synthesis_id']} cannot be read ({error})") from None
    if abs(len(samples) / rate - row["duration_s"]) > 0.1:
        raise SaladError(f"{path}: the recording of {row['synthesis_id']} is cut short; run its pass again")
    return samples if rate == sample_rate else soxr.resample(samples, rate, sample_rate)


def texts(lab: Path | str, corpora: list[str]) -> list[str]:
    """The texts of lab/corpora/<name>, in file order. An absent or damaged corpus is a SaladError."""
    found: list[str] = []
    for name in corpora:
        folder = Path(lab) / "corpora" / name
        if not folder.is_dir():
            raise SaladError(f"no corpus {name!r}: {folder} does not exist")
        try:
            found += ds.dataset(folder, format="parquet").to_table(columns=["text"])["text"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise SaladError(f"corpus {folder} cannot be read: {str(error).splitlines()[0]}; make it again") from None
    return found
