"""What the app's sessions share: the lab, its models, the listener, the comparisons that can be voted on, and those that
are kept."""

import datetime
import json
import math
import random
import re
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import store
from store import atomic
from workbench.arena import answers, models, questions, saved, uploads

EARLY_S = 0.3  # a player may end so much before the sound does
SIDES = ("left", "right")
CHOICES = {"left": "Left is better", "right": "Right is better", "tie": "Tie", "both_bad": "Both are bad"}


@dataclass
class SideBySide:
    """One question and its answers. `heard`: its audio was played to the end; `choice`: the vote, once it is cast."""

    id: str
    question: questions.Question
    answers: dict[str, answers.Answer]
    blind: bool
    seed: int
    heard: bool = False
    choice: str | None = None
    shown_at: float = field(default_factory=time.monotonic)  # when its sound could first be played
    at: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def facts(self, veiled: bool = False) -> dict:
        """JSON-able; `veiled` leaves out whatever tells the sides apart other than what they say."""
        q = self.question
        shown = {
            "comparison": self.id, "at": self.at, "question_id": q.question_id, "text": q.text, "source": q.source,
            "voice": q.voice, "duration_s": round(q.duration_s, 3), "notes": q.notes, "blind": self.blind,
            "choice": self.choice,
        }  # fmt: skip
        if veiled:  # without the seed, which drew the sides
            return shown | {side: {"text": answer.text.strip()} for side, answer in self.answers.items()}
        shown |= {"seed": self.seed, "heard": q.heard, "cer": q.cer, "answer": q.item.choices[q.item.answer] if q.item else None}
        return shown | {side: answer.facts() for side, answer in self.answers.items()}


class ArenaService:
    """What the app's sessions share: the lab, its models, the listener, and the comparisons that can be voted on."""

    KEPT = 500  # comparisons in memory; older ones can no longer be voted on

    def __init__(
        self,
        lab,
        device: str = "cpu",
        tts: str | None = None,
        recogniser: str | None = None,
        shots: int | None = None,
        keep: int = 4,
    ):
        self.lab, self.shots = Path(lab), shots
        self.models = models.Models(lab, device, keep)
        self.listener = questions.Listener(lab, device, tts, recogniser)
        self.comparisons: OrderedDict[str, SideBySide] = OrderedDict()
        self._lock = threading.Lock()
        self.sides()  # refuses a lab without a model before anything is shown

    def sides(self) -> list[tuple[str, str]]:
        """(label, key) of every contender in every modality, for the menus; key is `contender@run:step/modality`."""
        models_here = models.contenders(self.lab)
        return [
            (f"{c.name} · {modality}" + ("" if c.teacher else f" · {c.run_id}, step {c.step}"), f"{c.key}/{modality}")
            for c in models_here
            for modality in c.modalities
        ]

    def default_sides(self) -> tuple[str, str]:
        """The teacher's text answer, and the newest checkpoint's speech answer (stage2_active's, if there is one)."""
        models_here = models.contenders(self.lab)
        speech = next((c for c in models_here if c.name == "stage2_active"), models_here[1])
        return f"{models_here[0].key}/text", f"{speech.key}/speech"

    def _side(self, key: object) -> tuple[models.ArenaModel, str]:
        name, _, modality = key.rpartition("/") if isinstance(key, str) else ("", "", "")
        if modality not in models.MODALITIES:
            raise store.UserError(f"no side {key!r}: write contender/modality, such as teacher/text")
        return models.pick(models.contenders(self.lab), name), modality

    def ask(
        self, text: object = None, recording: object = None, item_id: object = None, voice: object = None, seed: object = 0
    ) -> questions.Question:
        """What a visitor asks, checked where it is used: words are words, a recording is an upload of this app, a voice
        is a name and no path."""
        text, item_id, voice = (_words(*given) for given in (("the question", text), ("the item", item_id), ("the voice", voice)))
        if voice and not re.fullmatch(r"[\w@=+,.-]{1,80}", voice):
            raise store.UserError(f"no voice {voice[:80]!r}: a voice is named by letters, digits and @ = + , . -")
        audio = None if recording is None else uploads.uploaded(recording)
        return self.listener.ask(text=text, audio=audio, item_id=item_id or None, voice=voice or None, seed=_seed(seed))

    def compare(
        self,
        question: questions.Question,
        left: str,
        right: str,
        *,
        cascade: bool = False,
        blind: bool = False,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> SideBySide:
        """A comparison with answers that have not begun; `cascade` adds the teacher's to what the recogniser heard."""
        seed, temperature = _seed(seed), _temperature(temperature)
        chosen = {"left": self._side(left), "right": self._side(right)}
        if cascade and question.heard is not None:
            chosen["cascade"] = self._side("teacher/cascade")
        made = {
            side: answers.Answer(self.models, contender, modality, question, self.listener.items, self.shots, temperature, seed)
            for side, (contender, modality) in chosen.items()
        }
        comparison = SideBySide("a" + secrets.token_hex(6), question, made, blind, seed)
        with self._lock:
            self.comparisons[comparison.id] = comparison
            while len(self.comparisons) > self.KEPT:
                self.comparisons.popitem(last=False)
        return comparison

    def blind(self, pool: list[str], question: questions.Question | None = None) -> SideBySide:
        """A blind comparison with whole greedy answers. The server draws sides and, without a question, the item: who
        asks knows neither, nor the seed that drew them."""
        seed = secrets.randbelow(2**31)
        left, right, item = self.draw(pool, seed, question is None)
        if question is None:
            question = self.listener.ask(item_id=item.item_id, seed=0)
        comparison = self.compare(question, left, right, blind=True, seed=seed)
        for answer in comparison.answers.values():
            answer.run()
        comparison.shown_at = time.monotonic()
        return comparison

    def listened(self, comparison_id: object) -> float:
        """Note that a comparison's question was played to its end. Returns the seconds that are still to be listened to:
        until they have passed, nothing is noted."""
        comparison = self.get(comparison_id)
        left = comparison.question.duration_s - (time.monotonic() - comparison.shown_at)
        if left > EARLY_S:
            return left
        comparison.heard = True
        return 0.0

    def draw(self, pool: list[str], seed: int, item: bool = True) -> tuple[str, str, object]:
        """Two sides of the pool in random order and, with `item`, an item to ask; the seed decides all three."""
        if not isinstance(pool, list) or len({_words("a side", side) for side in pool}) < 2:
            raise store.UserError("a blind comparison needs at least two sides in the pool")
        if item and not self.listener.items:
            raise store.UserError("this lab has no tasks, so it has no items to ask; use the tab Compare")
        rng = random.Random(seed)
        left, right = rng.sample(sorted(set(pool)), 2)
        return left, right, rng.choice(self.listener.items) if item else None

    def get(self, comparison_id: object) -> SideBySide:
        """The comparison; a StoreError where there is none."""
        comparison = self.comparisons.get(comparison_id) if isinstance(comparison_id, str) else None
        if comparison is None:
            raise store.UserError("this comparison no longer exists; ask again")
        return comparison

    def vote(self, comparison_id: str, choice: str, voter: str = "") -> SideBySide:
        """Write the vote into the store. One vote a comparison; a blind one only after its audio was heard."""
        comparison = self.get(comparison_id)
        if not isinstance(choice, str) or choice not in CHOICES:
            raise store.UserError(f"no choice {choice!r}; there are {', '.join(CHOICES)}")
        if not all(comparison.answers[side].done for side in SIDES):
            raise store.UserError("the answers are not complete yet: vote when both are there")
        if any(comparison.answers[side].why == answers.STOPPED for side in SIDES):
            raise store.UserError("an answer was stopped half-way: ask again before you vote")
        if comparison.blind and not comparison.heard:
            raise store.UserError("listen to the question to its end first, then vote")
        with self._lock:
            if comparison.choice is not None:
                raise store.UserError(f"this comparison has its vote already: {CHOICES[comparison.choice].lower()}")
            sides, spent = {}, {}
            for side in SIDES:
                answer = comparison.answers[side]
                facts = answer.facts()
                for name in ("contender", "run_id", "step", "modality"):
                    sides[f"{side}_{name}"] = facts[name]
                spent[side] = {
                    "first_s": facts["first_s"],
                    "total_s": facts["total_s"],
                    "tokens": facts["n_tokens"],
                    "gives_away": facts["gives_away"],
                }
            store.append(
                self.lab, "votes", question_id=comparison.question.question_id, **sides, choice=choice,
                blind=comparison.blind, voter=(voter or "").strip()[:80] or None, latencies=json.dumps(spent),
                seed=comparison.seed,
            )  # fmt: skip
            store.renew_soon(self.lab)
            comparison.choice = choice
        return comparison

    # what is kept because someone says so

    def save(self, comparison_id: str) -> str:
        """Keep a comparison (its texts and numbers, never its audio) in lab/arena; returns its id, for the link."""
        comparison = self.get(comparison_id)
        if comparison.blind and comparison.choice is None:
            raise store.UserError("vote first: saving would unveil who answered")
        folder = self.lab / "arena"
        folder.mkdir(exist_ok=True)
        atomic.write_json(folder / f"{comparison.id}.json", comparison.facts())
        return comparison.id

    def saved(self, comparison_id: object) -> dict:
        """A saved comparison's facts."""
        if not isinstance(comparison_id, str) or not re.fullmatch(r"a[0-9a-f]{12}", comparison_id):
            raise store.UserError("no comparison is saved under this link")
        path = self.lab / "arena" / f"{comparison_id}.json"
        if not path.is_file():
            raise store.UserError("no comparison is saved under this link")
        return saved.read(path)

    def history(self) -> tuple[list[dict], list[str]]:
        """The saved comparisons, newest first, and what is wrong with those that cannot be read."""
        comparisons, unread = [], []
        for path in sorted((self.lab / "arena").glob("a*.json")):
            try:
                comparisons.append(saved.read(path))
            except store.UserError as error:
                unread.append(str(error))
        return sorted(comparisons, key=lambda facts: facts["at"], reverse=True), unread


def _words(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise store.UserError(f"{name} is written in words")
    return value


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63 or value != int(value):
        raise store.UserError("a seed is a whole number from 0")
    return int(value)


def _temperature(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 10):
        raise store.UserError("a temperature is a number from 0 to 10")
    return float(value)
