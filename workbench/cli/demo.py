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
    """Run SALAD end to end in miniature, here: six to seven minutes on two CPU cores, nothing to download.

    Text, teacher, speech, Stage I, divergences, clusters, active selection and its uniform control, synthesis,
    Stage II, evaluation, report. Interrupt it when you like: the same command goes on where it was.

    Args:
        seed: of everything; the same seed gives the same table.
        corpus: your own texts (lines, JSONL with "text", or Parquet with a column text) in the broad corpus: which
            of them would speech fail on?
        smoke: the smallest sizes, a minute, to see that it runs; its figures mean nothing.
        tts: what synthesises: espeak, or kokoro:FOLDER where Kokoro's weights are at hand.
        full: train every LLM weight instead of LoRA.
    """
    import store
    from salad.config import parse_set
    from workbench.cli.demo_run import run_demo

    run_demo(store.lab_path(lab), seed, corpus, smoke, tts, full, parse_set(overrides))
    return 0
