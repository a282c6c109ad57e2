"""Tables as people have them, from the command line: odd headers, labels of rows, columns that say nothing."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from gebm.cli import main
from gebm.data import load_table
from gebm.model import GEBM

RNG = np.random.default_rng(0)
FLAGS = "--device -2 --g_model nvp --width 0.1 --num_blocks 2 --disp_freq 50 --partition_samples 1000".split()
FLAGS += "--ml_epochs 8 --refine_epochs 1".split()
START, NAMES = 1_700_000_000, ['say "hi"', "=b", "x1", "flag", "total", "copy"]


def values(n: int, seed: int) -> np.ndarray:
    """A time, two numbers, a constant, a total of two and a copy."""
    rows = np.random.default_rng(seed).standard_normal((n, 3)) * [2, 1, 5] + [START, 0, 3]
    return np.column_stack([rows, np.full(n, 5.0), rows[:, 1] + rows[:, 2], rows[:, 1]])


def write(file: str, names: list[str], rows: np.ndarray, first: list[str] | None = None) -> None:
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(([""] if first else []) + names)
        writer.writerows([*([first[i]] if first else []), *map(repr, row)] for i, row in enumerate(rows.tolist()))


def read(file: str) -> tuple[list[str], list[list[str]]]:
    with open(file, newline="") as stream:
        header, *rows = csv.reader(stream)
    return header, rows


def scores(file: str) -> dict[str, np.ndarray]:
    header, rows = read(file)
    return dict(zip(header, np.array(rows, float).T))


def score(file: str, run: Path, *flags: str) -> dict[str, np.ndarray]:
    assert main(["score", file, "--g_path", str(run), "--device", "-2", *flags]) == 0
    return scores(f"{Path(file).stem}.scores.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on such a table as pandas writes it, with its index."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("t.csv", NAMES, values(600, 0), [str(i) for i in range(600)])
        assert main(["train", "--dataset", "csv:t.csv", *FLAGS, "--log_name", "run"]) == 0
    return folder / "runs" / "run"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("new.csv", NAMES, values(40, 1))


def test_only_columns_that_can_have_a_density_are_learnt(trained):
    found = json.loads((trained / "likelihood.json").read_text())
    assert found["columns"] == NAMES[:3]
    assert any("copy" in note and "total" in note for note in found["notes"])
    assert any("constant" in note and "flag" in note for note in found["notes"])
    assert any("left out" in note for note in found["notes"])


def test_samples_read_back_as_they_were_drawn(trained):
    flags = ["--g_path", str(trained), "--log_name", "s", "--num_sampler_steps", "2", "--n_samples", "50"]
    assert main(["sample", *flags, "--device", "-2"]) == 0
    header, rows = read("runs/s/samples.csv")
    assert header == ['say "hi"', "'=b", "x1"]  # no formula for a spreadsheet
    written = np.array(rows, float)
    np.testing.assert_array_equal(written, np.load("runs/s/samples.npz")["samples"])
    assert len(np.unique(written[:, 0])) > 45 and np.abs(written[:, 0] - START).max() < 20  # not one value of 8 digits
    assert np.isfinite(score("runs/s/samples.csv", trained, "--output", "samples.scores.csv")["log_density"]).all()


def test_columns_named_by_numbers_are_found_by_name(trained):
    write("turned.csv", [NAMES[i] for i in (5, 2, 1, 0, 4, 3)], values(40, 1)[:, [5, 2, 1, 0, 4, 3]])
    for key, column in score("new.csv", trained).items():
        np.testing.assert_allclose(score("turned.csv", trained)[key], column, rtol=1e-5)


def test_columns_all_named_by_numbers(capsys):
    rows = values(300, 0)[:, :3] - [START, 0, 0]
    write("t.csv", ["x1", "x2", "x3"], rows)
    write("turned.csv", ["x3", "x1", "x2"], rows[:, [2, 0, 1]])
    assert main(["train", "--dataset", "csv:t.csv", *FLAGS, "--log_name", "run"]) == 0
    ours, turned = (score(file, Path("runs/run")) for file in ("t.csv", "turned.csv"))
    np.testing.assert_allclose(ours["log_density"], turned["log_density"], rtol=1e-5)
    write("other.csv", ["x1", "x2", "y"], rows)
    assert main(["score", "other.csv", "--g_path", "runs/run", "--device", "-2"]) == 2
    assert "none named x3" in capsys.readouterr().err


def test_a_row_that_is_new_in_a_constant_column_is_as_novel_as_can_be(trained, capsys):
    rows = values(40, 1)
    rows[3, 3], rows[7, 4], rows[9, 5] = 999, 50, -7
    write("news.csv", NAMES, rows)
    found, plain = score("news.csv", trained), score("new.csv", trained)
    new = np.isin(np.arange(40), (3, 7, 9))
    assert (found["log_density"][new] == -np.inf).all() and (found["log_density_base"][new] == -np.inf).all()
    assert (found["quantile"][new] == found["quantile"].min()).all()
    np.testing.assert_array_equal(found["log_density"][~new], plain["log_density"][~new])
    said = capsys.readouterr().out
    assert "flag" in said and "999 in row 3; it was 5 in all training rows" in said
    write("less.csv", NAMES[:3], rows[:, :3])
    assert np.isfinite(score("less.csv", trained)["log_density"]).all()
    assert "has no column flag, total, copy" in capsys.readouterr().out


def test_quantiles_are_above_zero(trained):
    """Of n held-out rows and k at most as likely: (k + 1) / (n + 1), which is valid as a p-value."""
    n = 54
    far = values(40, 1)
    far[:, :3] += [0, 0, 500]
    far[:, 4] += 500
    write("far.csv", NAMES, far)
    assert score("far.csv", trained)["quantile"] == pytest.approx(np.full(40, 1 / (n + 1)))
    ranks = score("new.csv", trained)["quantile"] * (n + 1)
    np.testing.assert_allclose(ranks, ranks.round(), atol=1e-6)
    assert ranks.min() >= 1 and ranks.max() <= n + 1


def test_other_columns_may_hold_anything(trained):
    header, rows = read("new.csv")
    with open("texts.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", *header, "remark"])
        writer.writerows([f"n-{i}", *row, "text, with a comma" if i % 2 else ""] for i, row in enumerate(rows))
    for key, column in score("texts.csv", trained).items():
        np.testing.assert_array_equal(score("new.csv", trained)[key], column)


def test_a_run_keeps_its_columns():
    write("t.csv", ["a", "b", "c"], values(300, 0)[:, :3], None)
    header, rows = read("t.csv")
    with open("t.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["id", *header], *([f"n{i}", *row] for i, row in enumerate(rows))])
    train = ["train", "--dataset", "csv:t.csv", *FLAGS, "--log_name", "run"]
    assert main(train) == 2
    assert main([*train, "--drop", "id, c"]) == 0
    assert json.loads(Path("runs/run/likelihood.json").read_text())["columns"] == ["a", "b"]
    assert main(["evaluate", "runs/run", "--device", "-2", "--partition_samples", "1000"]) == 0
    assert main(["export", "runs/run", "out"]) == 0
    assert main(["evaluate", "out", "--device", "-2"]) == 0
    assert np.isfinite(score("t.csv", Path("out"))["log_density"]).all()


def test_a_header_of_numbers_is_no_row(capsys):
    """As pandas writes an array."""
    write("t.csv", ["0", "1", "2"], values(300, 0)[:, :3])
    train = ["train", "--dataset", "csv:t.csv", *FLAGS, "--log_name", "run"]
    assert main(train) == 0
    assert "taken as names" in capsys.readouterr().out
    found = json.loads(Path("runs/run/likelihood.json").read_text())
    assert found["columns"] == ["0", "1", "2"] and sum(entry["base"]["n"] for entry in found["nll"].values()) == 300
    assert len(score("t.csv", Path("runs/run"))["row"]) == 300
    assert main([*train[:-1], "no", "--header", "no"]) == 0
    found = json.loads(Path("runs/no/likelihood.json").read_text())
    assert found["columns"] == ["x1", "x2", "x3"] and sum(entry["base"]["n"] for entry in found["nll"].values()) == 301
    assert main(["evaluate", "runs/no", "--device", "-2"]) == 0


def test_a_run_and_its_table_agree_on_units(trained, monkeypatch):
    """The same model and rows have one density, by whichever way."""
    rows = values(40, 1)[:, :3]
    scored = score("new.csv", trained)["log_density"]
    monkeypatch.chdir(trained.parent.parent)
    model, data = GEBM.load(trained), load_table("csv:t.csv")
    found = model.log_density(rows, json.loads((trained / "likelihood.json").read_text())["log_partition"]["value"])
    np.testing.assert_allclose(found.detach().numpy(), scored, atol=1e-3)
    np.testing.assert_array_equal(model.units.whitening, data.whitening)
    assert model.units.key == data.key


def test_a_gaussian_is_fitted_in_closed_form():
    rows = np.random.default_rng(3).standard_t(4, (400, 2)) @ [[1.0, 0.9], [0.0, 0.2]]
    write("t.csv", ["a", "b"], rows)
    flags = "--g_model gaussian --ml_epochs 1 --train_mode base --log_name g".split()
    assert main(["train", "--dataset", "csv:t.csv", "--device", "-2", *flags]) == 0
    found = json.loads(Path("runs/g/likelihood.json").read_text())["nll"]
    data = load_table("csv:t.csv")
    train, mean = data.unwhiten(data.train), data.unwhiten(data.train).mean(0)
    covariance = (train - mean).T @ (train - mean) / len(train)
    for split in ("train", "test"):
        away = data.unwhiten(getattr(data, split)) - mean
        nll = (
            0.5 * (away @ np.linalg.inv(covariance) * away).sum(1) + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        )
        assert found[split]["base"]["value"] == pytest.approx(nll.mean() + data.log_det - data.shift, abs=1e-4)
    # and so where an energy is trained on top, from the closed form on
    assert main(["train", "--dataset", "csv:t.csv", *FLAGS, "--g_model", "gaussian", "--log_name", "pair"]) == 0
    pair = json.loads(Path("runs/pair/likelihood.json").read_text())["nll"]
    assert pair["train"]["base"]["value"] == pytest.approx(found["train"]["base"]["value"], abs=1e-4)
    assert main(["train", "--resume", "runs/pair", "--refine_epochs", "2", "--device", "-2"]) == 0
