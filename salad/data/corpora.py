"""Texts and spoken texts of a lab, as training and scoring read them: rows of the store, audio out of its Shar."""

import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds

from salad import interrupts
from salad.errors import SaladError
from store import files


@dataclass(frozen=True)
class SpokenText:
    """A text and one recording of it. `words`: (word, char_start, char_end, start_s, end_s), offsets into `text`;
    the FLAC is `audio_bytes` bytes from `audio_offset` of the lab's file `audio_path`; `audio_crc32`: its CRC-32, where that
    is known. `answer`: what a chat answers to
    the text, where it is known."""

    sample_id: str
    synthesis_id: str
    text: str
    words: tuple
    duration_s: float
    audio_path: str
    audio_offset: int
    audio_bytes: int
    answer: str | None = None
    audio_crc32: int | None = None

    @property
    def folder(self) -> str:
        """The folder of lab/speech that the recording lies in."""
        return Path(self.audio_path).parent.name


_COLUMNS = """y.sample_id, y.synthesis_id, s.text, y.words, y.duration_s, y.audio_path, y.audio_offset, y.audio_bytes,
    s.answer, y.audio_crc32 from syntheses y join samples s using (sample_id)"""
_OF_SPEECH = "where y.speech in (select unnest(?)) order by y.synthesis_id"
_OF_SELECTION = """join selected using (sample_id) where selection_id = ? and y.tts <> 'recorded'
        and (selected.own_synthesis_id is null or selected.own_synthesis_id = y.synthesis_id)
    qualify row_number() over (partition by y.sample_id order by y.seed, y.synthesis_id) = 1
    order by draw"""


class Recordings(Sequence[SpokenText]):
    """Spoken texts as rows of an Arrow table, made one by one when asked for. Mapped from a file, they take no memory."""

    def __init__(self, table: pa.Table):
        self._table = table
        self.total_s = float(pa.compute.sum(table["duration_s"]).as_py() or 0.0)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> SpokenText:  # type: ignore[override]  # no slices
        row = self._table.slice(index, 1).to_pylist()[0]
        row["words"] = tuple(tuple(word.values()) for word in row["words"] or ())
        return SpokenText(**row)


class Text(NamedTuple):
    """A text, and what a chat answers to it where that is known."""

    text: str
    answer: str | None = None


class TextRows(Sequence[Text]):
    """Texts as rows of an Arrow table."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Text:  # type: ignore[override]  # no slices
        return Text(**self._table.slice(index, 1).to_pylist()[0])


def _table(batches, schema: pa.Schema, path: Path | None) -> pa.Table:
    """The record batches as a table: in memory, or with `path` in a file (made once, whole or not there), mapped."""
    if path is None:
        return pa.Table.from_batches(batches, schema)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            os.replace(temporary, path)
        except OSError as error:
            raise SaladError(f"{path} cannot be written: {os.strerror(error.errno) if error.errno else error}") from None
        finally:
            temporary.unlink(missing_ok=True)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def recordings(con: duckdb.DuckDBPyConnection, names: list[str], path: Path | None = None) -> Recordings:
    """`of_speech` for training: rows stay in the file `path` (or in memory), and each must have its word times."""
    where = "from syntheses where speech in (select unnest(?)) and coalesce(len(words), 0) = 0"
    without = con.execute(f"select count(*), any_value(speech) {where}", [list(names)]).fetchall()[0]
    if without[0]:
        raise SaladError(
            f"{without[0]} recordings of lab/speech/{without[1]} and the like have no word times, which interleaving needs: "
            "`salad prepare speech` aligns a folder of recordings with their texts"
        )
    return _recordings(con, _OF_SPEECH, [list(names)], path, nothing=_no_speech(con, names))


def selected(con: duckdb.DuckDBPyConnection, selection_id: str, path: Path | None = None) -> Recordings:
    """The speech of a selection's texts, in draw order, as rows of the file `path` (or in memory). SaladError without any."""
    return _recordings(con, _OF_SELECTION, [selection_id], path, nothing=_not_spoken(selection_id))


def _recordings(con, tail: str, parameters: list, path: Path | None, nothing: str) -> Recordings:
    reader = con.sql(f"select {_COLUMNS} {tail}", params=parameters).to_arrow_reader(4096)
    recordings = Recordings(_table(reader, reader.schema, path))
    if not recordings:
        raise SaladError(nothing)
    return recordings


def of_speech(con: duckdb.DuckDBPyConnection, names: list[str]) -> list[SpokenText]:
    """Everything in the speech folders `names` (lab/speech/<name>), in the order of its ids.

    A folder that holds nothing is a SaladError."""
    return list(_recordings(con, _OF_SPEECH, [list(names)], None, _no_speech(con, names)))


def _no_speech(con, names) -> str:
    there = [name for (name,) in con.execute("select distinct speech from syntheses order by all").fetchall() if name]
    return f"no speech in {', '.join(names)}: `syntheses` has " + (", ".join(there) or "none yet")


def _not_spoken(selection_id: str) -> str:
    return f"selection {selection_id} contains no synthesised text; run `salad pass synthesise` first"


def audio(lab: Path | str, spoken: SpokenText, sample_rate: int) -> np.ndarray:
    """The recording, float32 [T] at `sample_rate`; a file cut short is a SaladError that names it."""
    return audio_of(lab, vars(spoken), sample_rate)


SHORTEST_S = 0.002  # by how much a recording may be shorter than its row says: what rounding and resampling take


class AudioError(SaladError):
    """A recording that cannot be read, or is cut short."""


def audio_of(lab: Path | str, row: dict, sample_rate: int) -> np.ndarray:
    """Samples of a row of the table `syntheses`, float32 [T] at the sample rate that is asked for; raises AudioError."""
    import soundfile
    import soxr

    path = Path(lab) / row["audio_path"]
    try:
        with open(path, "rb") as file:
            file.seek(row["audio_offset"])
            data = file.read(row["audio_bytes"])
        if row.get("audio_crc32") is not None and zlib.crc32(data) != row["audio_crc32"]:
            raise ValueError("its bytes changed: their CRC-32 does not agree")
        with interrupts.held():
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    except (OSError, RuntimeError, IndexError, TypeError, ValueError) as error:  # libsndfile's own is a RuntimeError
        raise AudioError(f"{path}: the recording of {row['synthesis_id']} cannot be read ({error})") from None
    missing_s = row["duration_s"] - len(samples) / rate
    if missing_s > SHORTEST_S or missing_s < -0.1:  # words and frames are laid out up to duration_s
        raise AudioError(f"{path}: the recording of {row['synthesis_id']} is cut short; run its pass again")
    return samples if rate == sample_rate else soxr.resample(samples, rate, sample_rate)


def texts(lab: Path | str, corpora: list[str]) -> list[str]:
    """The texts of lab/corpora/<name> that are not empty, in file order. An absent or damaged corpus is a SaladError."""
    return [row.text for row in text_rows(lab, corpora)]


def text_rows(lab: Path | str, corpora: list[str], path: Path | None = None) -> TextRows:
    """`texts` for training: rows stay in the file `path` (or in memory)."""
    schema = pa.schema([("text", pa.string()), ("answer", pa.string())])

    def batches():
        for name in corpora:
            folder = Path(lab) / "corpora" / name
            if not folder.is_dir():
                raise SaladError(f"no corpus {name!r}: {folder} does not exist")
            files.check(folder)
            try:
                dataset = ds.dataset(folder, format="parquet")
                there = [name for name in schema.names if name in dataset.schema.names]
                for batch in dataset.to_batches(columns=there or ["text"], batch_size=4096):
                    kept = batch.filter(pa.compute.not_equal(batch["text"], ""))
                    columns = [
                        kept[name].cast(pa.string()) if name in there else pa.nulls(len(kept), pa.string())
                        for name in schema.names
                    ]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)
            except (OSError, pa.ArrowException) as error:
                reason = str(error).splitlines()[0]
                raise SaladError(f"corpus {folder} cannot be read: {reason}; make it again") from None

    return TextRows(_table(batches(), schema, path))
