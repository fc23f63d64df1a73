"""A run: the recipe, what was read along the way as labelled arrays, and the final state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DynamicsError, unknown
from ..training import Recipe, State
from .store import Chunk, Series, chunk_paths, create, read_chunk, read_manifest

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Run:
    """What a training run left: `run["norms"]` is an xarray Dataset along `step`, one for each probe by its name.

    Besides the probes: run["train"] (loss, epoch), run["hyperparameters"] (by parameter group) and run["valid"].
    status: running (unfinished), finished or diverged. state: the last State kept; a fork starts from it. A run that
    was recorded by `watch` has no recipe.
    """

    recipe: Recipe | None
    readings: Mapping[str, xr.Dataset]
    state: State
    manifest: Mapping[str, Any]
    status: str
    diverged_at: int | None = None
    folder: Path | None = None
    chunks: Sequence[Chunk] | Sequence[Path] = ()

    def __getitem__(self, name: str) -> xr.Dataset:
        if name in self.readings:
            return self.readings[name]
        if name in self.manifest["probes"]:
            raise DynamicsError(f"the probe {name!r} was never due in this run: lower n in every(n, ...)")
        if name == "valid":
            raise DynamicsError("no 'valid' readings in this run: pass a validation split, train(recipe, train, valid)")
        error = unknown("reading", name, self.readings)
        raise DynamicsError(f"{error}; to record more pass probes={{{name!r}: every(10, ...)}} to train")

    def __contains__(self, name: str) -> bool:
        return name in self.readings

    @property
    def optimizer(self) -> str:
        """The optimizer's kind: "SGD", "AdamW", ... (a torch optimizer by its own name)."""
        if self.recipe is None:
            return self.manifest["optimizer"]
        ours = self.recipe.optimizer
        return getattr(ours, "name", type(ours).__name__)  # torch's optimizers are one class of ours

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The final parameters by name, on the CPU."""
        return self.state.params

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps at which a State was kept."""
        chunks = [c.state.step if isinstance(c, Chunk) else int(c.stem[6:14]) for c in self.chunks]
        return tuple(dict.fromkeys(chunks))

    def state_at(self, step: int) -> State:
        """The State kept at a step of `checkpoints`: train(recipe, split, start=run.state_at(500)) forks there."""
        if step not in self.checkpoints:
            kept = ", ".join(map(str, self.checkpoints))
            raise DynamicsError(f"no state was kept at step {step}: choose one of {kept}, or train with chunk_steps=")
        chunk = self.chunks[self.checkpoints.index(step)]
        return (chunk if isinstance(chunk, Chunk) else read_chunk(chunk, readings=False)).state

    def save(self, folder: str | Path) -> None:
        """Write the run as a run folder, chunk by chunk; raises DynamicsError where the folder exists."""
        chunks = (c if isinstance(c, Chunk) else read_chunk(c) for c in self.chunks)
        create(Path(folder), {k: v for k, v in self.manifest.items() if k != "format"}, chunks)

    def __repr__(self) -> str:
        ended = f" at step {self.diverged_at}" if self.status == "diverged" else ""
        groups = ", ".join(self.readings) or "none"
        what = repr(self.recipe.net) if self.recipe else f"{self.manifest['model']}, watched"
        return f"<Run of {what}: {self.status}{ended}, {self.state.step} steps; readings: {groups}>"


def load_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not; raises DynamicsError for what is not one, or of a newer format."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    paths = chunk_paths(folder)
    chunks = [read_chunk(p, state=p == paths[-1]) for p in paths]
    return assemble(manifest, chunks, folder, paths)


def assemble(
    manifest: Mapping[str, Any], chunks: Sequence[Chunk], folder: Path | None, paths: Sequence[Path] | None = None
) -> Run:
    """A Run from its chunks: readings joined along step."""
    readings = {name: dataset(series) for name, series in concatenate(c.readings for c in chunks).items()}
    last = chunks[-1]
    recipe = None if manifest["recipe"] is None else Recipe.from_json(manifest["recipe"])
    return Run(recipe, readings, last.state, manifest, last.status, last.detail, folder, list(paths or chunks))


def concatenate(parts: Iterable[Mapping[str, Series]]) -> dict[str, Series]:
    """Series of one name after another as one; raises DynamicsError where they do not fit together."""
    found: dict[str, list[Series]] = {}
    for part in parts:
        for name, series in part.items():
            found.setdefault(name, []).append(series)
    whole = {}
    for name, pieces in sorted(found.items()):
        first = pieces[0]
        if any(p.coords != first.coords or p.variables.keys() != first.variables.keys() for p in pieces):
            raise DynamicsError(f"the readings {name!r} change their names or coordinates along the run: train it anew")
        variables = {
            v: (dims, torch.cat([p.variables[v][1] for p in pieces]), attrs)
            for v, (dims, _, attrs) in first.variables.items()
        }
        whole[name] = Series([s for p in pieces for s in p.steps], variables, first.coords)
    return whole


def dataset(series: Series) -> xr.Dataset:
    import xarray as xr

    variables = {v: (("step", *dims), tensor.numpy(), attrs) for v, (dims, tensor, attrs) in series.variables.items()}
    return xr.Dataset(variables, {"step": series.steps, **series.coords})
