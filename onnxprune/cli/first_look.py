"""``onnxprune MODEL`` alone: what the model offers, and three commands to try with what each should bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.invocation import Invocation
from onnxprune.cli.outputs import check_model
from onnxprune.cli.streams import from_standard_input
from onnxprune.recipe.recipe import make_recipe
from onnxprune.report.text import shown


def first_look(invocation: Invocation, settings: Mapping[str, Any]) -> None:
    """Inspect a model and propose commands.

    Args:
        invocation: The model, and what is needed to run it.
        settings: How data are read, as arguments of a recipe.
    """
    from onnxprune import model_io
    from onnxprune.data.working import give_inputs
    from onnxprune.pipeline.advise import inputs_line, propose
    from onnxprune.pipeline.inspect import inspect
    from onnxprune.report.inspection import print_summary
    from onnxprune.runtime.libraries import custom_operators

    name = str(invocation.model)
    reading = make_recipe(sparsity=0.5, **settings).reading
    with from_standard_input(invocation.model) as file, custom_operators(invocation.custom_ops), stages(name) as tell:
        check_model(file)
        tell("analyse")
        model = model_io.load(file)
        give_inputs(model, invocation.inputs, reading)
        inspection = inspect(model)
        tell("try")
        proposals = propose(model, name, inspection)
    if invocation.json_output:
        content = {**inspection.as_dict(), "proposals": [asdict(proposal) for proposal in proposals]}
        print_json("inspect", {"model": name, **content})
        return
    print_summary(console, name, inspection)
    if not proposals:
        return
    console.print("\nto try:")
    for proposal in proposals:
        console.print(f"\n  [b]{proposal.aim}[/]: {shown(proposal.brings)}")
        console.print(f"    {shown(proposal.command)}", soft_wrap=True, highlight=False)
    console.print(
        f"\ninputs.npz: a few hundred samples of what the model takes: {shown(inputs_line(inspection.inputs))}; "
        "labelled.npz: the same with an array 'label'. A folder of images or a .csv does as well."
    )
    console.print("More: onnxprune inspect MODEL, onnxprune prune --help")
