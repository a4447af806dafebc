"""The command line, `salad`: `app` parses and runs, a module for each group of commands holds them."""

from workbench.cli import demo, study, data, runs, evaluation, diagnosis, lab, results, models  # noqa: F401, I001  (they register their commands, in the order of --help)
from workbench.cli.app import COMMANDS, main, parse

__all__ = ["COMMANDS", "main", "parse"]
