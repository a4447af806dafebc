"""Every block of Python in the documentation runs, and every question in SQL is answered, in a copy of the demo's lab."""

import re
import shutil

import pytest
from pages import blocks, commands, concrete, pages

import store
from launch_gpu import runs

pytestmark = pytest.mark.timeout(1800)  # a whole demo is made within the first test that asks for it
PYTHON = [page for page in pages() if any(block.language == "python" for block in blocks(page))]
# a study of a grid takes an hour, and tests/test_findings.py runs one: here its steps are planned
INSTEAD = {"docs/analysis.md": [("schedule.run(grid, \"lab\", print)", "schedule.plan(grid, \"lab\")"),
                                ("my_package.my_module:my_strategy", "uniform")]}  # fmt: skip


@pytest.fixture
def lab(demo, tmp_path, monkeypatch):
    """A copy of the demo's lab, as `lab` in the working folder; what was started in it is stopped."""
    shutil.copytree(demo.lab, tmp_path / "lab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "lab"
    for run in runs(tmp_path / "lab"):
        if run.folder.record["kind"] in ("stage1", "stage2") and run.status()["state"] in ("starting", "running"):
            run.stop(wait_s=60)


def known(lab) -> dict[str, str]:
    """What a page's placeholders stand for: the first letter of an id -> one of this lab."""
    con = store.connect(lab)
    ids = {
        "l": "select selection_id from selections where strategy = 'active' and parent_selection_id is null",
        "r": "select run_id from runs where kind = 'stage1'",
        "s": "select sample_id from selected order by all",
        "y": "select synthesis_id from syntheses order by all",
    }
    return {letter: con.execute(sql).fetchone()[0] for letter, sql in ids.items()}


def with_ids(text: str, ids: dict[str, str]) -> str:
    """`text` with this lab's ids for `l…` and `r…`, and for any id of the right form."""
    return re.sub(r"\b([lrsy])(?:…|\.\.\.|[0-9a-f]{12}\b)", lambda match: ids[match[1]], text)


def divergences(lab) -> list[dict]:
    """Rows to publish, as a user's own scoring would have them."""
    rows = store.connect(lab).sql("from raw.divergences limit 3").to_arrow_table().to_pylist()
    return [row | {"step": 601} for row in rows]


@pytest.fixture
def address(lab, request):
    """The A/B app, served on the lab."""
    from workbench import arena

    app = arena.build(lab)
    _, address, _ = app.launch(prevent_thread_lock=True)
    yield address.rstrip("/")
    app.close(verbose=False)


@pytest.mark.parametrize("page", PYTHON)
def test_the_pages_python_runs(page, lab, request):
    ids = known(lab)
    names = {"__name__": "page", "run_id": ids["r"], "l": ids["l"], "synthesis_id": ids["y"], "rows": divergences(lab)}
    for block in blocks(page):
        if block.language == "python":
            text = with_ids(block.text, ids)
            if page == "docs/arena.md":
                text = text.replace("http://127.0.0.1:7860", request.getfixturevalue("address"))
            for written, instead in INSTEAD.get(page, []):
                assert written in text
                text = text.replace(written, instead)
            exec(compile("\n" * block.line + text, page, "exec"), names)


def test_a_strategy_of_the_pages_draws_from_a_lab(lab):
    """The example of a strategy, used as its page says: by its name on the command line."""
    from workbench import cli

    (text,) = [block.text for block in blocks("docs/how-to/add-a-strategy.md") if block.language == "python"]
    (lab.parent / "my_strategies.py").write_text(text)
    with pytest.raises(SystemExit, match="^0$"):
        cli.main(["select", "--strategy", "my_strategies:capped", "--budget", "0.02", "--lab", str(lab)])
    assert store.query(lab, "select count(*) from selections where strategy = 'my_strategies:capped'").to_pylist() == [
        {"count_star()": 1}
    ]


def statements(page: str) -> list[str]:
    """The SQL of a page: of its blocks, and what `salad sql` is asked. docs/store.md's ten questions: tests/test_store.py."""
    if page == "docs/store.md":
        return []
    found = [statement for block in blocks(page) if block.language == "sql" for statement in block.text.split(";")]
    found += [words[2] for words, _ in commands(page) if words[:2] == ["salad", "sql"] and len(words) > 2 and " " in words[2]]
    return [sql for sql in found if sql.strip()]


@pytest.mark.parametrize("page", [page for page in pages() if statements(page)])
def test_the_pages_sql_is_answered(page, demo):
    ids = known(demo.lab)
    for sql in statements(page):
        store.query(demo.lab, with_ids(concrete(sql), ids))
