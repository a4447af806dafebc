"""From documents and recordings to a lab: `salad prepare text` and `salad prepare speech`. See docs/data.md."""

from pathlib import Path

from salad.errors import SaladError
from salad.prepare.duplicates import near_duplicates
from salad.prepare.overlap import Benchmarks
from salad.prepare.recordings import refuse_nothing
from salad.prepare.speech import SpeechOptions, block_of, prepare_speech
from salad.prepare.text import TextOptions, prepare_text


def own_recogniser(lab: Path | str) -> str:
    """The lab's own recogniser. SaladError where it has none."""
    folder = Path(lab) / "models" / "recogniser"
    if not folder.is_dir():
        raise SaladError(
            f"{lab} has no recogniser of its own; name a CTC model with --recogniser, such as "
            "facebook/wav2vec2-base-960h or its folder"
        )
    return str(folder)


def parse_part(text: str) -> tuple[int, int]:
    """ "K/N" as (K, N). SaladError where it is none."""
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit() and int(k) < int(n)):
        raise SaladError(f"part {text!r} is no K/N with K from 0 to N - 1, such as 0/4")
    return int(k), int(n)


def describe_counts(counts: dict) -> str:
    """The counts of a preparation, for a person."""

    def parts(some: dict, but: str = "") -> str:
        largest = sorted(some.items(), key=lambda item: -item[1])
        return ", ".join(f"{n:,} {key}" for key, n in largest if key != but and n) or "none"

    if "documents" in counts:
        documents, passages = counts["documents"], counts["passages"]
        lines = [
            f"{documents['read']:,} documents: {parts(documents, 'read')}",
            f"{passages['cut']:,} passages: {parts(passages, 'cut')}; {counts['hours']:,.2f} h of expected speech are clean",
            f"flags: {parts(counts['flags'])}",
            f"left over of documents: {parts(counts['left over'])}",
        ]
        if counts["benchmarks"]:
            lines.append("overlap: " + ", ".join(f"{task} {n:,}" for task, n in counts["benchmarks"].items()))
        if short := counts["items too short to be looked for"]:
            lines.append("items too short for an overlap: " + ", ".join(f"{t} {n:,}" for t, n in short.items()))
    else:
        aside = counts["set aside"]
        lines = [
            f"{counts['listed']:,} recordings: {counts['kept']:,} kept ({counts['hours']:,.2f} h), "
            f"{sum(aside.values()):,} set aside",
            f"set aside: {parts(aside)}",
            f"flags: {parts(counts['flags'])}",
            f"shards: {counts['shards']}",
        ]
    return "\n".join([*lines, f"licences: {parts(counts['licences'])}"])


__all__ = [
    "Benchmarks", "SpeechOptions", "TextOptions", "block_of", "describe_counts", "near_duplicates", "own_recogniser",
    "parse_part", "prepare_speech", "prepare_text", "refuse_nothing",
]  # fmt: skip
