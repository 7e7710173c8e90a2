"""``onnxprune unpack PACKED``: the plain model back, bit for bit for values that were packed exactly.

A model in tiles comes back with one node for each layer, and zeros among its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.outputs import check_model, check_outputs
from onnxprune.errors import ModelError
from onnxprune.report.text import shown


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("unpack", help=ABOUT["unpack"])(unpack)


def unpack(
    packed: Annotated[
        Path,
        typer.Argument(metavar="PACKED", help="A model that --pack or --structure tiles wrote.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write [PACKED.unpacked.onnx].", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Unpack a model."""
    from onnxprune import model_io, packing
    from onnxprune.model_io.protobuf import read_proto
    from onnxprune.passes.join_tiles import JoinTiles, in_tiles

    check_model(packed)
    target = output or packed.with_name(f"{packed.stem}.unpacked.onnx")
    check_outputs({"the model": packed}, target, {}, force=force)
    with stages(str(packed)) as tell:
        tell("unpack")
        model = model_io.load(packed)  # sparse initializers are dense from here on
        tiles, sparse = in_tiles(model), bool(read_proto(packed).graph.sparse_initializer)
        if not packing.is_packed(model) and not sparse and not tiles:
            raise ModelError(f"'{packed}' holds no packed weights and no tiles: there is nothing to unpack")
        plain = packing.unpack(model)
        JoinTiles()(plain)
        saved = model_io.save(plain, target, force=force)
    before = packed.stat().st_size
    if json:
        sizes = {"before_bytes": before, "after_bytes": saved.size}
        print_json("unpack", {"packed": str(packed), "output": str(target), **sizes})
    else:
        console.print(f"wrote [b]{shown(str(target))}[/]: {before:,} -> {saved.size:,} bytes", soft_wrap=True)
