"""The A/B app in a real browser with a fake microphone: ask, listen, compare, vote, unveil, reload, export, stop."""

import csv
import re

import pytest
import soundfile
from arena_lab import ITEMS, make
from browser import ARGS, CHROMIUM
from playwright.sync_api import expect, sync_playwright

import store
from workbench import arena

pytestmark = pytest.mark.chromium
WAIT = 60_000
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    made = arena.build(make(tmp_path_factory.mktemp("arena") / "lab"))
    _, made.address, _ = made.launch(prevent_thread_lock=True)
    yield made
    made.close(verbose=False)


@pytest.fixture(scope="module")
def browser(app, tmp_path_factory):
    sound = tmp_path_factory.mktemp("microphone") / "question.wav"
    soundfile.write(sound, app.service.listener.ask(item_id="tiny-0").samples, 16_000)
    microphone = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={sound}",
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGS, *microphone])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(app, browser):
    """A visitor's page; whatever it complains of, or asks of another host, fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((app.address, "data:", "blob:")) else wrong.append(asked.url),
    )
    context.set_default_timeout(WAIT)
    page.goto(app.address)
    expect(page.locator("#ask")).to_be_enabled()
    expect(voter(page)).to_have_value(re.compile("guest-"))  # the page is ready when it has named us
    yield page
    context.close()
    assert not wrong


def votes(app) -> list[dict]:
    with store.connect(app.lab) as con:
        return con.execute('SELECT * FROM votes ORDER BY "at"').df().to_dict("records")


def ask(tab, text: str) -> None:
    tab.locator("#question textarea, #question input").fill(text)
    tab.locator("#ask").click()
    expect(tab.locator("#compare-left")).to_be_enabled()


def voter(tab):
    return tab.locator("#voter input, #voter textarea")


def test_ask_by_typing_compare_vote_by_key_save_and_come_back(app, tab):
    voter(tab).fill("Ada")
    ask(tab, ITEMS[0][0])
    right = tab.locator("#answer-right")
    expect(right).to_contain_text("stage2_active")
    expect(right).to_contain_text("first token")
    expect(tab.locator("#answer-cascade .tok").first).to_be_visible()
    expect(tab.locator("#told")).to_contain_text("the recogniser heard")
    right.locator(".tok").first.hover()
    expect(right.locator(".tip").first).to_contain_text("text teacher")
    tab.mouse.move(5, 5)
    before = len(votes(app))
    tab.locator("#question textarea, #question input").press("2")  # typing is not voting
    tab.locator("h1").first.click()
    tab.keyboard.press("2")
    expect(tab.locator("#compare-message")).to_contain_text("right is better")
    cast = votes(app)[before:]
    assert [(v["choice"], v["voter"], v["blind"], v["question_id"]) for v in cast] == [("right", "Ada", False, "tiny-0")]
    tab.locator("#save").click()
    link = tab.locator("#compare-message a")
    expect(link).to_be_visible()
    words = right.locator(".said").text_content()
    tab.goto(link.get_attribute("href"))
    expect(right).to_contain_text("stage2_active")
    assert right.locator(".said").text_content() == words
    expect(tab.locator("#compare-message")).to_contain_text("the vote was: right is better")
    expect(voter(tab)).to_have_value("Ada")


def test_ask_by_microphone_and_keep_the_recording_only_with_consent(app, tab):
    tab.get_by_text("Record or upload").click()
    tab.locator("#recording button:has-text('Record')").first.click()
    tab.wait_for_timeout(1500)
    tab.locator("#recording button:has-text('Stop')").first.click()
    expect(tab.locator("#recording button[aria-label='Play']")).to_be_visible()
    ask(tab, ITEMS[0][0])
    expect(tab.locator("#told")).to_contain_text("recorded,")
    tab.locator("#keep").click()
    expect(tab.get_by_text("tick that you agree first")).to_be_visible()
    assert not (app.lab / "speech" / "recorded").exists()
    tab.locator("#consent input").check()
    tab.locator("#keep").click()
    expect(tab.locator("#compare-message")).to_contain_text("Kept as")
    with store.connect(app.lab) as con:
        assert con.execute("SELECT voice FROM syntheses WHERE speech = 'recorded'").fetchall() == [("recorded",)]


def test_blind_vote_after_listening_unveils_and_counts_and_is_exported(app, tab, tmp_path):
    tab.get_by_role("tab", name="Blind").click()
    tab.locator("#blind-next").click()
    expect(tab.locator("#blind-message")).to_contain_text("Listen to the question")
    expect(tab.locator("#blind-left")).to_be_disabled()
    assert "stage2" not in tab.locator("#blind-left-answer, #blind-right-answer, #blind-told").all_text_contents()
    before = len(votes(app))
    tab.keyboard.press("3")
    tab.locator("#blind-sound button[aria-label='Play']").first.click()
    expect(tab.locator("#blind-tie")).to_be_enabled()
    assert len(votes(app)) == before  # the key did nothing before the sound was heard
    tab.keyboard.press("3")
    expect(tab.locator("#blind-message")).to_contain_text("Voted: tie")
    shown_text = " ".join(tab.locator("#blind-left-answer, #blind-right-answer").all_text_contents())
    assert "teacher" in shown_text and "stage2_active" in shown_text
    assert [(v["choice"], v["blind"]) for v in votes(app)[before:]] == [("tie", True)]
    tab.get_by_role("tab", name="Statistics").click()
    expect(tab.locator("#results")).to_contain_text("too few votes")
    tab.locator("#export").click()
    with tab.expect_download() as coming:
        tab.locator("#exported a").first.click()
    coming.value.save_as(tmp_path / "votes.csv")
    with open(tmp_path / "votes.csv", newline="") as file:
        assert [row["choice"] for row in csv.DictReader(file)] == ["tie"]


def test_what_is_said_is_text_and_what_is_wrong_is_told(app, tab):
    ask(tab, "<b id=evil>What</b> eats fish?")
    assert tab.locator("#evil").count() == 0
    tab.locator("#question textarea, #question input").fill("")
    tab.locator("#ask").click()
    expect(tab.get_by_text("no question: type one")).to_be_visible()


def test_a_waiting_visitor_sees_the_place_in_the_queue_and_can_stop(app, browser, tab):
    other = browser.new_page()
    other.goto(app.address)
    expect(other.locator("#ask")).to_be_enabled()
    with app.service.models.lock:  # the device is busy
        for page in (tab, other):
            page.locator("#question textarea, #question input").fill(ITEMS[1][0])
        tab.locator("#ask").click()
        expect(tab.locator("#answer-left .cursor")).to_be_visible()
        other.locator("#ask").click()
        expect(other.locator("#told")).to_contain_text("queue")
        tab.locator("#stop").click()
        expect(tab.locator("#compare-message")).to_contain_text("Stopped")
    expect(other.locator("#compare-left")).to_be_enabled()
    expect(tab.locator("#compare-left")).to_be_disabled()
    other.close()
