"""Who can answer: a lab's checkpoints, each loaded once and shared by everyone."""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salad.errors import SaladError

if TYPE_CHECKING:
    from salad.models.speech_lm import SpeechLM

MODALITIES = ("text", "speech", "cascade")


@dataclass(frozen=True)
class ArenaModel:
    """A checkpoint that answers. `teacher`: the original LLM that this checkpoint holds answers instead.

    run_id and step are what votes say of it; `folder` is the checkpoint's model folder."""

    name: str
    run_id: str | None
    step: int | None
    folder: Path
    teacher: bool = False

    @property
    def key(self) -> str:
        """What identifies the contender in votes and links."""
        return f"{self.name}@{self.run_id or '-'}:{self.step if self.step is not None else '-'}"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in which the contender can answer."""
        return ("text", "cascade") if self.teacher else MODALITIES


def contenders(lab: Path | str) -> list[ArenaModel]:
    """The teacher, then every checkpoint of the finished Stage I and II runs, newest run and last step first.

    SaladError where no run is done."""
    from salad import lookup
    from salad.runs import RunFolder, read_json

    done = []
    for path in sorted(Path(lab).glob("runs/r*/config.json")):
        record, status = read_json(path) or {}, read_json(path.parent / "status.json") or {}
        if record.get("kind") in ("stage1", "stage2") and status.get("state") == "done":
            done.append((record["kind"], status.get("ended_at") or "", RunFolder.open(lab, record["run_id"])))
    done.sort(key=lambda checkpoint: checkpoint[:2], reverse=True)
    models = []
    for kind, _, run in done:
        name = run.config.get("contender") or kind
        models += [
            ArenaModel(name, run.run_id, int(folder.name.split("-")[1]), folder / "model")
            for folder in reversed(run.checkpoints())
        ]
    if not models:
        raise SaladError(f"no finished Stage I or II run in {lab}: make one with `salad demo --lab {lab}`")
    stage1 = {run.run_id for kind, _, run in done if kind == "stage1"}
    holder = next((c for c in models if c.run_id in stage1), models[0])
    return [ArenaModel("teacher", *lookup.newest_teacher(lab), holder.folder, teacher=True), *models]


def pick(models: list[ArenaModel], key: str) -> ArenaModel:
    """The contender with this key, or the newest checkpoint of this name; a SaladError that names those there are."""
    for contender in models:
        if key in (contender.key, contender.name):
            return contender
    names = list(dict.fromkeys(c.name for c in models))
    near = difflib.get_close_matches(key, [*names, *(c.key for c in models)], 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise SaladError(f"no contender {key!r}; {hint}")


class Models:
    """Speech LMs of a lab, each loaded once and shared by everyone; at most `keep` stay in memory."""

    def __init__(self, lab: Path | str, device: str = "cpu", keep: int = 4):
        self.lab, self.device, self.keep = Path(lab), device, keep
        self.lock = threading.RLock()  # a device runs one model at a time, and PyTorch's peft switch is global to it
        self._loaded: OrderedDict[Path, object] = OrderedDict()

    def get(self, contender: ArenaModel) -> SpeechLM:
        """The contender's SpeechLM, on the device. SaladError where its checkpoint is gone or damaged."""
        from salad.models.speech_lm import SpeechLM
        from salad.training import checkpoints

        with self.lock:
            if contender.folder not in self._loaded:
                checkpoints.verify(contender.folder.parent)
                while len(self._loaded) >= self.keep:
                    self._loaded.popitem(last=False)
                self._loaded[contender.folder] = SpeechLM.from_pretrained(contender.folder, self.lab).to(self.device)
            self._loaded.move_to_end(contender.folder)
            return self._loaded[contender.folder]
