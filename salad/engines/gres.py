"""What Slurm says of its GPUs, and what a person asks for: `gpu:a100:4(S:0-1)`, `gres/gpu=8`, `3090:8`."""

import re

from salad.errors import SaladError

MOST = 1024  # GPUs on a node: a larger number is a GPU's name, as in 3090
TYPE = r"(?:(?=[\w.+-]*[A-Za-z])[A-Za-z0-9][\w.+-]*|\d+)"  # h100, 3090, 2080ti, a100_3g.20gb, 1g.10gb+me
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def parse_gpus(text: str | int | None) -> tuple[str | None, int | None]:
    """`--gpus`: `H200:8` → ("H200", 8); `8` → (None, 8); `H200` → ("H200", 1). `gpu:` before it is Slurm's own way.

    A number alone is how many; a GPU whose name is a number is written with how many: `3090:1`. SaladError otherwise."""
    if text is None:
        return None, None
    words = str(text).strip().removeprefix("gpu:")
    match = re.fullmatch(rf"(?P<number>\d+)|(?:(?P<kind>{TYPE}):(?P<n>\d+))|(?P<alone>{TYPE})", words)
    if not match:
        raise SaladError(f"--gpus {text}: write a number, a type, or TYPE:NUMBER as in H200:8")
    kind, number = match["kind"] or match["alone"], int(match["number"] or match["n"] or 1)
    if number > MOST:
        meant = f"{number}:1" if kind is None else f"{number}:{kind}" if kind.isdigit() else f"{kind}:8"
        raise SaladError(f"--gpus {text}: no machine has {number:,} GPUs; write TYPE:NUMBER, as in {meant}")
    if kind and not number:
        raise SaladError(f"--gpus {text}: none of a type; write 0 for no GPU")
    return kind, number


def gpus_of(gres: str) -> dict[str | None, int]:
    """GPUs of a node by type (None: without one), from Slurm's GRES or TRES.

    `gpu:a100:4(S:0-1),shard:8` → {"a100": 4}; `gpu:3090:8` → {"3090": 8}; `gpu:2` → {None: 2};
    `gres/gpu=8,gres/gpu:a100=8` → {"a100": 8}; `(null)` → {}."""
    typed: dict[str | None, int] = {}
    total = 0
    for item in re.split(r",(?![^()]*\))", gres.strip()):  # not at the commas of (S:0,2)
        item = re.sub(r"\(.*?\)", "", item).strip()
        name, equals, amount = item.removeprefix("Gres=").removeprefix("gres/").removeprefix("gres:").partition("=")
        words = name.split(":")
        if words[0] != "gpu":
            continue
        if equals:  # TRES: the total and each type's part of it stand side by side
            if len(words) == 1:
                total += _count(amount)
            else:
                typed[words[1]] = typed.get(words[1], 0) + _count(amount)
            continue
        words = [word for word in words[1:] if word != "no_consume"]
        count = _count(words.pop()) if words and re.fullmatch(r"\d+[KMGTP]?", words[-1], re.I) else 1
        kind = words[0] if words else None
        typed[kind] = typed.get(kind, 0) + count
    rest = total - sum(typed.values())
    if rest > 0:
        typed[None] = rest
    return {kind: count for kind, count in typed.items() if count}


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGTP]?)", text.strip(), re.I)
    return int(match[1]) * UNITS[match[2].upper()] if match else 0


def choose(nodes: list[dict[str | None, int]], kind: str | None, number: int) -> str | None:
    """The type to ask Slurm for, spelled as the cluster spells it, where a node has `number` GPUs of `kind` (None: any).

    SaladError in one line where none has."""
    wanted = f"--gpus {kind}:{number}" if kind else f"--gpus {number}"
    if kind is None:
        most = max((sum(node.values()) for node in nodes), default=0)
        if number > most:
            raise SaladError(f"{wanted}: no node of the partition has more than {most}")
        return None
    types = sorted({name for node in nodes for name in node if name is not None})
    name = next((name for name in types if name.lower() == kind.lower()), None)
    if name is None:
        there = f"it has {', '.join(types)}" if types else "its GPUs have no type: write the number alone"
        raise SaladError(f"{wanted}: the partition has no GPUs of type {kind}; {there}")
    most = max(node.get(name, 0) for node in nodes)
    if number > most:
        raise SaladError(f"{wanted}: no node of the partition has more than {most} of type {name}")
    return name
