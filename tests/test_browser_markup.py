"""A lab whose every text field is markup that runs a script: looked at in the A/B app, the notebooks and the report."""

import json
import shutil

import pyarrow as pa
import pytest
from browser import page, served
from labs import make_lab
from test_arena_safety import poisoned

import store
from salad.runs import RunFolder
from workbench import reports

pytestmark = pytest.mark.chromium
EVIL = '<img src=x onerror="window.poisoned=(window.poisoned||0)+1">'
# what names files or other rows, or is asked for by name
KEPT = {"cut_id", "audio_path", "speech", "verdict", "target", "choice", "modality", "kind", "status", "rule", "tts", "voice",
        "prediction", "answer", "config"}  # fmt: skip


def with_markup(value, type_, name=""):
    """`value` of a column of this type with EVIL in each of its texts."""
    if value is None:
        return None
    if pa.types.is_string(type_):
        return value if name in KEPT or name.endswith("_id") else f"{value} {EVIL}"
    if pa.types.is_list(type_) and isinstance(value, list):
        return [with_markup(part, type_.value_type, name) for part in value]
    if pa.types.is_struct(type_) and isinstance(value, dict):
        return {k: with_markup(v, type_.field(k).type, k) if k in value else v for k, v in value.items()}
    return value


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A made lab whose units, runs and events hold EVIL wherever they hold words."""
    place = tmp_path_factory.mktemp("markup") / "lab"
    real, create = store.publish, RunFolder.get_or_create
    schema = {table.name: {c.name: c.type for c in table.columns} for table in store.schema.TABLES.values()}

    def publish(lab, table, rows, made_from, **more):
        types = schema[table]
        return real(
            lab, table, [{k: with_markup(v, types[k], k) for k, v in dict(row).items()} for row in rows], made_from, **more
        )

    def created(lab, kind, recipe, config, *more, **options):
        return create(lab, kind, f"{recipe} {EVIL}", {**config, "contender": f"{config['contender']} {EVIL}"}, *more, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "publish", publish)
        patched.setattr(RunFolder, "get_or_create", created)
        ids = make_lab(place, broad=70, spoken=24, heldout=3, n_items=3)
    for path in place.glob("runs/*/status.json"):
        status = json.loads(path.read_text()) | {"error": EVIL, "host": EVIL, "device": EVIL}
        store.atomic.write_json(path, status)
    for path in place.glob("runs/*"):
        (path / "log.txt").write_text(EVIL)
        store.append(place, "run_notes", run_id=path.name, tags=EVIL, note=EVIL, author=EVIL)
    con = store.connect(place)
    samples = [row[0] for row in con.execute("SELECT sample_id FROM selected ORDER BY draw LIMIT 4").fetchall()]
    for sample, verdict in zip(samples, ("keep", "drop", "drop", "keep"), strict=True):
        for reviewer in (EVIL, f"{EVIL}2"):
            store.append(place, "decisions", selection_id=ids["active"], target="sample", sample_id=sample, verdict=verdict,
                         reason=EVIL, note=EVIL, reviewer=reviewer)  # fmt: skip
    store.append(place, "decisions", selection_id=ids["active"], target="rule", rule=f"contains(text, '{EVIL}9')",
                 verdict="drop", reason=EVIL, reviewer=EVIL)  # fmt: skip
    for number in range(35):
        store.append(place, "votes", question_id=f"q{number}", left_contender=EVIL, right_contender=f"{EVIL}{number % 3}",
                     left_run_id=None, right_run_id=None, left_step=None, right_step=None, left_modality=EVIL,
                     right_modality="text", choice="left", blind=True, voter=f"{EVIL}{number}", latencies="{}",
                     seed=number)  # fmt: skip
    return place


def harmless(tab) -> bool:
    """Whether no word of the lab became an element or ran."""
    return not tab.evaluate("window.poisoned || 0") and tab.locator('img[src="x"]').count() == 0


@pytest.mark.parametrize("notebook", ["selection", "divergences", "training", "results"])
def test_words_of_a_lab_are_words_in_every_notebook(lab, notebook, tmp_path):
    copy = shutil.copytree(lab, tmp_path / f"lab {EVIL.replace('/', '')}")
    with served(f"notebooks/{notebook}.py", copy) as address, page(address) as tab:
        tab.get_by_role("heading").first.wait_for(timeout=120_000)
        ready = {"selection": ".salad-listen[data-loaded]", "divergences": ".salad-listen[data-loaded]",
                 "training": "marimo-table", "results": "marimo-table"}[notebook]  # fmt: skip
        tab.locator(ready).first.wait_for(timeout=120_000, state="attached")
        for _ in range(12):  # down the page, so that what is made when it is seen is made
            tab.mouse.wheel(0, 900)
            tab.wait_for_timeout(150)
        assert "<img src=x" in tab.locator("body").inner_text()  # it stands there, as words
        assert harmless(tab)


def test_words_of_a_lab_are_words_in_the_report(lab, tmp_path):
    made = reports.report(shutil.copytree(lab, tmp_path / "lab"))
    with page(made.html_path.as_uri()) as tab:
        assert "<img src=x" in tab.locator("body").inner_text() and harmless(tab)
    assert "<img" not in made.markdown


def test_words_of_a_lab_are_words_in_the_app(lab, tmp_path_factory):
    from arena_lab import make

    from workbench import arena

    place = make(tmp_path_factory.mktemp("arena") / f"lab {EVIL}")
    (place / "arena").mkdir()
    name = "a0123456789ab"
    (place / "arena" / f"{name}.json").write_text(json.dumps(poisoned(name)).replace("document.title='in'", "window.poisoned=1"))
    (place / "arena" / "a0123456789ac.json").write_text('{"left": 1}')
    shutil.copytree(lab / "events", place / "events", dirs_exist_ok=True)
    app = arena.build(place)
    _, address, _ = app.launch(prevent_thread_lock=True)
    try:
        with page(f"{address}?ask={name}") as tab:
            tab.locator("#answer-right").get_by_text("<img src=x").first.wait_for(timeout=60_000)
            tab.locator("#answer-right .tok").first.hover()
            tab.get_by_text("Saved comparisons").click()
            tab.locator("#history").get_by_text("cannot be read").first.wait_for(state="attached")
            assert harmless(tab)
            tab.locator("#question textarea, #question input").fill(EVIL + " Who?")
            tab.locator("#ask").click()
            tab.locator("#compare-left:not([disabled])").wait_for(timeout=60_000)
            tab.get_by_role("tab", name="Statistics").click()
            tab.locator("#results").get_by_text("<img src=x").first.wait_for(timeout=60_000)
            assert harmless(tab)
    finally:
        app.close(verbose=False)
