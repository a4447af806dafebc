"""Which code a run runs: commit, uncommitted changes and package versions, recorded so that it can be repeated.

What is recorded and sent is what git tracks, as it stands in the working tree, and new code files (CODE) that git does
not ignore. No other untracked file is taken, for keys and data are likely among them: `git add` what a run needs. A line
that was added since the commit and looks like a key or a password ends the launch.
"""

import hashlib
import importlib.metadata
import io
import os
import platform
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from salad.engines import leaks
from salad.errors import SaladError
from salad.runs import RunFolder
from store import atomic

ROOT = Path(__file__).resolve().parents[2]
CODE = {".py", ".sql", ".js", ".css"}
LARGEST = 2**20
SHOWN = 8  # names of files in a line
OWN = "salad-workbench"


def record(run: RunFolder, root: Path = ROOT) -> dict:
    """Write code.diff and packages.txt into the run's folder; returns what launch.json says of the code: `describe`."""
    code, diff = describe(root)
    atomic.write_bytes(run.path / "packages.txt", "".join(f"{line}\n" for line in packages()).encode())
    if code["commit"] is not None:
        atomic.write_bytes(run.path / "code.diff", diff)
    return code


def describe(root: Path = ROOT) -> tuple[dict, bytes]:
    """(what a launch takes of the code, its diff from the commit); writes nothing.

    {"commit", "tree" (git's id of exactly these files), "changed", "python", "new" and "left_out" (untracked files that
    are taken and not)}; commit and tree None outside git. SaladError where a change holds what looks like a key."""
    code: dict[str, Any] = {"commit": None, "tree": None, "changed": False, "python": platform.python_version()}
    if _try_git(root, "rev-parse", "--is-inside-work-tree") is None:
        return code, b""
    commit, tree, diff = state(root, refuse_keys=True)
    new, left_out = untracked(root)
    return code | {"commit": commit, "tree": tree, "changed": bool(diff), "new": new, "left_out": left_out}, diff


def summary(code: dict) -> list[str]:
    """What a launch says of the code that it takes, a line each."""
    if not code.get("commit"):
        return ["code: not a git checkout, so it is not recorded"]
    lines = [f"code: commit {code['commit'][:12]}" + (" with uncommitted changes" if code.get("changed") else "")]
    for name, words in (("new", "new code files taken"), ("left_out", "untracked files left out (git add what the run needs)")):
        names = code.get(name) or []
        if names:
            lines.append(f"code: {words}: {', '.join(names[:SHOWN])}" + (f" … {len(names)} in all" if len(names) > SHOWN else ""))
    return lines


def untracked(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """The untracked files that git does not ignore, by name: (code, which is taken; others, which are not)."""
    names = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    taken: list[str] = []
    left_out: list[str] = []
    for name in sorted(os.fsdecode(name) for name in names if name):
        path = root / name
        code = path.suffix in CODE and path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST
        (taken if code else left_out).append(name)
    return taken, left_out


def state(root: Path = ROOT, refuse_keys: bool = False) -> tuple[str, str, bytes]:
    """(commit, tree id, binary diff from commit to tree) of the working tree; the repository is not written to.

    `refuse_keys`: SaladError where an added line looks like a key or a password."""
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    own = _git(root, "rev-parse", "--git-path", "objects").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": f"{folder}/objects",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((root / own).resolve()),
        }
        os.mkdir(f"{folder}/objects")
        _git(root, "read-tree", "HEAD", env=env)
        # staged new files are tracked too
        new = _git(root, "diff", "--cached", "--name-only", "--diff-filter=A", "-z", "HEAD").split(b"\0")
        new += [os.fsencode(name) for name in untracked(root)[0]]
        new = [name for name in new if name and os.path.lexists(root / os.fsdecode(name))]
        _git(root, "add", "-u", env=env)
        if new:
            _git(root, "add", "--pathspec-from-file=-", "--pathspec-file-nul", env=env, stdin=b"\0".join(new))
        tree = _git(root, "write-tree", env=env).decode().strip()
        # diff-tree, for `git diff` follows a person's settings: colours, prefixes, a program of their own
        diff = _git(root, "diff-tree", "-r", "-p", "--binary", "--full-index", commit, tree, env=env)
        if refuse_keys:
            leaks.refuse(_git(root, "diff-tree", "-r", "-p", "--text", "--unified=0", commit, tree, env=env))
    return commit, tree, diff


def restore(run: RunFolder, code: dict, to: Path, root: Path = ROOT) -> Path:
    """Lay the recorded code out in folder `to`: the commit's files with code.diff applied. Returns `to`.

    Raises SaladError where this repository lacks the commit."""
    if code.get("commit") is None:
        raise SaladError(f"{root} is not a git checkout, so only `--on here` can run it")
    to.mkdir(parents=True, exist_ok=True)
    archive = _try_git(root, "archive", "--format=tar", code["commit"])
    if archive is None:
        raise SaladError(f"{root} lacks commit {code['commit'][:12]}; fetch it with git, then try again")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        tar.extractall(to, **safe)
    diff = (run.path / "code.diff").read_bytes()
    if diff:
        applied = subprocess.run(
            ["git", "apply", "--binary", "--whitespace=nowarn", "-"],
            input=diff,
            cwd=to,
            capture_output=True,
            env=os.environ | {"GIT_CEILING_DIRECTORIES": str(to.resolve().parent)},
        )
        if applied.returncode:
            raise SaladError(f"{run.path / 'code.diff'} does not apply: {applied.stderr.decode().strip()}")
    return to


def packages() -> list[str]:
    """`name==version` of everything installed but this project, sorted; local labels (+cpu) are left out, because
    another machine has another build of the same version."""
    versions = {
        dist.metadata["Name"]: dist.version.partition("+")[0]
        for dist in importlib.metadata.distributions()
        if dist.metadata["Name"] and dist.metadata["Name"] != OWN
    }
    return sorted((f"{name}=={version}" for name, version in versions.items()), key=str.lower)


def differs(run: RunFolder, code: dict, root: Path = ROOT) -> list[str]:
    """In words, how the code and packages at hand differ from the recorded ones; [] if they do not."""
    differences = []
    if code.get("tree") and _try_git(root, "rev-parse", "--is-inside-work-tree") is not None:
        commit, tree, _ = state(root)
        if tree != code["tree"]:
            differences.append(f"code is at {commit[:12]} with other changes, the run began at {code['commit'][:12]}")
    changed = changed_packages(run)
    if changed:
        differences.append("packages changed: " + ", ".join(changed[:8]) + (" …" if len(changed) > 8 else ""))
    return differences


def changed_packages(run: RunFolder) -> list[str]:
    """`name recorded → here` of every package of packages.txt that has another version in this environment."""
    recorded = run.path / "packages.txt"
    if not recorded.exists():
        return []
    before = dict(line.split("==", 1) for line in recorded.read_text().splitlines())
    after = dict(line.split("==", 1) for line in packages())
    return [f"{name} {old} → {after.get(name, 'none')}" for name, old in before.items() if after.get(name) != old]


def install_script(python: str, env: str, code: str, constraints: str) -> str:
    """A shell script that installs the project in folder `code` into `env`, once, under the recorded versions."""
    return (
        f"test -e {env}/.ready || (rm -rf {env} && {python} -m venv {env} && "
        f"{env}/bin/pip install --quiet --constraint {constraints} {code} && touch {env}/.ready)"
    )


def environment_id(run: RunFolder, root: Path = ROOT) -> str:
    """Names an installed environment: the project's requirements and the recorded versions."""
    data = (root / "pyproject.toml").read_bytes() + (run.path / "packages.txt").read_bytes()
    return hashlib.sha256(data).hexdigest()[:12]


def _git(root: Path, *arguments: str, env: dict | None = None, stdin: bytes = b"") -> bytes:
    """Standard output of a git command. SaladError where git is not installed or the command fails."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], input=stdin, capture_output=True, env=os.environ | (env or {}))
    except FileNotFoundError:
        raise SaladError("git is not installed; install it, or run `--on here`") from None
    if done.returncode:
        raise SaladError(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _try_git(root: Path, *arguments: str) -> bytes | None:
    """Standard output of a git command; None where git is not installed or the command fails."""
    try:
        return _git(root, *arguments)
    except SaladError:
        return None
