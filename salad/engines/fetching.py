"""Files that a run on another machine needs from the lab, and the verification of what it sends back."""

from pathlib import Path

import store
from salad import lookup
from salad.errors import SaladError
from salad.runs import RunFolder

# tables that a run reads; what it writes comes back as new units
INPUT_TABLES = ("samples", "syntheses", "selections", "selected", "clusters", "assignments")


def inputs(run: RunFolder) -> list[str]:
    """Paths, relative to the lab, that the run reads: models, speech, corpora, tables, its parent's checkpoints.

    Names that are not files of the lab (hub names) are resolved on the other machine."""
    lab, config = run.lab, run.config
    wanted: list[str | None] = ["events", "tasks"]
    wanted += [f"runs/{run.run_id}/{name}" for name in ("config.json", "launch.json", "code.diff", "packages.txt")]
    wanted += [(config.get(part) or {}).get("name") for part in ("llm", "encoder")]
    data = config.get("data") or {}
    wanted += [f"speech/{name}" for name in data.get("natural") or ()]
    wanted += [f"corpora/{name}" for name in data.get("text") or ()]
    wanted += [f"tables/{table}" for table in INPUT_TABLES]
    if run.record.get("parent_run_id"):
        parent = f"runs/{run.record['parent_run_id']}"
        wanted += [f"{parent}/config.json", f"{parent}/status.json", f"{parent}/checkpoints"]
        wanted += [f"{parent}/{path.name}" for path in (lab / parent).glob("metrics-*.jsonl")]
    if config.get("selection"):
        wanted += [f"speech/{name}" for name in _speech_of(lab, config["selection"])]
    if config.get("pass"):
        wanted += _of_pass(lab, config)
    wanted += config.get("inputs") or ()  # a custom module names its own inputs
    return sorted({name for name in wanted if name and _inside(lab, name)})


def _of_pass(lab: Path, config: dict) -> list[str | None]:
    """What a pass reads as well: the run whose checkpoint or LLM it takes, with its models, speech, corpus, recogniser."""
    wanted = ["models/recogniser", "tables/embeddings", config.get("asr"), config.get("model")]
    wanted += [f"{room}/{config[key]}" for room, key in (("speech", "speech"), ("corpora", "corpus")) if config.get(key)]
    run_id = config.get("run_id")
    if run_id is None and config["pass"] in ("embed", "cluster") and config.get("model") in (None, "teacher"):
        run_id = lookup.newest_run(lab, "stage1")
    if run_id is not None:
        scored = RunFolder.open(lab, run_id)
        wanted += [f"runs/{run_id}/{name}" for name in ("config.json", "status.json")]
        step = config.get("step")
        wanted.append(f"runs/{run_id}/checkpoints" + ("" if step is None else f"/step-{step}"))
        wanted += [f"runs/{run_id}/{path.name}" for path in scored.path.glob("metrics-*.jsonl")]
        wanted += [(scored.config.get(part) or {}).get("name") for part in ("llm", "encoder")]
    return wanted


def _inside(lab: Path, name: str) -> bool:
    path = lab / name
    return path.exists() and path.resolve().is_relative_to(lab.resolve())


def _speech_of(lab: Path, selection: str) -> list[str]:
    rows = store.connect(lab).execute(
        "select distinct speech from syntheses join selected using (sample_id) where selection_id = ?",
        [selection],
    )
    return [name for (name,) in rows.fetchall() if name]


def verified_checkpoints(run: RunFolder) -> tuple[int, list[str]]:
    """(number of whole checkpoints, what is wrong with the others)."""
    from salad.training import checkpoints  # imports torch

    whole, damaged = 0, []
    for folder in run.checkpoints():
        try:
            checkpoints.verify(folder)
            whole += 1
        except SaladError as error:
            damaged.append(str(error))
    return whole, damaged
