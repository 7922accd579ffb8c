"""A run's student as a folder of diffusers, or its adapter as a file of other programs: what
``fewstep export`` does.
"""

from __future__ import annotations

from pathlib import Path

from fewstep.denoisers import NetworkDenoiser, TrajectoryDenoiser, load_adapter
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.keeping.run_identity import run_of
from fewstep.recipes.config.section import kind_of_section
from fewstep.runs.loading import load_alone
from fewstep.zoo.lora import write_lora
from fewstep.zoo.pipelines import ExportSource, export_pipeline


def export(run: Path | str, out: Path | str, dtype: str = "fp32", which: Which = "last") -> Path:
    """Writes the student of a run as the folder ``out``, whole or not at all, and returns it.

    ``dtype``: of the U-Net's weights, one of fp32, fp16 and bf16. ``which``: the last student or
    the best that the run kept. Raises ``UserError`` for a run
    whose teacher is no text-to-image pipeline, one that has not ended, and what
    ``export_pipeline`` raises.
    """
    return export_pipeline(export_source(run, which), out, dtype)


def export_source(run: Path | str, which: Which = "last") -> ExportSource:
    """A run's student, the last or the best, and what its folder is made of.

    Raises ``UserError`` for a run whose teacher is no text-to-image pipeline, or that has not
    ended.
    """
    recipe = RunFolder(Path(run)).read_distill_recipe()
    place = recipe.teacher.pipeline
    if place is None:
        raise UserError(
            f"{run}: its teacher ('teacher.kind: {kind_of_section(type(recipe.teacher))}') is no text-to-image "
            "pipeline, in whose place diffusers could sample the student; export a run with 'teacher.kind: pipeline'."
        )
    student = load_alone(run, "cpu", which)
    times = student.sampling.times(student.schedule, student.prior.time)
    return ExportSource(
        student.model,
        student.sampling,
        times.tolist(),
        place,
        str(kind_of_section(type(recipe.method))),
        run_of(recipe),
        student.prior.std,
        "" if recipe.prompts is None else recipe.prompts.alone(recipe.data).texts[0],
    )


def export_adapter(run: Path | str, out: Path | str, form: str, which: Which = "last") -> Path:
    """Writes the adapter of a run's student, the last or the best, as one safetensors file in
    another program's form, and returns its path.

    Raises ``UserError`` for a run whose student is no adapter or that has not ended, and where
    something stands at ``out``.
    """
    folder, path = RunFolder(Path(run)), Path(out)
    adapter = folder.adapter_of(which)
    if not adapter.is_file():
        raise UserError(
            f"{run}: has no {adapter.name}; its student is a whole copy ('student.kind: lora' makes an adapter) "
            "or the run has not ended."
        )
    if path.suffix != ".safetensors":
        raise UserError(f"{out}: an adapter is written as a .safetensors file; give such a name.")
    if path.exists() or path.is_symlink():
        raise UserError(f"{out}: is there already; give another name, or move it away.")
    model = load_alone(run, "cpu", which).model
    network = next(part.network for part in model.modules() if isinstance(part, (NetworkDenoiser, TrajectoryDenoiser)))
    write_lora(path, load_adapter(adapter).on(network), network, form)
    return path
