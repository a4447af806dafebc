"""What a reviewer sets going: speech for a text, Stage II on what is kept, an export."""

import hashlib
from pathlib import Path

import duckdb

import store
from workbench.review.events import standing_events
from workbench.review.held import texts_with_verdicts

BY_HAND = 2**31 - 1  # the seed of speech made here, so that the synthesis pass, with its own seed, makes its own


def speak_now(lab: Path, con: duckdb.DuckDBPyConnection, sample_id: str) -> None:
    """Speak a text that has no speech yet with the lab's usual engine and voices, and keep it in the lab."""
    from salad import parts
    from salad.passes.synthesise import jobs_of, synthesise
    from salad.speech import load_tts

    voices = con.execute("""SELECT tts, list(DISTINCT voice ORDER BY voice) FROM syntheses WHERE tts <> 'recorded'
        GROUP BY tts ORDER BY count(*) DESC, tts LIMIT 1""").fetchone() or ("espeak", None)
    parts.check(voices[0], f"{lab}, in syntheses.tts,")
    tts = load_tts(voices[0])
    text = con.execute("SELECT text FROM samples WHERE sample_id = ?", [sample_id]).fetchone()[0]
    jobs = jobs_of([(sample_id, text)], tuple(voices[1] or tts.voices[:1]), BY_HAND)
    synthesise(lab, f"by-hand-{sample_id}", jobs, tts, {"by hand": sample_id})


def launch_stage2(lab: Path, selection_id: str, recipe: str, on: str = "here") -> tuple:
    """Freeze what is kept and synthesised as a child selection and start Stage II on it: (child id, Run)."""
    import launch_gpu
    from salad import selection

    child = selection.freeze(lab, selection_id)
    return child, launch_gpu.launch(recipe, on=on, lab=lab, overrides={"selection": child})


def export_kept(lab: Path, con: duckdb.DuckDBPyConnection, selection_id: str) -> Path:
    """Write what is kept of a selection to lab/exports/<hash of selection and kept texts>/: texts.parquet, selection.json
    (whose and what it is), and the speech that exists as a Lhotse Shar in speech/.

    Returns the folder, which appears at once and whole; the same texts give the same one."""
    import shutil
    import tempfile

    from workbench.tables import write_parquet

    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE export_kept AS {texts_with_verdicts(con, selection_id)}
            SELECT * FROM texts WHERE NOT dropped ORDER BY draw"""
    )
    rows = con.sql("SELECT * FROM export_kept").to_arrow_table()
    speech = con.sql("""SELECT cut_id, regexp_replace(audio_path, '/[^/]*$', '') AS folder
        FROM export_kept JOIN syntheses USING (synthesis_id) WHERE audio_path IS NOT NULL""").fetchall()
    wanted = {cut for cut, _ in speech}
    name = store.ids.hash_id("l", selection_id, sorted(rows["sample_id"].to_pylist()), sorted(wanted))
    final = Path(lab) / "exports" / name
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".") as place:
        folder = Path(place, name)
        folder.mkdir()
        write_parquet(rows, folder / "texts.parquet")
        store.atomic.write_json(folder / "selection.json", {
            "hash": name, "selection_id": selection_id, "texts": len(rows), "spoken": len(wanted),
            "texts_sha256": hashlib.sha256((folder / "texts.parquet").read_bytes()).hexdigest(),
            "dropped_by_rule": standing_events(con, selection_id, target="rule").rule.tolist(),
        })  # fmt: skip
        if wanted:
            _export_speech([Path(lab, f) for f in sorted({f for _, f in speech})], wanted, folder / "speech")
        shutil.move(folder, final)
        store.atomic.fsync_folder(final.parent)
    return final


def _export_speech(folders: list[Path], wanted: set[str], to: Path) -> None:
    """The wanted cuts of Shar folders as a Shar of their own, one at a time: the audio of a study need not fit memory."""
    from lhotse import CutSet  # seconds to import
    from lhotse.shar import SharWriter

    from salad import interrupts

    to.mkdir()
    with SharWriter(str(to), fields={"recording": "flac"}, shard_size=1000) as writer:
        for folder in folders:
            for cut in CutSet.from_shar(in_dir=str(folder)):
                if cut.id in wanted:
                    # where it was read from is of no use elsewhere
                    cut.custom = {k: v for k, v in (cut.custom or {}).items() if not k.startswith("shar")}
                    with interrupts.held():
                        writer.write(cut)
