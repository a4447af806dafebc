"""`salad demo`: the miniature study from corpus to report, with progress, to be interrupted and taken up at will."""

from pathlib import Path

from rich.console import Console

from salad import recipes
from salad.errors import SaladError
from salad.study.config import voices_of
from workbench.cli.study_run import run_study


def run_demo(
    lab: Path,
    seed: int = 0,
    corpus: str | None = None,
    smoke: bool = False,
    tts: str | None = None,
    full: bool = False,
    overrides: dict | None = None,
) -> None:
    """Run what is not done yet of the miniature study in `lab`, then print its table and what to open next."""
    from salad.config import apply_overrides

    console = Console()
    config = recipes.miniature().seeded(seed)
    config = config.smoke() if smoke else config
    config = config.full() if full else config
    if tts is not None:
        config = config.model_copy(update={"tts": tts} | voices_of(tts))
    config = apply_overrides(config, overrides or {})
    if corpus is not None and not Path(corpus).is_file():
        raise SaladError(f"--corpus {corpus}: file not found")
    if config.tts != "espeak":
        from salad.speech import load_tts

        load_tts(config.tts).speak("Ready.", config.voices[0], 0)  # fail now if anything is missing, not halfway through
    console.print(f"SALAD in miniature: seed {seed}, lab {lab}" + (" (smoke: figures mean nothing)" if smoke else ""))
    if config.tts == "espeak":
        console.print(
            "espeak-ng speaks; where Kokoro's weights are at hand, --tts kokoro:FOLDER takes its place.", soft_wrap=True
        )
    run_study(lab, config, corpus=corpus, smoke=smoke, real=False, keep_going=False)
