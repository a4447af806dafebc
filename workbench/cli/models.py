"""`salad models`: whether a model works here, before a GPU is paid for."""

from typing import Literal

import tyro

from workbench.cli.app import Lab, command


@command
def models(
    action: tyro.conf.Positional[Literal["check", "list"]],
    name: tyro.conf.Positional[str] = "",
    *,
    lab: Lab = None,
    role: Literal["teacher", "encoder", "recogniser"] | None = None,
    weights: bool = True,
) -> int:
    """Say whether a model works here and why not (check NAME), or what kinds there are (list).

    NAME is a folder or a hub name. Where its weights are at hand, an LLM is loaded and run on a few tokens; else only its
    configuration is read. Leaves with 0 where it works in some role, or in the one that --role names, else with 1.

    Args:
        action: check, or list.
        name: for check: a folder (of the lab, or anywhere) or a hub name.
        role: what it must work as; by default anything will do.
        weights: --weights False reads the configuration alone.
    """
    from transformers.utils import logging

    import store
    from salad.errors import SaladError
    from salad.models import support

    logging.set_verbosity_error()  # what it says of weights is said below

    if action == "list":
        for kind, names in support.known().items():
            print(f"{kind:11} {', '.join(names)}")
        return 0
    if not name:
        raise SaladError("say which model: salad models check NAME, a folder or a hub name")
    found = support.check_model(name, store.lab_path(lab), weights)
    marks = {True: "yes", False: "NO", None: "open"}
    for one in found:
        print(f"{one.role:11} {one.what:13} {marks[one.ok]:5} {one.detail}")
    wanted = [role] if role else [one for one in support.ROLES if any(f.role == one for f in found)]
    works = [one for one in wanted if support.fits(found, one)]
    print(f"{name} works as {' and '.join(works)}" if works else f"{name} does not work as {', '.join(wanted)}")
    return 0 if works else 1
