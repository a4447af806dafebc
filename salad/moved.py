"""Names that stand in labs, hashed or stored, from before the modules they name were moved."""

MODULES = {
    "salad.studies": "salad.study.cells",  # `salad.studies:active_filtered` in selections.strategy and selection ids
}


def current(module: str) -> str:
    """The module's name today."""
    return MODULES.get(module, module)
