"""``onnxprune verify ORIGINAL PRUNED``: is the one what pruning made of the other?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.flags import CustomOpsFlag, InputsFlag, SeedFlag, VerifyByFlag
from onnxprune.errors import VerificationError
from onnxprune.report.text import shown


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify", help=ABOUT["verify"])(verify)


def verify(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The model before.", show_default=False)],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The model after.", show_default=False)],
    record: Annotated[
        Path | None, typer.Option(help="The record of the run, to prove removed == masked.", show_default=False)
    ] = None,
    inputs: InputsFlag = None,
    custom_ops: CustomOpsFlag = [],  # noqa: B006
    accept_unproved: Annotated[
        bool, typer.Option("--accept-unproved", help="End with status 0 although nothing was proved.")
    ] = False,
    verify_by: VerifyByFlag = "auto",
    seed: SeedFlag = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Check a pruned model against its original."""
    from onnxprune.pipeline.check import verify as check

    with stages(f"{original} and {pruned}") as tell:
        tell("verify")
        checked = check(original, pruned, record, seed=seed, inputs=inputs, custom_ops=custom_ops, verify_by=verify_by)
    if json:
        print_json("verify", asdict(checked), 2)
    else:
        for line in checked.lines():
            console.print(shown(line), soft_wrap=True)
    if not checked.proved and not accept_unproved:
        raise VerificationError(
            f"nothing was proved of '{pruned}': {checked.unproved}. --accept-unproved ends with status 0 all the same"
        )
