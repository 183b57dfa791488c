"""`t2i info`: what is here."""

from typing import Annotated

import typer

from t2i.cli.options import check_model, is_stage
from t2i.core.errors import MAX_LINE, shown


def info(
    model: Annotated[str | None, typer.Argument(help="A model by name or folder, or a config; none lists all.")] = None,
) -> None:
    """Versions and this machine, or the stages, sizes, cost and settings of a model."""
    if model is not None and not model.endswith((".yaml", ".yml")) and not is_stage(model):
        check_model(model)
    from t2i.cli.describe import describe

    for line in describe(model).split("\n"):
        typer.echo(shown(line, MAX_LINE))
