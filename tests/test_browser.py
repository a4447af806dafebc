"""The selection notebook in a real browser: brush, read, listen, drop with a key, undo, rule, reload, two at once."""

import re
import shutil
import time

import pytest
from browser import ARGS, CHROMIUM, page, served
from labs import make_lab
from playwright.sync_api import sync_playwright

import store
from workbench import review

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def first_lab(tmp_path_factory):
    lab = tmp_path_factory.mktemp("browser") / "lab"
    return lab, make_lab(lab)


@pytest.fixture
def made(first_lab, tmp_path):
    """A lab of the test's own, so that no test sees another's decisions."""
    lab = tmp_path / "lab"
    shutil.copytree(first_lab[0], lab)
    return lab, first_lab[1]


def until(what, seconds=40.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"did not happen within {seconds} s")


def ask(lab, sql, *values):
    return store.connect(lab).execute(sql, list(values)).fetchall()


def ready(tab):
    widget = tab.locator(".salad-listen[data-loaded^=y]")
    widget.wait_for(timeout=40_000)
    widget.locator(".text").click()
    return widget


def stat(tab, label):
    """The figure under a label of the panel, as the page shows it."""
    return tab.get_by_text(label, exact=True).locator("xpath=../..").inner_text()


def kept(lab, selection):
    return ask(lab, "SELECT count(*) FROM kept WHERE selection_id = ?", selection)[0][0]


def test_a_reviewer_hears_drops_undoes_rules_and_finds_it_again(made):
    lab, ids = made
    with served("notebooks/selection.py", lab) as address, page(address) as tab:
        widget = ready(tab)
        worst = widget.get_attribute("data-sample")
        expected = ask(
            lab, """SELECT sample_id FROM rule_rows WHERE selection_id = ? ORDER BY d DESC NULLS LAST""", ids["active"]
        )
        assert worst == expected[0][0]

        tab.keyboard.press("Space")
        until(lambda: widget.get_attribute("data-state") == "playing")
        until(lambda: int(widget.get_attribute("data-word")) >= 2)  # the word under the playhead moves on
        assert widget.locator(".text span.now").count() >= 1
        tab.keyboard.press("Space")
        until(lambda: widget.get_attribute("data-state") == "paused")

        widget.locator("canvas").scroll_into_view_if_needed()
        box = widget.locator("canvas").bounding_box()
        shown = False
        for part in range(1, 20):  # somewhere on the ribbon there is a token
            tab.mouse.move(box["x"] + box["width"] * part / 20, box["y"] + 85)
            tab.wait_for_timeout(100)
            shown = shown or widget.locator(".tip").is_visible()
            if shown:
                break
        assert shown and "teacher" in widget.locator(".tip").inner_text() and "nats" in widget.locator(".tip").inner_text()

        widget.locator(".text").click()
        tab.keyboard.press("1")
        until(lambda: widget.get_attribute("data-sample") == expected[1][0])
        assert ask(lab, "SELECT sample_id, verdict, reason FROM current_decisions") == [(worst, "drop", "bad synthesis")]
        until(lambda: f"{kept(lab, ids['active']):,} of" in stat(tab, "texts kept"))

        tab.keyboard.press("u")
        until(lambda: not ask(lab, "SELECT 1 FROM current_decisions"))
        until(lambda: widget.get_attribute("data-sample") == worst)  # what was taken back is shown again
        tab.keyboard.press("3")
        until(lambda: ask(lab, "SELECT reason FROM current_decisions") == [("duplicate",)])

        rule = tab.get_by_placeholder("cer > 0.3")
        rule.fill("d > 2.2")
        n = ask(lab, "SELECT count(*) FROM rule_rows WHERE selection_id = ? AND d > 2.2", ids["active"])[0][0]
        assert 2 < n < 60
        tab.get_by_text(f"{n} texts would be dropped").wait_for()
        tab.get_by_role("button", name="set this rule").click()
        until(lambda: ask(lab, "SELECT rule FROM decisions WHERE target = 'rule'") == [("d > 2.2",)])
        until(lambda: f"{kept(lab, ids['active']):,} of" in stat(tab, "texts kept"))
        assert (
            kept(lab, ids["active"]) <= ask(lab, "SELECT count(*) FROM selected WHERE selection_id = ?", ids["active"])[0][0] - n
        )

        tab.get_by_role("button", name="export what is kept").click()
        folder = until(lambda: list(lab.glob("exports/l*/texts.parquet")))[0].parent
        tab.get_by_text("Written to").wait_for(timeout=20_000)
        assert ask(lab, f"SELECT count(*) FROM '{folder}/texts.parquet'")[0][0] == kept(lab, ids["active"])

        tab.reload()
        widget = ready(tab)
        assert f"{kept(lab, ids['active']):,} of" in stat(tab, "texts kept")
        assert widget.get_attribute("data-sample") == worst and "dropped: duplicate" in widget.locator(".said").inner_text()
        assert not tab.complaints
        assert ask(lab, 'SELECT verdict, target FROM decisions ORDER BY "at"') == [
            ("drop", "sample"),
            ("undo", "sample"),
            ("drop", "sample"),
            ("drop", "rule"),
        ]  # each said once


def test_a_click_on_a_cluster_puts_its_texts_into_the_queue(made):
    lab, ids = made
    with served("notebooks/selection.py", lab) as address, page(address) as tab:
        widget = ready(tab)
        chart = tab.locator("marimo-vega canvas, marimo-vega svg").first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        tab.mouse.click(box["x"] + box["width"] - 60, box["y"] + 46 + 19 * 3)
        until(lambda: widget.locator(".place").inner_text() != "1 / 168")
        chosen = ask(
            lab,
            "SELECT cluster_id FROM selected WHERE selection_id = ? AND sample_id = ?",
            ids["active"],
            widget.get_attribute("data-sample"),
        )[0][0]
        n = ask(lab, "SELECT count(*) FROM selected WHERE selection_id = ? AND cluster_id = ?", ids["active"], chosen)[0][0]
        until(lambda: widget.locator(".place").inner_text() == f"1 / {n}")
        tab.get_by_text(f"Clusters: {chosen} ").first.wait_for()

        # an audit of that cluster: its first texts in a fixed order, judged, and then rejected as a whole
        tab.get_by_label("queue").select_option(index=4)
        order = review.audit(store.connect(lab), ids["active"], chosen, 20)["sample_ids"]
        until(lambda: widget.locator(".place").inner_text() == f"1 / {len(order)}")
        until(lambda: widget.get_attribute("data-sample") == order[0])
        widget.locator(".text").click()
        for key, sample in zip(("4", "y", "y"), order, strict=False):
            until(lambda sample=sample: widget.get_attribute("data-sample") == sample)
            tab.keyboard.press(key)
        tab.get_by_text("1 of 3 judged are faulty").wait_for()
        now = review.audit(store.connect(lab), ids["active"], chosen, 20)
        tab.get_by_text(f"[{100 * now['low']:.0f}, {100 * now['high']:.0f}] %, width {100 * now['width']:.0f} points").wait_for()
        tab.get_by_role("button", name="reject").click()
        until(lambda: ask(lab, "SELECT cluster_id, reason FROM decisions WHERE target = 'cluster'") == [(chosen, "audit")])
        until(lambda: f"{kept(lab, ids['active']):,} of" in stat(tab, "texts kept"))
        # what was kept by hand stays: a text's verdict goes before its cluster's
        assert ask(lab, "SELECT count(*) FROM kept WHERE selection_id = ? AND cluster_id = ?", ids["active"], chosen) == [(2,)]
        tab.get_by_role("button", name="undo the selected event, else my last").click()
        until(lambda: f"{kept(lab, ids['active']):,} of" in stat(tab, "texts kept") and kept(lab, ids["active"]) > n)
        assert not tab.complaints


def test_a_drag_over_the_quadrants_puts_those_texts_into_the_queue(made):
    lab, ids = made
    with served("notebooks/selection.py", lab) as address, page(address) as tab:
        widget = ready(tab)
        tab.get_by_text("Drag in the figure").wait_for()
        figure = tab.locator("marimo-vega canvas").nth(1)  # the first is the clusters'
        figure.scroll_into_view_if_needed()
        box = figure.bounding_box()
        tab.mouse.move(box["x"] + 60, box["y"] + 20)  # the upper half: what diverges most
        tab.mouse.down()
        tab.mouse.move(box["x"] + 480, box["y"] + 150, steps=4)
        tab.mouse.up()
        tab.get_by_text("Drawn texts with CER").first.wait_for()
        until(lambda: widget.locator(".place").inner_text() != "1 / 168")
        low = float(re.search(r"D ([\d.]+) to", tab.get_by_text("Drawn texts with CER").first.inner_text()).group(1))
        n = int(widget.locator(".place").inner_text().split("/")[1])
        about = ask(lab, "SELECT count(*) FROM rule_rows WHERE selection_id = ? AND d >= ?", ids["active"], low)[0][0]
        assert 0 < n < 168 and abs(n - about) <= 1  # the page shows the bound to two digits


def test_two_browsers_at_once_lose_no_event(made):
    lab, ids = made
    with served("notebooks/selection.py", lab) as item, served("notebooks/selection.py", lab) as two:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            tabs = [browser.new_page(viewport={"width": 1400, "height": 900}) for _ in range(2)]
            for tab, address in zip(tabs, (item, two), strict=True):
                tab.goto(address)
            widgets = [ready(tab) for tab in tabs]
            for _ in range(6):
                before = [w.get_attribute("data-sample") for w in widgets]
                for tab, key in zip(tabs, ("2", "y"), strict=True):
                    tab.keyboard.press(key)
                for w, sample in zip(widgets, before, strict=True):
                    until(lambda w=w, sample=sample: w.get_attribute("data-sample") != sample)
            browser.close()
    assert ask(lab, "SELECT verdict, count(*) FROM decisions GROUP BY 1 ORDER BY 1") == [("drop", 6), ("keep", 6)]


def test_an_empty_lab_says_what_to_do(tmp_path):
    with served("notebooks/selection.py", tmp_path / "nothing") as address, page(address) as tab:
        tab.get_by_text("make demo").wait_for(timeout=30_000)
        assert tab.locator(".salad-listen").count() == 0 and "Traceback" not in tab.inner_text("body")
