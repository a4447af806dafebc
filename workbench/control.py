"""The questions and actions behind notebooks/training.py: a form made from RunConfig's own schema, the command line
that it equals, the lab's runs, and what a person does with them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import duckdb
import marimo as mo
import pandas as pd
from pydantic_core import to_jsonable_python

import store
from salad import recipes
from salad.config import RunConfig, apply_overrides
from workbench.markup import markdown, plain, preformatted

LIVE = ("queued", "starting", "running", "preempted", "stalled")
FIRST = ("loss", "m", "d_speech", "d_text", "tokens_per_s", "nll")
SHOWN = FIRST[:-1]  # the curves that are shown first


# -------------------------------------------------------------------------------------------------- the form


def leaves(schema: dict | None = None, definitions: dict | None = None, prefix: str = "") -> dict[str, dict]:
    """{"a.b": its JSON schema} of every value in RunConfig, in the order of its definition."""
    schema = RunConfig.model_json_schema() if schema is None else schema
    definitions = schema["$defs"] if definitions is None else definitions
    fields = {}
    for key, value in schema["properties"].items():
        if "$ref" in value:
            fields |= leaves(definitions[value["$ref"].rsplit("/", 1)[1]], definitions, f"{prefix}{key}.")
        else:
            fields[prefix + key] = value
    return fields


def values(config: RunConfig) -> dict[str, object]:
    """{"a.b": value} of a configuration, as JSON has them; also those that a stored one leaves out at their default."""
    changes, known = {}, leaves()

    def walk(data, prefix):
        for key, value in data.items():
            is_section = isinstance(value, dict) and prefix + key not in known  # a mapping of its own is a value
            walk(value, f"{prefix}{key}.") if is_section else changes.update({prefix + key: value})

    walk(to_jsonable_python(config.model_dump()), "")
    return changes


def form(recipe: str) -> mo.ui.dictionary:
    """One input per value of RunConfig, holding what the recipe says. An unknown recipe is a SaladError."""
    held = values(recipes.get(recipe))
    return mo.ui.dictionary({key: _input(key, schema, held[key]) for key, schema in leaves().items()})


def _input(key: str, schema: dict, value):
    label = key.rsplit(".", 1)[-1]
    if "enum" in schema:
        return mo.ui.dropdown(schema["enum"], value=value, label=label)
    if schema.get("type") == "boolean":
        return mo.ui.checkbox(value=value, label=label)
    if schema.get("type") == "integer":
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1 if "exclusiveMinimum" in schema else None)
        return mo.ui.number(low, schema.get("maximum"), 1, value=value, label=label, debounce=True)
    return mo.ui.text(value if isinstance(value, str) else json.dumps(value), label=label, debounce=True)


def form_laid_out(inputs: mo.ui.dictionary) -> mo.Html:
    """The form's inputs by section, each beside its description from the schema, if any."""
    sections: dict[str, list] = {}
    for key, schema in leaves().items():
        description = mo.md(f"<small style='opacity:.75'>{schema.get('description', '')}</small>")
        section = key.split(".")[0] if "." in key else "run"
        sections.setdefault(section, []).append(mo.hstack([inputs[key], description], justify="start", gap=1, align="center"))
    return mo.accordion({name: mo.vstack(rows, gap=0.4) for name, rows in sections.items()}, multiple=True)


def overrides(recipe: str, given: dict) -> dict[str, object]:
    """What a filled form changes of its recipe, as launch() takes it. A bad value is a SaladError in one line."""
    config, schemas = recipes.get(recipe), leaves()
    changed = {}
    for key, value in values(config).items():
        new = given.get(key, value)
        if isinstance(new, str) and schemas[key].get("type") != "string" and "enum" not in schemas[key]:
            try:
                new = json.loads(new or "null")
            except ValueError:
                pass  # a string, where the schema also takes one; else the check below tells
        if new != value:
            changed[key] = new
    apply_overrides(config, changed)
    return changed


def command_line(recipe: str, changed: dict, on: str = "here", gpus: str = "", lab: Path | str = None, **limits) -> str:
    """The launch as a person would type it. `limits`: max_hours, budget, ..., left out where None."""
    words = ["python", "launch_gpu.py", recipe]
    for key, value in changed.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    words += ["--on", on] + (["--gpus", gpus] if gpus else [])
    for name, value in limits.items():
        words += [f"--{name.replace('_', '-')}", f"{value:g}"] if value else []
    return shlex.join(words + (["--lab", str(lab)] if lab else []))


# -------------------------------------------------------------------------------------------------- the runs


def runs(con: duckdb.DuckDBPyConnection, lab: Path | str) -> pd.DataFrame:
    """The lab's runs, newest first: run_id, kind, contender, recipe, state, step, max_steps, seconds_left, tokens,
    started_at, seconds, tags, note, error. Runs that are going are asked (and one whose process is gone is failed)."""
    table = con.execute("""
        SELECT run_id, kind, coalesce(config->>'contender', '') AS contender, recipe, status AS state, step, max_steps,
            seconds_left, tokens, started_at, date_diff('second', started_at, coalesce(ended_at, heartbeat_at))
            AS seconds, coalesce(tags, '') AS tags, coalesce(note, '') AS note, coalesce(error, '') AS error
        FROM runs ORDER BY started_at DESC NULLS FIRST, run_id""").df()
    going = table.state.isin(LIVE)
    for at, run_id in table.run_id[going].items():
        status = now(lab, run_id)
        table.loc[at, ["state", "error"]] = [status.get("state") or table.state[at], status.get("error") or ""]
    table.loc[~table.state.isin(LIVE), "seconds_left"] = None
    return table


def now(lab: Path | str, run_id: str) -> dict:
    """What a run says of itself, checked against its engine; empty where it cannot be asked."""
    from launch_gpu import Run

    try:
        return Run.open(lab, run_id).status()
    except (store.UserError, OSError):  # a read-only lab, a damaged file: what the store says stands
        return {}


def duration(seconds: float | None) -> str:
    """Seconds as text, such as "2 h 05 min"; empty for a missing value."""
    if seconds is None or pd.isna(seconds):
        return ""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"


def runs_table(rows: pd.DataFrame, kept: dict) -> mo.ui.table:
    """The runs to read and to choose from; a bar is the steps done. `kept` ({"runs": ids}) holds what is chosen from
    one drawing to the next."""

    def bar(row):
        if pd.isna(row.step) or pd.isna(row.max_steps) or not row.max_steps:
            return ""
        part = min(1.0, row.step / row.max_steps)
        return f"{'█' * round(8 * part):░<8} {int(row.step):,} / {int(row.max_steps):,}"

    shown = pd.DataFrame(
        {
            "run": rows.run_id, "kind": rows.kind, "contender": rows.contender, "recipe": rows.recipe,
            "state": rows.state, "progress": [bar(r) for r in rows.itertuples()],
            "left": rows.seconds_left.map(duration), "took": rows.seconds.map(duration),
            "started (UTC)": [f"{t:%m-%d %H:%M}" if pd.notna(t) else "" for t in rows.started_at],
            "tags": rows.tags, "note": rows.note, "error": rows.error,
        }
    )  # fmt: skip
    shown = shown.loc[:, [c for c in shown if c not in ("left", "tags", "note", "error") or (shown[c] != "").any()]]
    chosen = kept.get("runs") or overlaid(rows)
    first = [i for i, run_id in enumerate(rows.run_id) if run_id in chosen]
    return mo.ui.table(
        shown, selection="multi", initial_selection=first, page_size=10, show_download=False, show_data_types=False,
        show_column_summaries=False, on_change=lambda picked: kept.update(runs=list(picked.run) if len(picked) else []),
    )  # fmt: skip


def overlaid(rows: pd.DataFrame) -> list[str]:
    """The runs whose curves are shown first: the going ones, else the newest of Stage II, else the newest."""
    for part in (rows[rows.state.isin(LIVE)], rows[rows.kind == "stage2"].head(2), rows.head(1)):
        if len(part):
            return part.run_id.tolist()
    return []


def measures(con: duckdb.DuckDBPyConnection, run_ids: list[str]) -> list[str]:
    """Names of what the runs have logged, and m where one of their checkpoints is scored; the losses first."""
    rows = con.execute(
        """SELECT DISTINCT name FROM metrics WHERE run_id IN (SELECT unnest($1))
        UNION SELECT 'm' FROM raw.scored WHERE run_id IN (SELECT unnest($1))""",
        [run_ids],
    ).fetchall()
    return sorted((name for (name,) in rows), key=lambda n: (FIRST.index(n) if n in FIRST else 9, n))


def unscored(con: duckdb.DuckDBPyConnection, lab: Path | str, run_ids: list[str]) -> str:
    """How to have M and F of those of the chosen runs that train adapters and have no scored checkpoint, in a sentence."""
    rows = con.execute(
        """SELECT run_id FROM runs WHERE run_id IN (SELECT unnest(?)) AND kind IN ('stage1', 'stage2')
        AND run_id NOT IN (SELECT run_id FROM raw.scored) ORDER BY 1""",
        [run_ids],
    ).fetchall()
    if not rows:
        return ""
    named = ", ".join(markdown("<code>{}</code>", run_id) for (run_id,) in rows)
    return (
        f"M and F are of checkpoints, which a pass scores: none is scored yet of {named}. "
        + markdown("<code>salad pass score --lab {} --run {} --speech heldout</code> scores the last, ", lab, rows[0][0])
        + "with `--step` another."
    )


def differences(con: duckdb.DuckDBPyConnection, run_ids: list[str]) -> pd.DataFrame | None:
    """How two chosen runs differ, from configuration to results: what, key, and a column for each. None unless two."""
    if len(run_ids) != 2:
        return None
    table = con.execute("FROM run_differences(?, ?)", run_ids).df()
    return table.set_axis(["what", "key", *run_ids], axis=1)


def log(lab: Path | str, run_id: str, lines: int = 25) -> str:
    """The last lines of a run's log as it stands here."""
    path = Path(lab) / "runs" / run_id / "log.txt"
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 200 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return "This run has no log: it ran inside another command, or has not begun."


def note(lab: Path | str, run_ids: list[str], tags: str, words: str, author: str) -> str:
    """Tag runs and note something on them: one event each. Says what was done."""
    for run_id in run_ids:
        store.append(lab, "run_notes", run_id=run_id, tags=tags or None, note=words or None, author=author)
    store.renew_soon(lab)
    return markdown("Noted on {}.", ", ".join(run_ids)) if run_ids else "Choose a run in the table first."


def stop(lab: Path | str, run_ids: list[str]) -> str:
    """Ask runs to write a checkpoint and end. Returns a message about the result."""
    from launch_gpu import Run

    messages = [markdown("{}: {}", run_id, Run.open(lab, run_id).stop()["state"]) for run_id in run_ids]
    return f"Asked to stop. {'; '.join(messages)}." if messages else "Choose a run in the table first."


def resume(lab: Path | str, run_ids: list[str]) -> str:
    """Resume runs from their last checkpoints. Returns a message about the result."""
    from launch_gpu import Run

    messages = [plain(repr(Run.open(lab, run_id).resume())) for run_id in run_ids]
    return "; ".join(messages) if messages else "Choose a run in the table first."


def fetch(lab: Path | str, run_ids: list[str]) -> str:
    """Copy runs' checkpoints and units into this lab and verify each. Returns a message about the result."""
    from launch_gpu import Run

    messages = []
    for run_id in run_ids:
        came = Run.open(lab, run_id).fetch()
        damaged = f"; damaged: {'; '.join(came['damaged'])}" if came["damaged"] else ""
        messages.append(markdown("{}: {} checkpoints here and whole{}", run_id, came["checkpoints"], damaged))
    return ". ".join(messages) + "." if messages else "Choose a run in the table first."


def cost(lab: Path | str, recipe: str, changed: dict, on: str = "here", gpus: str = "") -> str:
    """What `salad plan` says of a run before it starts, in a line, and what that rests on; money where the target names
    its price per hour."""
    from salad import plan
    from salad.engines import targets

    kind, _, number = gpus.rpartition(":")
    estimate = plan.cost(lab, recipe, apply_overrides(recipes.get(recipe), changed), kind or None)
    hours = estimate.gpu_hours / max(1, int(number) if number.isdigit() else 1)
    price = targets.resolve(on)[1].price_per_hour
    money = f", {hours * price:,.2f} at {price:g} an hour" if price else ""
    parts = [markdown("{:,.2f} hours on {}{}", hours, gpus or "one device", money), f"{estimate.tts_hours:,.1f} hours of TTS",
             f"{estimate.download_gb:,.1f} GB to download", f"{estimate.disk_gb:,.1f} GB on disk"]  # fmt: skip
    return f"About **{parts[0]}**; {', '.join(parts[1:])}.\n\n" + "\n".join(f"- {plain(note)}" for note in estimate.notes)


def start(lab: Path | str, recipe: str, changed: dict, on: str, gpus: str, dry_run: bool = False, **limits) -> str:
    """Launch a run with the form's values; a dry run estimates its cost and lists the steps. Returns a message."""
    import launch_gpu

    limits = {name: value for name, value in limits.items() if value}
    run = launch_gpu.launch(recipe, on=on, overrides=changed, lab=lab, gpus=gpus or None, dry_run=dry_run, **limits)
    if dry_run:
        try:
            estimate = cost(lab, recipe, changed, on, gpus)
        except store.UserError as error:  # such as a model that is not there yet
            estimate = markdown("No estimate: {}.", error)
        return f"{estimate}\n\n{preformatted(run)}"
    return f"`{run.run_id}` is {run.status()['state']}; it goes on when this closes."


def button(label: str, act: Callable[[], str], on_message: Callable[[str], object], kind: str = "neutral") -> mo.ui.button:
    """A button that calls `act` once per click and passes its message, or the error in one line, to `on_message`."""

    def clicked(_):
        try:
            on_message(act())
        except (store.UserError, OSError) as error:
            on_message(markdown("Not done: {}", error))

    return mo.ui.button(label=label, kind=kind, on_change=clicked)
