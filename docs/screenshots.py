"""Pictures of the notebooks for the README and the documents: `python docs/screenshots.py [lab [notebook ...]]`,
with Chromium."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import page, served  # noqa: E402

import store  # noqa: E402


def selection(lab: Path, to: Path, dark: bool = False) -> None:
    """The selection notebook, with the first cluster's texts in the listening widget."""
    with served("notebooks/selection.py", lab) as address, page(address, 1480, 2080, dark) as tab:
        tab.locator(".salad-listen[data-loaded^=y]").wait_for(timeout=180_000)
        tab.wait_for_timeout(1500)
        # The longest of the words that diverge most, with both models' guesses.
        words = tab.locator(".salad-listen .text span[data-token]")
        tones = words.evaluate_all(
            "all => all.map(e => [parseFloat(e.style.background.split(',')[3]) || 0, e.textContent.length])"
        )
        words.nth(max(range(len(tones)), key=lambda i: (tones[i][0] > 0.7, tones[i][1], tones[i][0]))).hover()
        tab.wait_for_timeout(400)
        tab.screenshot(path=to)
        print(to, tab.complaints or "")


def arena(lab: Path, folder: Path) -> None:
    """The A/B app's three tabs on a copy of the lab, with 60 blind votes cast by a script that knows what is right."""
    import random
    import shutil
    import tempfile

    from browser import ARGS, CHROMIUM
    from playwright.sync_api import sync_playwright

    from workbench import arena as app
    from workbench.arena.service import SIDES

    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(lab, Path(place) / "lab"))
        made = app.build(copy)
        study, pool = made.service, [f"{name}/{how}" for name, how in (
            ("teacher", "text"), ("stage2_active", "speech"), ("stage2_uniform", "speech"))]  # fmt: skip
        for seed in range(60):
            vote = study.blind(pool)
            vote.heard, right = True, vote.question.item.choices[vote.question.item.answer]
            left, other = (vote.answers[side].text.strip() == right for side in SIDES)
            choice = ("left" if left else "right") if left != other else "tie" if left else "both_bad"
            if random.Random(seed).random() < 0.1:
                choice = "tie"
            study.vote(vote.id, choice, f"voter {seed % 6 + 1}")
        _, address, _ = made.launch(prevent_thread_lock=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            tab = browser.new_page(viewport={"width": 1360, "height": 900})
            tab.set_default_timeout(180_000)
            tab.goto(address)
            tab.locator("#question textarea, #question input").fill("What is the home of the squirrel called?")
            tab.locator("#ask").click()
            tab.locator("#compare-left:not([disabled])").wait_for(timeout=180_000)
            tab.locator("#answer-right .tok").first.hover()
            tab.wait_for_timeout(500)
            tab.screenshot(path=folder / "arena-compare.png", full_page=True)
            tab.get_by_role("tab", name="Blind").click()
            tab.locator("#blind-next").click()
            tab.locator("#blind-sound button[aria-label='Play']").first.click(timeout=180_000)
            tab.locator("#blind-tie:not([disabled])").wait_for(timeout=180_000)
            tab.screenshot(path=folder / "arena-blind.png", full_page=True)
            tab.get_by_role("tab", name="Statistics").click()
            tab.locator("#results table").first.wait_for(timeout=180_000)
            tab.wait_for_timeout(500)
            tab.screenshot(path=folder / "arena-statistics.png", full_page=True)
            browser.close()
        made.close(verbose=False)


def _small(path: Path) -> None:
    """The same picture, packed as tightly as PNG can."""
    from PIL import Image

    Image.open(path).convert("RGB").save(path, optimize=True)


def divergences(lab: Path, to: Path) -> None:
    """Where and why: the first screen of figures, and one text opened."""
    with served("notebooks/divergences.py", lab) as address, page(address, 1480, 2960) as tab:
        tab.locator(".salad-listen[data-loaded^=y]").first.wait_for(timeout=180_000)
        tab.wait_for_timeout(6000)
        tab.screenshot(path=to)
        print(to, tab.complaints or "")


def training(lab: Path, to: Path) -> None:
    """The runs with both arms' curves, and the form."""
    with served("notebooks/training.py", lab) as address, page(address, 1480, 1900) as tab:
        tab.get_by_text("estimate cost").wait_for(timeout=180_000)
        tab.wait_for_timeout(6000)
        tab.screenshot(path=to)
        print(to, tab.complaints or "")


def results(lab: Path, to: Path) -> None:
    with served("notebooks/results.py", lab) as address, page(address, 1480, 2750) as tab:
        tab.get_by_role("heading", name="Votes").wait_for(timeout=180_000)
        tab.wait_for_timeout(6000)
        tab.screenshot(path=to)
        print(to, tab.complaints or "")


if __name__ == "__main__":
    lab = store.lab_path(sys.argv[1] if len(sys.argv) > 1 else None)
    folder = ROOT / "docs" / "img"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in (selection, divergences, training, results):
        if len(sys.argv) < 3 or picture.__name__ in sys.argv[2:]:
            picture(lab, folder / f"{picture.__name__}.png")
            _small(folder / f"{picture.__name__}.png")
    if len(sys.argv) < 3 or "arena" in sys.argv[2:]:
        arena(lab, folder)
