"""Run packs: files of recorded sweeps, and rows of them that are trained again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynamics import SGD, DynamicsError, Net, Recipe, load_data
from dynamics.packs import FOLDER, RECORDINGS, Pack, Recording, Row, again, agreement, load_pack, record, save_pack

TINY = Recipe(Net("mlp", width=8, depth=1), SGD(0.1), batch_size=64, epochs=1, precision="float32")


def kept(run: Any) -> dict[str, Any]:
    valid = run["valid"]
    return {"accuracy": float(valid.accuracy[-1]), "losses": run["train"].loss.values[:3]}


TRIAL = Recording("05", {"slow": TINY, "fast": replace(TINY, optimizer=SGD(0.5))}, (0, 1), kept, limit=256)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return record("trial", TRIAL, runs=tmp_path_factory.mktemp("runs"), workers=1, progress=False)


def test_a_pack_survives_its_file(pack: Pack, tmp_path: Path) -> None:
    path = save_pack(pack, tmp_path / "trial.json")
    assert load_pack(path) == pack
    assert save_pack(load_pack(path), tmp_path / "again.json").read_text() == path.read_text()


def test_its_file_names_no_folder_of_the_machine(pack: Pack, tmp_path: Path) -> None:
    assert str(Path.home()) not in save_pack(pack, tmp_path / "trial.json").read_text()
    assert "command" not in pack.about["environment"]


def test_a_row_trained_again_is_the_recorded_one_bit_for_bit(pack: Pack) -> None:
    row = again(pack, TRIAL, "fast", 1, progress=False)
    assert row == pack["fast", 1]
    assert agreement(pack, row) == 0


def test_agreement_counts_in_standard_deviations_of_seeds() -> None:
    rows = tuple(Row("a", seed, "finished", {"accuracy": value}) for seed, value in enumerate((0.5, 0.6, 0.7)))
    pack = Pack("p", {}, {"a": TINY}, rows)
    assert agreement(pack, Row("a", 0, "finished", {"accuracy": 0.75})) == pytest.approx(2.5)
    assert agreement(pack, Row("a", 0, "diverged", {})) == math.inf
    close = tuple(Row("b", seed, "finished", {"accuracy": 0.6 + seed / 1e6}) for seed in range(3))
    both = Pack("p", {}, {"a": TINY, "b": TINY}, rows + close)  # the median spread is about 0.05
    assert agreement(both, Row("b", 0, "finished", {"accuracy": 0.65})) == pytest.approx(1, rel=1e-4)
    with pytest.raises(DynamicsError, match="spread of two"):
        agreement(Pack("p", {}, {"a": TINY}, rows[:1]), rows[0])


def test_the_table_has_figures_by_recipe_and_seed(pack: Pack) -> None:
    table = pack.table()
    assert table.accuracy.dims == ("recipe", "seed")
    assert table.losses.dims == ("recipe", "seed", "losses_index")
    assert float(table.accuracy.sel(recipe="fast", seed=1)) == pack["fast", 1].figures["accuracy"]
    assert set(table.status.values.ravel()) == {"finished"}


def test_numbers_that_are_not_finite_survive_as_nan(tmp_path: Path) -> None:
    pack = Pack("p", {}, {"a": TINY}, (Row("a", 0, "diverged", {"accuracy": math.inf, "by_layer": (1.0, math.nan)}),))
    text = save_pack(pack, tmp_path / "p.json").read_text()
    figures = load_pack(tmp_path / "p.json")["a", 0].figures
    assert "Infinity" not in text and "NaN" not in text
    assert math.isnan(figures["accuracy"]) and figures["by_layer"][0] == 1 and math.isnan(figures["by_layer"][1])


def test_a_pack_of_another_recipe_or_other_data_is_refused(pack: Pack) -> None:
    changed = replace(TRIAL, recipes={**TRIAL.recipes, "fast": replace(TINY, optimizer=SGD(0.6))})
    with pytest.raises(DynamicsError, match="record it again"):
        again(pack, changed, "fast", 0, progress=False)
    with pytest.raises(DynamicsError, match="not those of the pack"):
        again(pack, replace(TRIAL, limit=128), "fast", 0, progress=False)


def test_bad_names_and_files_are_told_in_one_line(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(DynamicsError, match="fast"):
        pack["fest", 0]
    with pytest.raises(DynamicsError, match="its seeds are 0, 1"):
        pack["fast", 7]
    with pytest.raises(DynamicsError, match="pack"):
        load_pack("no-such-pack")
    for text in ("{", json.dumps({"format": 99}), json.dumps({"format": 1})):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(DynamicsError, match="record it again"):
            load_pack(tmp_path / "odd.json")


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_every_recording_is_committed_and_up_to_date(name: str) -> None:
    """Recipes and data are what the pack was made of; otherwise `make packs`."""
    pack, recording = load_pack(name), RECORDINGS[name]
    assert {k: r.to_json() for k, r in pack.recipes.items()} == {k: r.to_json() for k, r in recording.recipes.items()}
    assert pack.seeds == tuple(recording.seeds)
    assert pack.about["data"]["fingerprint"] == load_data(recording.data, limit=recording.limit).train.fingerprint()


def test_all_packs_together_are_small_and_belong_to_a_recording() -> None:
    files = list(FOLDER.glob("*"))
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.stem for path in files} == set(RECORDINGS)
