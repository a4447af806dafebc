"""Names of modules that have moved, as they are still stored, or hashed, in labs."""

MODULES = {
    "salad.studies": "salad.study.cells",  # `salad.studies:active_filtered` in selections.strategy and selection ids
}


def current(module: str) -> str:
    """The module's name today."""
    return MODULES.get(module, module)
