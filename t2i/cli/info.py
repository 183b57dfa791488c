"""`t2i info`: what is here."""

from typing import Annotated

import typer


def info(
    model: Annotated[str | None, typer.Argument(help="A model by name or folder, or a config; none lists all.")] = None,
) -> None:
    """Versions and this machine, or the stages, sizes, cost and settings of a model."""
    from t2i.cli.describe import describe

    typer.echo(describe(model))
