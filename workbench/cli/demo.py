"""`salad demo`."""

from workbench.cli.app import File, Lab, Set, command


@command
def demo(
    *,
    lab: Lab = None,
    seed: int = 0,
    corpus: File = None,
    smoke: bool = False,
    tts: str | None = None,
    full: bool = False,
    overrides: Set = [],  # noqa: B006
) -> int:
    """Run SALAD end to end in miniature on this machine: six to seven minutes on two CPU cores, without any download.

    It creates the texts, the teacher and the speech, trains Stage I, measures divergences, clusters the texts, draws an
    active selection and a uniform control, synthesises both, trains Stage II, evaluates, and writes the report. You may
    interrupt it at any time: rerun the command to resume.

    Args:
        seed: random seed of every step; the same seed gives the same table.
        corpus: add your own texts to the broad corpus, to see which of them speech would fail on: one text per line,
            JSONL with the key "text", or Parquet with the column text.
        smoke: use the smallest sizes, to check in a minute that everything runs; the figures mean nothing.
        tts: speech synthesiser: espeak, or kokoro:FOLDER if you have Kokoro's weights (default: espeak).
        full: train every LLM weight instead of LoRA adapters.
    """
    import store
    from salad.config import parse_set
    from workbench.cli.demo_run import run_demo

    run_demo(store.lab_path(lab), seed, corpus, smoke, tts, full, parse_set(overrides))
    return 0
