"""The reading and listening widget: a queue of texts, each with its sound, its words' times and the divergence of
every token. Keys: J/K next and previous, space play, R replay, 1 to 6 drop with a reason, Y keep, U undo."""

import math
from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

import store
from workbench import divergences, review
from workbench.markup import markdown

_HERE = Path(__file__).parent


class Listening(anywidget.AnyWidget):
    """Shows one text of `queue` at a time and writes what the reviewer says of it as events.

    Args:
        con: a connection to the lab, as store.connect gives it.
        judge: who says it, about which selection.
        queue: sample ids in the order to read them.
        on_decision: called after each keep, drop and undo with a description of it.
    """

    _esm = _HERE / "listening.js"
    _css = _HERE / "listening.css"
    card = traitlets.Dict().tag(sync=True)
    audio = traitlets.Bytes(b"").tag(sync=True)
    queue = traitlets.Dict().tag(sync=True)
    top = traitlets.Float(1.0).tag(sync=True)
    judges = traitlets.Bool(True).tag(sync=True)  # whether there are keys to keep and drop

    def __init__(self, con, judge: review.Review, queue: list[str], on_decision: Callable[[str], None] | None = None):
        super().__init__(top=review.top_divergence(con))
        self._con, self._judge, self._on_decision = con, judge, on_decision
        self._ids: list[str] = []
        self._index = 0
        self.on_msg(lambda _, message, buffers: self.handle(message))
        self.load(queue)

    def load(self, queue: list[str], message: str = "Nothing in this queue.") -> None:
        """Put another queue in and show its first text."""
        self._ids, self._index = list(queue), 0
        with self.hold_sync():  # at no moment the new queue's length beside the old one's text
            self.queue = {"total": len(self._ids), "message": message}
            self.show()

    def turn_to(self, sample_id: str, message: str | None = None) -> None:
        """Show this text; where it is not in the queue, it comes in before the one that is shown."""
        with self.hold_sync():
            if sample_id not in self._ids:
                self._ids.insert(self._index, sample_id)
                self.queue = {**self.queue, "total": len(self._ids)}
            self._index = self._ids.index(sample_id)
            self.show(message)

    @property
    def current(self) -> str | None:
        """The sample id of the text that is shown; None if the queue is empty."""
        return self._ids[self._index] if self._ids else None

    def _card(self) -> dict | None:
        return review.card(self._con, self._judge.selection_id, self.current)

    def show(self, message: str | None = None) -> None:
        """Send the current text's card, and its sound where that has changed."""
        if self.current is None:
            with self.hold_sync():
                self.card, self.audio = {}, b""
            return
        card = self._card()
        if card is None:
            self.card = {
                "sample_id": self.current,
                "index": self._index,
                "text": "",
                "words": [],
                "tokens": [],
                "said": [],
                "message": "This text is no longer in the lab; press J for the next one.",
            }
            self.audio = b""
            return
        if card["synthesis_id"] is None and self._judge:
            try:
                review.speak_now(self._judge.lab, self._con, self.current)
                store.refresh(self._con)
                card = self._card()
                message = message or "spoken just now"
            except (store.UserError, OSError) as error:
                message = f"could not be spoken: {error}"
        try:
            sound = store.audio(self._con, card["synthesis_id"]) if card["synthesis_id"] else b""
        except store.UserError as error:
            sound, message = b"", f"{message}; {error}" if message else str(error)
        with self.hold_sync():
            self.card = _plain({**card, "index": self._index, "message": message})
            self.audio = sound

    def handle(self, message: dict) -> None:
        """Do what a key or button asked for: {"type": "go", "step"} or {"type": "decide", "verdict", ...}."""
        if message.get("type") == "go" and self._ids:
            self._index = min(max(self._index + int(message["step"]), 0), len(self._ids) - 1)
            self.show()
        elif message.get("type") == "decide" and self._ids and self._judge:
            try:
                self._decide(message)
            except (store.UserError, OSError) as error:  # a full disk, a lab that cannot be written to
                self.show(f"not written down: {error}")

    def _decide(self, message: dict) -> None:
        sample_id, verdict, note = message.get("sample_id") or self.current, message["verdict"], message.get("note")
        if verdict == "undo":
            decision = self._judge.undo(self._con)
            if decision is None:
                self.show("nothing to undo")
                return
            store.refresh(self._con)
            summary = f"taken back: {decision['verdict']} {decision['reason'] or ''}"
            if decision["target"] == "sample":
                self.turn_to(decision["sample_id"], summary)
            else:
                self.show(summary)
        else:
            if verdict == "drop":
                decision = self._judge.drop(sample_id, message["reason"], note)
            else:
                decision = self._judge.keep(sample_id, note)
            store.refresh(self._con)
            last = self._index + 1 >= len(self._ids)
            self._index = min(self._index + 1, len(self._ids) - 1)
            self.show("that was the last one of this queue" if last else None)
        if self._on_decision:
            taken_back = "Taken back: " if verdict == "undo" else ""
            self._on_decision(taken_back + markdown("{} {}", decision["verdict"], decision.get("reason") or "").strip())


class Reading(Listening):
    """A read-only widget without keep and drop: the texts of `queue` as one checkpoint scored them."""

    judges = traitlets.Bool(False).tag(sync=True)

    def __init__(self, con, checkpoint: divergences.ScoredCheckpoint, queue: list[str]):
        self.checkpoint = checkpoint
        super().__init__(con, None, queue)

    def _card(self) -> dict | None:
        return divergences.card(self._con, self.checkpoint, self.current)


def _plain(value):
    """What JSON can carry: NaN becomes null, arrays lists."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
