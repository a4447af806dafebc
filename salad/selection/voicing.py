"""Which synthesis of a text belongs to a selection: the one that was made for it, not another voice's.

A text may be spoken several times: in the probe's voices, for another arm, by a reviewer. What trains on a selection hears
the engine, voices and seed that the selection was synthesised with. Synthesis notes them in
lab/speech/<folder>/selection.json; of a lab from before, the folder's name and its rows tell.
"""

import json
from pathlib import Path
from typing import NamedTuple

import duckdb
import pandas as pd

import store
from store import atomic

NOTE = "selection.json"


class Voicing(NamedTuple):
    """How a selection is spoken: the engine's name, its voices in order (a text's is drawn by seed and id), the seed."""

    tts: str
    voices: tuple[str, ...]
    seed: int


def voice_of(sample_id: str, voices: tuple[str, ...], seed: int, turn: int = 0) -> str:
    """The voice of `voices` in which a text is spoken, a function of its id and the seed; `turn`: the next ones."""
    first = int(store.ids.digest([seed, sample_id]), 16) % len(voices)
    return voices[(first + turn) % len(voices)]


def note(lab: Path | str, folder: str, selection_id: str, voicing: Voicing) -> None:
    """Write down that lab/speech/<folder> is the speech of a selection, and how it is spoken."""
    record = {"selection_id": selection_id, "tts": voicing.tts, "voices": list(voicing.voices), "seed": voicing.seed}
    atomic.write_json(Path(lab) / "speech" / folder / NOTE, record)


def voicings(con: duckdb.DuckDBPyConnection, selection_id: str) -> list[Voicing]:
    """How a selection was spoken: as noted, else as the rows of the folders that bear its name show. Empty where it was
    not, or where nothing tells."""
    lab = Path(con.execute("SELECT path FROM raw.lab").fetchall()[0][0])
    distinct = []
    for path in sorted(lab.glob(f"speech/{selection_id}*/{NOTE}")):
        try:
            record = json.loads(path.read_text())
            if record["selection_id"] == selection_id and record["voices"]:
                distinct.append(Voicing(str(record["tts"]), tuple(map(str, record["voices"])), int(record["seed"])))
        except (OSError, RecursionError, ValueError, KeyError, TypeError):
            continue  # then the rows tell
    if not distinct:
        rows = con.execute(
            """SELECT tts, list(DISTINCT voice ORDER BY voice), seed FROM syntheses
            WHERE tts <> 'recorded' AND (speech = $1 OR starts_with(speech, $1 || '-')) GROUP BY tts, seed ORDER BY ALL""",
            [selection_id],
        ).fetchall()
        distinct = [Voicing(tts, tuple(voices), seed) for tts, voices, seed in rows]
    return list(dict.fromkeys(distinct))


def own_speech(con: duckdb.DuckDBPyConnection, selection_id: str) -> tuple[pd.DataFrame, list[Voicing]]:
    """(sample_id, synthesis_id, duration_s of the selection's own speech, a row a text that has some; the ways in which it
    was spoken, the one that is taken first).

    Of a frozen selection that names its syntheses, those. Of one that was spoken in several ways, the way with the most
    seconds. A selection that was not spoken itself has the way of its nearest ancestor that was; where nothing tells how,
    each text's first synthesis by seed and id, as all selections had before."""
    named = con.execute(
        """SELECT t.sample_id, y.synthesis_id, any_value(y.duration_s) AS duration_s FROM selected t
        JOIN syntheses y ON y.synthesis_id = t.own_synthesis_id WHERE t.selection_id = ? GROUP BY ALL""",
        [selection_id],
    ).df()
    if len(named):
        return named, []
    spoken = con.execute(
        """SELECT y.sample_id, y.synthesis_id, y.tts, y.voice, y.seed, y.duration_s FROM syntheses y
        WHERE y.tts <> 'recorded' AND y.sample_id IN (SELECT sample_id FROM selected WHERE selection_id = ?)
        ORDER BY y.sample_id, y.seed, y.synthesis_id""",
        [selection_id],
    ).df()
    columns = ["sample_id", "synthesis_id", "duration_s"]
    line = con.execute("SELECT ancestor_id FROM lineage WHERE selection_id = ? ORDER BY depth", [selection_id]).fetchall()
    for (ancestor,) in line:
        ways = []
        for way in voicings(con, ancestor):
            voice = [voice_of(s, way.voices, way.seed) for s in spoken.sample_id]
            own = spoken[(spoken.tts == way.tts) & (spoken.seed == way.seed) & (spoken.voice == voice)]
            ways.append((own.drop_duplicates("sample_id")[columns], way))
        if ways:
            ways.sort(key=lambda pair: (-pair[0].duration_s.sum(), pair[1]))
            return ways[0][0], [way for _, way in ways]
    return spoken.drop_duplicates("sample_id")[columns], []
