"""SALAD (arXiv 2510.13632): adapt a text LLM to speech by cross-modal distillation and active selection.

The names below are the face of the package: what a script needs. Each is imported when it is first used, so that
`import salad` itself takes no time: `from salad import SpeechLM, RunConfig, launch, distillation_loss, divergences,
BalancedKMeans, load_tts`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from salad.errors import SaladError

if TYPE_CHECKING:
    from salad.config import RunConfig
    from salad.divergence import divergences
    from salad.engines.launch import launch
    from salad.models.speech_lm import SpeechLM
    from salad.objective import distillation_loss
    from salad.selection.clusters import BalancedKMeans
    from salad.speech import load_tts

    __version__: str

FACE = {
    "BalancedKMeans": "salad.selection.clusters",
    "RunConfig": "salad.config",
    "SpeechLM": "salad.models.speech_lm",
    "distillation_loss": "salad.objective",
    "divergences": "salad.divergence",
    "launch": "salad.engines.launch",
    "load_tts": "salad.speech",
}

__all__ = [
    "BalancedKMeans",
    "RunConfig",
    "SaladError",
    "SpeechLM",
    "__version__",
    "distillation_loss",
    "divergences",
    "launch",
    "load_tts",
]


def __getattr__(name: str) -> Any:
    """Import a name of the face when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("salad-workbench")
    if name in FACE:
        value = globals()[name] = getattr(import_module(FACE[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
