"""Check what was spoken: transcript, CER, WER and flags of a speech folder under a recogniser, into its `syntheses`."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

import store
from salad.errors import SaladError
from salad.models.names import is_kept
from salad.passes import Part, Progress, run_parts
from salad.passes.synthesise import checked
from store.units import MEMBER


def check(
    lab: Path | str, speech: str, asr: str, load: Callable, shard: int = 0, shards: int = 1, progress: Progress | None = None
) -> None:
    """Publish the units of lab/speech/<speech> again with what the recogniser `asr` (made by `load`) makes of them.

    A unit is done where this recogniser has heard all of it. Recordings are checked against their text, before and
    after they are put into words. SaladError where the folder has no speech, and where a recording cannot be read: its
    unit stays as it is, the others go on."""
    run_parts(lab, parts(lab, speech, asr, load), shard, shards, progress)


def parts(lab: Path | str, speech: str, asr: str, load: Callable) -> list[Part]:
    """The pass's parts: units of `syntheses` that hold this folder's speech, in the order of their files."""
    groups: list[tuple] = []
    loaded: list = []
    others: set[str] = set()
    for unit in store.units.scan(store.lab_path(lab))[0].get("syntheses", []):
        table = pq.read_table(unit.path)
        members = {m["unit_id"]: m["made_from"] for m in unit.manifest.get("members", [])}
        for unit_id, made_from in members.items() or [(unit.unit_id, unit.manifest["made_from"])]:
            rows = table.filter(pc.equal(table[MEMBER], unit_id)) if members else table
            if unit_id not in unit.without and rows.num_rows and rows["speech"][0].as_py() == speech:
                groups.append((rows.drop_columns([MEMBER]) if members else rows, made_from))
            elif rows.num_rows:
                others.add(str(rows["speech"][0].as_py()))
    if not groups:
        raise SaladError(f"no speech in {speech!r}: `syntheses` has {', '.join(sorted(others)) or 'none yet'}")

    def of(rows, made_from) -> Part:
        def make(tick) -> None:
            if not loaded:
                loaded.append(load())
            there = rows.to_pylist()
            ids = sorted({row["sample_id"] for row in there})
            texts = dict(
                store.connect(lab)
                .execute("select sample_id, text from samples where sample_id in (select unnest(?))", [ids])
                .fetchall()
            )
            lost = next((i for i in ids if i not in texts), None)
            if lost is not None:
                raise SaladError(f"{there[0]['audio_path']}: the text {lost} of a recording is not in `samples`")
            store.publish(lab, "syntheses", checked(lab, there, texts, loaded[0]), made_from)
            tick(len(there))

        def recogniser_loaded() -> bool:
            return all(is_kept(name, asr, lab) for name in set(rows["asr"].to_pylist()))

        return Part(made_from, ("syntheses",), rows.num_rows, make, recogniser_loaded)

    return [of(*group) for group in sorted(groups, key=lambda group: group[0]["audio_path"][0].as_py())]
