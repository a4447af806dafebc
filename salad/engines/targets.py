"""targets.toml: the machines that a person has, by name.

    default = "server"

    [server]
    engine = "ssh"
    host = "gpu1.example.org"
    scratch = "/data/me/salad"
    env = ["HF_TOKEN"]            # names only: the values are taken from the environment at launch
    price_per_hour = 0.0

Read from `--targets`, else $SALAD_TARGETS, else ./targets.toml, else ~/.config/salad/targets.toml.
"""

import contextlib
import difflib
import os
import re
import tomllib
from pathlib import Path

from pydantic import Field, model_validator

from salad.config import Frozen, validate
from salad.errors import SaladError
from store.ids import digest

ENGINES = ("here", "ssh", "slurm", "sky")


class Target(Frozen):
    """One place to run. What an engine has no use for stays at its default."""

    engine: str = Field(description="here, ssh, slurm, sky, or package.module:Class")
    env: tuple[str, ...] = Field((), description="names of environment variables that the run gets")
    price_per_hour: float = Field(0.0, ge=0, description="of the whole machine or allocation, per node")
    gpus: int | None = Field(None, ge=0, description="GPUs per node that it has, where that cannot be asked")
    python: str | None = Field(None, description="a Python there that has the dependencies: nothing is installed")
    scratch: str | None = Field(None, description="folder for code, environments and the lab on that machine")
    modules: tuple[str, ...] = Field((), description="environment modules to load first")
    container: str | None = Field(None, description="slurm: image for srun --container-image; sky: docker image")
    # ssh
    host: str | None = None
    port: int | None = None
    user: str | None = None
    identity: str | None = Field(None, description="the private key's file")
    ssh_options: tuple[str, ...] = ()
    # slurm
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    qos: str | None = None
    walltime_hours: float | None = Field(None, gt=0, description="the partition's longest job; longer runs requeue")
    # sky
    cloud: str | None = None
    region: str | None = None
    bucket: str | None = Field(None, description="s3://… or gs://…, where lab inputs and outputs travel")
    spot: bool = False
    disk_gb: int = Field(256, gt=0)
    sky: str | None = Field(None, description="the sky command, where it is not on the PATH")

    @model_validator(mode="after")
    def _no_secret_is_kept(self):
        """A target is written to launch.json and to a task's YAML, so it may name secrets but not contain them."""
        for name in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                shown = name.partition("=")[0][:40] if "=" in name else "one of them"
                raise ValueError(f"env takes names of environment variables, without values; {shown} is not a name alone")
        if self.bucket and "@" in self.bucket.partition("://")[2].partition("/")[0]:
            raise ValueError("bucket holds a user or a key before an @; leave it to the cloud's own credentials")
        return self


class Targets(Frozen):
    default: str = "here"
    known: dict[str, Target] = {}
    path: str | None = None


def read(path: Path | str | None = None) -> Targets:
    """The content of the targets file; {} if there is none. Raises SaladError for a damaged file or an unknown key."""
    named = path or os.environ.get("SALAD_TARGETS")
    places = [Path(named)] if named else [Path("targets.toml"), Path.home() / ".config/salad/targets.toml"]
    existing = next((place for place in places if place.exists()), None)
    if existing is None:
        if named:
            raise SaladError(f"no targets file {named}")
        return Targets()
    try:
        data = tomllib.loads(existing.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:  # no TOML, or no UTF-8
        raise SaladError(f"{existing}: {error}") from None
    default = data.pop("default", "here")
    known = {}
    for name, fields in data.items():
        if not isinstance(fields, dict):
            raise SaladError(f"{existing}: {name} is not a target; write [{name}] and its keys under it")
        try:
            known[name] = validate(Target, fields)
        except SaladError as error:
            raise SaladError(f"{existing}: [{name}] {error}") from None
    return Targets(default=default, known=known, path=str(existing))


def resolve(on: str | None, path: Path | str | None = None) -> tuple[str, Target]:
    """`here`, `slurm`, `sky`, `ssh:HOST`, a target's name, or None for the default → (name, Target)."""
    targets = read(path)
    name = on or targets.default
    if name in targets.known:
        return name, targets.known[name]
    if name in ("here", "slurm", "sky"):
        return name, Target(engine=name)
    if name.startswith("ssh:") and name != "ssh:":
        user, _, host = name.removeprefix("ssh:").rpartition("@")
        host, _, port = host.partition(":")
        if port and not port.isdigit():
            raise SaladError(f"--on {name}: write it as ssh:[user@]host[:port]")
        return name, Target(engine="ssh", host=host, user=user or None, port=int(port) if port else None)
    choices = ["here", "slurm", "sky", *targets.known]
    near = difflib.get_close_matches(name, choices, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: ssh:HOST, {', '.join(choices)}"
    raise SaladError(f"unknown target {name!r}; {hint}")


RUNS_CODE = ("ssh_options", "python", "modules", "container", "identity", "sky")  # fields that can start a program here or there


def _launched_on() -> Path:
    """Hashes of the targets on which this user has launched, one a line: in the user's own folder, not in a lab."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "salad" / "launched-on.txt"


def _risks(target: Target) -> list[str]:
    default = Target(engine=target.engine)
    return [field for field in RUNS_CODE if getattr(target, field) != getattr(default, field)]


def remember(target: Target) -> None:
    """Note that this user has launched on a target, so that another process of theirs may open the run."""
    if not _risks(target):
        return
    path, line = _launched_on(), f"{digest(target.model_dump(mode='json'))}\n"
    with contextlib.suppress(OSError):  # without a home, the targets file alone says which machines are the user's own
        if not path.exists() or line not in path.read_text().splitlines(keepends=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(line)


def check_own(name: str, target: Target, where: str) -> None:
    """SaladError where a target that comes with data has fields that can start a program, while this user has neither launched
    on it nor has the same in a targets file."""
    risks = _risks(target)
    with contextlib.suppress(OSError):
        if risks and digest(target.model_dump(mode="json")) in _launched_on().read_text().split():
            return
    try:
        own = resolve(name)[1] if risks else None
    except SaladError:
        own = None
    strange = [field for field in risks if own is None or getattr(own, field) != getattr(target, field)]
    if strange:
        raise SaladError(
            f"{where}: {', '.join(strange)} of the machine {name!r} {'is' if len(strange) == 1 else 'are'} not in your targets "
            f"file, and what a lab brings with it is not run. If you know this machine, write [{name}] into targets.toml, or "
            "name the file that has it by SALAD_TARGETS"
        )
