"""What a lab's newest things are: run, checkpoint, clustering, teacher. Whoever is given no name asks here.

Newest is what ended last (`runs.ended_at`), of equals the higher id; only runs that are done count.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import store
from salad.errors import SaladError
from salad.runs import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from salad.models.speech_lm import SpeechLM


class Checkpoint(NamedTuple):
    """A run's checkpoint; `folder` is its checkpoints/step-<step>, verified."""

    run_id: str
    step: int
    folder: Path


class TeacherSource(NamedTuple):
    """The text LLM as evaluations name it: the run that made it and its last step, both None where no run did."""

    run_id: str | None
    step: int | None


def newest_run(lab: Path | str, kind: str, advice: str = "name one with --run") -> str:
    """The id of the newest run of a kind that is done (stage1, stage2, teacher …).

    SaladError where there is none, ending in `advice`: what the caller's user can do about it."""
    row = _newest_run(lab, kind)
    if row is None:
        raise SaladError(f"{lab} has no finished {kind} run; {advice}")
    return row[0]


def newest_teacher(lab: Path | str) -> TeacherSource:
    """The newest teacher that a run of this lab trained; TeacherSource(None, None) where the teacher came from elsewhere."""
    return TeacherSource(*(_newest_run(lab, "teacher") or (None, None)))


def _newest_run(lab: Path | str, kind: str) -> tuple[str, int | None] | None:
    return (
        store.connect(lab)
        .execute(
            "SELECT run_id, step FROM runs WHERE kind = ? AND status = 'done' "
            "ORDER BY ended_at DESC NULLS LAST, run_id DESC LIMIT 1",
            [kind],
        )
        .fetchone()
    )


def newest_clustering(lab: Path | str) -> str:
    """The id of the newest clustering, which is the one that the view `divergences` names; SaladError without one."""
    ((newest,),) = store.connect(lab).execute("SELECT any_value(clustering_id) FROM current_clusters").fetchall()
    if newest is None:
        raise SaladError(f"{lab} has no clustering; make one with `salad pass cluster`")
    return newest


def scoring_spans(lab: Path | str, run_id: str) -> tuple[int, int]:
    """(shortest, longest) span in which a run is scored, in units: one range a study, so that its contenders compare.

    What lab/study.json says (`scoring.span_units`), else what the run's Stage I was trained in; of a run that is not in
    this lab (1, 4). SaladError for a run that is no training, or a study.json that cannot be read."""
    from salad.config import RunConfig, validate

    path = Path(lab) / "study.json"
    if path.exists():
        try:
            spans = (json.loads(path.read_text()).get("scoring") or {}).get("span_units")
            if spans is not None:
                low, high = map(int, spans)
                if 1 <= low <= high:
                    return low, high
                raise ValueError(f"{spans} is not (shortest, longest)")
        except (OSError, RecursionError, ValueError, TypeError, AttributeError) as error:
            raise SaladError(f"{path}: scoring.span_units cannot be read ({error})") from None
    parent: str | None = run_id
    while parent:
        if not (Path(lab) / "runs" / parent).is_dir():
            return 1, 4
        run = RunFolder.open(lab, parent)
        parent = run.record.get("parent_run_id")
    return validate(RunConfig, run.config).sequences.span_units


def checkpoint(lab: Path | str, run_id: str, step: int | None = None) -> Checkpoint:
    """A run's checkpoint; by default its last whole one. SaladError where the run has none, or not this one."""
    from salad.training import checkpoints

    run = RunFolder.open(lab, run_id)
    if step is not None:
        return Checkpoint(run_id, step, checkpoints.at(run.path, step))
    newest = checkpoints.latest(run.path)
    if newest is None:
        raise SaladError(f"run {run_id} has no checkpoint yet")
    return Checkpoint(run_id, int(newest.name.partition("-")[2]), newest)


def model_of(lab: Path | str, run_id: str, step: int | None = None) -> "tuple[SpeechLM, int]":
    """(the model of a run's checkpoint, ready to be asked; its step); by default of the last whole one."""
    from salad.models.speech_lm import SpeechLM

    chosen = checkpoint(lab, run_id, step)
    return SpeechLM.from_pretrained(chosen.folder / "model", lab).eval(), chosen.step


def llm_of(lab: Path | str, run_id: str | None = None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """(the original text LLM of a run, its tokenizer); by default of the newest Stage I."""
    from salad.config import RunConfig, validate
    from salad.models.speech_lm import load_llm, load_tokenizer

    config = validate(RunConfig, RunFolder.open(lab, run_id or newest_run(lab, "stage1")).config)
    return load_llm(config.llm, lab), load_tokenizer(config.llm.name, lab)
