import json

import numpy as np
import pytest
import torch

from gebm import GEBM
from gebm.commands.density import whole_columns
from gebm.data import load_table
from gebm.data.units import as_json, load_units, save_units, units_beside
from gebm.errors import InputError
from gebm.metrics.likelihood import base_log_prob
from gebm.model import Architecture

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 3)) @ [[2.0, 0.1, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.01]] + [10, 0, -5]
TEXTS = ("name", "columns", "protocol", "seed", "key", "width", "named")


@pytest.fixture
def data(tmp_path):
    """A table with a constant column and a total."""
    rows = np.column_stack([ROWS, np.full(200, 5.0), ROWS.sum(1)])
    np.savetxt(tmp_path / "t.csv", rows, "%.17g", ",", header="a,b,c,flag,total", comments="")
    return load_table(f"csv:{tmp_path / 't.csv'}", seed=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GEBM.build(Architecture("nvp", "mlp", (3,), 3, width=0.1, blocks=2)).eval()


def alike(ours, theirs) -> None:
    assert all(getattr(ours, field) == getattr(theirs, field) for field in TEXTS)
    assert ours.dropped.columns == theirs.dropped.columns == ("flag", "total")
    for part in ("offset", "weights", "tolerance", "unit"):
        np.testing.assert_array_equal(getattr(ours.dropped, part), getattr(theirs.dropped, part))
    for part in ("mean", "whitening"):
        np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))


def test_units_come_back(data, tmp_path):
    save_units(tmp_path, data)
    alike(load_units(tmp_path), data)
    np.testing.assert_array_equal(load_units(tmp_path).valid, data.valid)


def test_units_of_a_run_from_before_columns_were_kept_in_mind(data, tmp_path):
    save_units(tmp_path, data)
    with np.load(tmp_path / "table.npz") as stored:
        old = {key: stored[key] for key in stored.files if key != "named" and not key.startswith("dropped")}
    np.savez(tmp_path / "table.npz", **old)
    units = load_units(tmp_path)
    assert units.named is None and units.dropped is None and units.columns == ("a", "b", "c")


def test_units_of_a_run_from_before_decimals_were_kept_in_mind(data, tmp_path):
    """In which nothing is taken for rounded."""
    save_units(tmp_path, data)
    with np.load(tmp_path / "table.npz") as stored:
        np.savez(tmp_path / "table.npz", **{key: stored[key] for key in stored.files if key != "dropped_unit"})
    rest = load_units(tmp_path).dropped
    kept, others = ROWS.round(3), np.column_stack([np.full(200, 5.0), ROWS.sum(1).round(3)])
    assert rest.differ(kept, others)[:, 1].any() and not data.dropped.differ(kept, others).any()


def test_units_of_no_dropped_column(tmp_path, model):
    data = load_table("toy:flower")
    save_units(tmp_path, data)
    assert load_units(tmp_path).dropped.columns == () and load_units(tmp_path).named is False
    model.units = data
    model.save_pretrained(tmp_path / "out")
    assert units_beside(tmp_path / "out").dropped.weights.shape == (3, 0)


@pytest.mark.parametrize(
    "part, value", [("offset", [0.0]), ("weights", [[1.0]]), ("tolerance", [np.nan, 0.0]), ("unit", [1.0])]
)
def test_damaged_columns_are_refused(data, tmp_path, part, value):
    save_units(tmp_path, data)
    with np.load(tmp_path / "table.npz") as stored:
        np.savez(tmp_path / "table.npz", **{**stored, f"dropped_{part}": np.array(value)})
    with pytest.raises(InputError, match="missing or damaged"):
        load_units(tmp_path)


def test_a_model_has_its_units_with_it(data, model, tmp_path):
    """Whatever --scaling it was trained with, rows are in the units of their file."""
    model.save(tmp_path)
    save_units(tmp_path, data)
    rows = data.unwhiten(data.test)
    loaded = GEBM.load(tmp_path)
    expected = base_log_prob(model, torch.from_numpy(np.array(data.test))) + data.log_det
    found = loaded.log_density(rows, 0.0) + loaded.energy(torch.from_numpy(data.whiten(rows))).double()
    torch.testing.assert_close(found.detach(), expected.double(), atol=1e-4, rtol=1e-5)
    for folder in ("again", "out"):  # as its weights, and as an export
        (tmp_path / "again").mkdir(exist_ok=True)
        loaded.save(tmp_path / "again") if folder == "again" else loaded.save_pretrained(tmp_path / "out")
        alike(GEBM.load(tmp_path / folder).units, data)
        torch.testing.assert_close(GEBM.load(tmp_path / folder).log_density(rows), loaded.log_density(rows))
    assert as_json(data) == json.loads((tmp_path / "out" / "config.json").read_text())["table"]
    with pytest.raises(InputError, match="the columns a, b, c"):
        loaded.log_density(rows[:, :2])
    with pytest.raises(InputError, match="the columns a, b, c, without "):
        loaded.log_density(np.column_stack([rows, rows]))
    with pytest.raises(InputError, match="not known; load the model from its run"):
        model.log_density(rows)


@pytest.mark.parametrize("flags", [{"seed": 3}, {"scaling": "whiten"}, {}])
def test_base_and_energy_of_different_units_are_not_one_model(data, model, tmp_path, flags):
    """Of the same columns, number of columns and file name; {}: the file has another row."""
    for name in ("ours", "theirs", "bare"):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
    save_units(tmp_path / "ours", data)
    file = tmp_path / "t.csv"
    if not flags:
        file.write_text(file.read_text() + "1,2,3,5,6\n")
    save_units(tmp_path / "theirs", load_table(f"csv:{file}", **{"seed": 2, **flags}))
    with pytest.raises(InputError, match=r"theirs.*an energy of csv:.* in other rows or units than the base .*ours"):
        GEBM.load(tmp_path / "ours", tmp_path / "theirs")
    assert GEBM.load(tmp_path / "ours", tmp_path / "ours" / "energy.safetensors").units.key == data.key
    for halves in (("ours", "bare"), ("bare", "ours")):  # one of which nothing is known
        assert GEBM.load(*(tmp_path / half for half in halves)).units is None


def test_training_and_tables_have_one_scaling():
    from gebm.commands.tables import settled
    from gebm.config import Config

    config, _ = settled(Config(dataset="toy:moons"), frozenset())
    assert config.scaling == Config.scaling == load_table.__kwdefaults__["scaling"]


def test_log_densities_of_rows_that_their_type_has_rounded_are_refused(model, tmp_path):
    rng = np.random.default_rng(0)
    times = rng.normal(size=(200, 3)) * [300, 1, 1] + [1_700_000_000, 0, 5]
    np.savez(tmp_path / "t.npz", times)
    model.units = load_table(f"npz:{tmp_path / 't.npz'}")
    assert model.log_density(times).isfinite().all()
    with pytest.raises(InputError, match="rows in float32, which rounds some by 0.3.* give them as they were read"):
        model.log_density(times.astype(np.float32))
    near = times - [1_700_000_000, 0, 0]
    np.savez(tmp_path / "t.npz", near)
    model.units = load_table(f"npz:{tmp_path / 't.npz'}")
    torch.testing.assert_close(model.log_density(near.astype(np.float32)), model.log_density(near), atol=1e-3, rtol=0)


def test_columns_of_whole_numbers_are_known_by_the_validation_rows(tmp_path):
    rng = np.random.default_rng(0)
    columns = [rng.integers(40, size=300), rng.normal(size=300), rng.integers(2, size=300), 1e9 * rng.normal(size=300)]
    rows = np.column_stack(columns)
    np.savez(tmp_path / "t.npz", rows)
    assert whole_columns(load_table(f"npz:{tmp_path / 't.npz'}")) == ["x1", "x3"]
