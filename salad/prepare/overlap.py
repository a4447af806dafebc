"""Which texts share a run of words with an evaluation item: decontamination by n-grams, as GPT-3's (arXiv 2005.14165,
appendix C: 13 words), against every task of a lab."""

import re
from pathlib import Path

import numpy as np
import xxhash

from salad.speech.characters import plain_text
from salad.speech.languages import UNSPACED

NGRAM = 13
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, of the text in one form of Unicode, as it is read aloud: quotes, accents,
    invisible characters and full-width letters make no difference. Scripts without blanks: each character."""
    return _WORD.findall(plain_text(text).text.lower())


def ngrams(text: str, n: int) -> np.ndarray:
    """uint64 hashes of the n-grams of words; empty where there are fewer than `n` words."""
    sequence = words(text)
    hashes = [xxhash.xxh3_64_intdigest(" ".join(sequence[i : i + n]).encode()) for i in range(len(sequence) - n + 1)]
    return np.array(hashes, np.uint64)


class Benchmarks:
    """The n-grams of every item (context and each choice after it) of tasks, 8 bytes and a task number each.

    `too_short`: task -> items of which no choice has `n` words, so that no overlap with them can be seen."""

    def __init__(self, items: dict[str, list[str]] | dict[str, list[list[str]]], n: int = NGRAM):
        """`items`: task -> its items, each the list of its texts."""
        self.n, self.tasks = n, sorted(items)
        self.too_short: dict[str, int] = {}
        hashes, owners = [], []
        for number, task in enumerate(self.tasks):
            for texts in items[task]:
                item_hashes = np.concatenate([np.zeros(0, np.uint64), *(ngrams(text, n) for text in texts)])
                if not len(item_hashes):
                    self.too_short[task] = self.too_short.get(task, 0) + 1
                hashes.append(item_hashes)
                owners.append(np.full(len(item_hashes), number, np.int32))
        pairs = np.empty(sum(map(len, hashes)), [("hash", np.uint64), ("task", np.int32)])
        pairs["hash"] = np.concatenate(hashes or [np.zeros(0, np.uint64)])
        pairs["task"] = np.concatenate(owners or [np.zeros(0, np.int32)])
        pairs = np.unique(pairs)
        self.hashes, self.owners = np.ascontiguousarray(pairs["hash"]), np.ascontiguousarray(pairs["task"])

    @classmethod
    def of_lab(cls, lab: Path | str, names: list[str] | None = None, n: int = NGRAM) -> "Benchmarks":
        """Of lab/tasks, or of some of its tasks. Raises SaladError for a task that the lab has not."""
        from salad.evaluation import tasks

        return cls(
            {
                name: [[f"{item.context} {choice}" for choice in item.choices] for item in tasks.load(lab, name)]
                for name in (tasks.names(lab) if names is None else names)
            },
            n,
        )

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any n-gram of any task."""
        return xxhash.xxh3_64_hexdigest(self.hashes.tobytes() + self.owners.tobytes() + "\n".join(self.tasks).encode())

    def overlaps(self, text: str) -> list[str]:
        """The tasks that `text` shares an n-gram with."""
        if not len(self.hashes):
            return []
        text_hashes = ngrams(text, self.n)
        low, high = np.searchsorted(self.hashes, text_hashes, "left"), np.searchsorted(self.hashes, text_hashes, "right")
        seen = {int(task) for a, b in zip(low, high, strict=True) for task in self.owners[a:b]}
        return [self.tasks[number] for number in sorted(seen)]
