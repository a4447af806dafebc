"""Where a model's name leads: a folder of the lab, a folder anywhere, a hub name, or `package.module:name`."""

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from salad.errors import SaladError
from store import files
from store.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve(name: str, lab: Path | str | None) -> str:
    """The folder that `name` stands for (the lab's own first), else `name` itself as a hub name.

    Where the environment's SALAD_MODELS names a folder, a hub name stands for the folder in it that is called by the name's
    last part in lower case (`openai/whisper-tiny.en` for `whisper-tiny.en`), so that a study runs without a hub. What is
    stored is the name, never the path. A name that looks like a folder and is none is a SaladError, as is a SALAD_MODELS that
    is none."""
    for folder in ([Path(lab) / name] if lab is not None else []) + [Path(name)]:
        if folder.is_dir():
            files.check(folder)
            return str(folder)
    if models := os.environ.get("SALAD_MODELS"):
        if not Path(models).is_dir():
            raise SaladError(f"SALAD_MODELS={models} is not a folder; name the one that holds your models, or unset it")
        folder = Path(models) / name.rpartition("/")[2].lower()
        if folder.is_dir():
            return str(folder)
    if name.startswith((".", "/", "models/")) or name.count("/") > 1:
        where = f" in {lab}" if lab is not None else ""
        make = "; `salad demo` makes the miniature's" if name.startswith("models/") else ""
        raise SaladError(f"no model folder {name!r}{where}{make}")
    return name


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever a library raises over the files of a model into one SaladError, "`what` cannot be loaded: why".

    transformers, tokenizers, safetensors and torch have no common class for a file that they cannot read, and raise what
    comes (KeyError, RuntimeError, Exception). A UserError passes as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise SaladError(f"{what} cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error


def kept(name: str, lab: Path | str) -> str:
    """What a lab writes down of a model's name: a folder of its own relative to it, so that the lab may be moved."""
    folder, lab = Path(name).resolve(), Path(lab).resolve()
    return folder.relative_to(lab).as_posix() if folder.is_dir() and folder.is_relative_to(lab) else name


def is_kept(written: str | None, name: str, lab: Path | str) -> bool:
    """Whether `name` is what a lab has written down. Before there was `kept` that was where the lab lay at the time."""
    if written is None or written == name:
        return written is not None
    own = kept(name, lab)
    return written == own or own != name and Path(written).is_absolute() and written.endswith(f"/{own}")


def folder_sha256(folder: Path | str, templates: bool = True) -> str:
    """SHA-256 over a model folder's weights and tokenizer, chat templates included: names and bytes, in order.

    `templates=False` leaves chat_template.jinja and additional_chat_templates/ out, as checkpoints from before those counted
    have it."""
    total, folder = hashlib.sha256(), Path(folder)
    paths = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".txt", ".model")]
    if templates:
        paths += [*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")]
    for path in sorted(paths):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def remembered(name: str, folder: Path | str) -> dict:
    """What a checkpoint keeps of a frozen model folder: its name and SHA-256. `templates`: chat templates count in it."""
    return {"name": name, "sha256": folder_sha256(folder), "templates": True}


def is_unchanged(folder: Path | str, kept: dict) -> bool:
    """Whether a model folder is the one that `remembered` saw."""
    return folder_sha256(folder, kept.get("templates", False)) == kept["sha256"]


def quiet() -> None:
    """Keep libraries from telling what a user can do nothing about: transformers' progress bar for every folder that it loads and
    its complaint about what its own Whisper passes to generate; peft's use of a name that transformers is about to drop; torch's
    note that an RMS norm whose weight trains in float32 takes no fused kernel for bfloat16."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    generation = logging.getLogger("transformers.generation.utils")
    if not any(isinstance(logging_filter, _OwnGenerateArguments) for logging_filter in generation.filters):
        generation.addFilter(_OwnGenerateArguments())
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


class _OwnGenerateArguments(logging.Filter):
    """Drops what transformers says of its own Whisper's call of `generate`."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "suppress_tokens" not in record.getMessage()
