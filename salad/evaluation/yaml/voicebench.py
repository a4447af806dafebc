"""What the YAML files of VoiceBench's tasks need beyond templates."""

import re


def recorded(dataset):
    """The data set with its recordings as they are stored, for `salad.evaluation.spoken` to decode."""
    import datasets

    if isinstance(dataset.features.get("audio"), datasets.Audio):
        return dataset.cast_column("audio", datasets.Audio(decode=False))
    return dataset


def mmsu(**_):
    """MMSU's subjects, each a split of its own, as one."""
    import datasets

    subjects = datasets.load_dataset("hlt-lab/voicebench", "mmsu")
    return {"test": datasets.concatenate_datasets([recorded(subjects[name]) for name in sorted(subjects)])}


def _plain(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', str(text).lower()))} "


def names_the_reference(doc: dict, results: list[str]) -> dict:
    """acc: whether the answer holds the reference word by word, whatever the case and the punctuation; of several
    references (a list, or a text with ";" between them) one suffices."""
    references = doc["reference"] if isinstance(doc["reference"], list) else str(doc["reference"]).split(";")
    answer = _plain(results[0])
    return {"acc": float(any(_plain(reference) in answer for reference in references if _plain(reference).strip()))}
