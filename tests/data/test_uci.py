import gzip
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest

from gebm.data import load_table, uci
from gebm.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture
def originals(shared_data):
    if not (shared_data / "uci").is_dir():
        pytest.skip(f"no tables at {shared_data / 'uci'}")
    return shared_data


@pytest.fixture
def offline(monkeypatch):
    """Records what would be downloaded, and fails."""
    asked = []

    def retrieve(*arguments, **options):
        asked.append((arguments, options))
        raise OSError("no\nnetwork")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return asked


def published(values: np.ndarray, seed: int, dequantise: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published procedure, step by step on one global stream as it was run: (train, valid, test)."""
    np.random.seed(seed)
    np.random.shuffle(values)
    if dequantise:
        for j in range(values.shape[1]):
            gap = np.median(np.diff(np.sort(np.unique(values[:, j]))))
            values[:, j] += gap * (2 * np.random.rand(len(values)) - 1)
    values = values[:, np.random.permutation(values.shape[1])]
    values = values - values.mean(axis=0)
    seen = values[:10000]
    _, s, vt = np.linalg.svd(seen, full_matrices=False)
    values = values @ (vt.T / s * np.sqrt(len(seen)))
    rest, test = values[: -int(0.1 * len(values))], values[-int(0.1 * len(values)) :]
    n_valid = min(int(0.1 * len(rest)), 1000)
    return rest[:-n_valid], rest[-n_valid:], test


@pytest.mark.parametrize("name, file", [("redwine", "winequality-red.csv"), ("whitewine", "winequality-white.csv")])
def test_wines(originals, name, file):
    raw = np.genfromtxt(originals / "uci" / file, delimiter=";", skip_header=1)[:, :-1]
    data = load_table(name, originals, protocol="paper", scaling="whiten", seed=1)
    for ours, theirs in zip((data.train, data.valid, data.test), published(raw.copy(), 1, True)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert data.columns[0] == "fixed acidity" and data.columns[-1] == "alcohol" and len(data.columns) == 11
    # Back in the units and the order of the file, all within the noise of a value of the file.
    gaps = np.array([np.median(np.diff(np.unique(column))) for column in raw.T])
    for protocol, bins in ("paper", 1.0), ("standard", 0.5):
        data = load_table(name, originals, protocol=protocol, seed=1)
        rows = data.unwhiten(np.concatenate([data.train, data.valid, data.test]))
        for back, column, gap in zip(rows.T, raw.T, gaps):
            shift = np.abs(np.sort(back) - np.sort(column)) / gap  # sorting keeps bounds on shifts
            assert 0.8 * bins < shift.max() < 1.01 * bins
        assert sum("training row in every column" in note for note in data.notes) == 2


def test_parkinsons(originals):
    file = originals / "uci" / "parkinsons_updrs.data"
    raw = np.genfromtxt(file, delimiter=",", skip_header=1)
    header = file.read_text().splitlines()[0].split(",")
    copies = ["Jitter(%)", "Jitter:RAP", "Shimmer", "Shimmer:APQ3"]
    kept = [i for i, column in enumerate(header) if i >= 3 and column not in copies]
    data = load_table("parkinsons", originals, protocol="paper", scaling="whiten", seed=1)
    assert data.columns == tuple(header[i] for i in kept) and data.shape == (15,)
    for ours, theirs in zip((data.train, data.valid, data.test), published(raw[:, kept], 1, False)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    correlation = np.abs(np.corrcoef(raw[:, kept].T)) - np.eye(15)
    assert correlation.max() <= 0.98
    for seed in range(5):
        data = load_table("parkinsons", originals, seed=seed)
        assert data.columns == tuple(header[i] for i in kept)
        assert len(data.test) == 587 and len(data.valid) == 528 and len(data.train) == 4760


def test_long_tables(tmp_path):
    rows = RNG.normal(size=(12_000, 3)) @ RNG.normal(size=(3, 3))
    rows[:5000] *= 2  # so the axes of the first 10,000, as drawn, are not those of all
    np.savez(tmp_path / "long.npz", rows)
    data = load_table(f"npz:{tmp_path / 'long.npz'}", protocol="paper", scaling="whiten", seed=2)
    for ours, theirs in zip((data.train, data.valid, data.test), published(rows.copy(), 2, False)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len(data.valid) == 1000


def test_checksums_are_of_the_files_here(originals):
    for name, expected in uci.SHA256.items():
        assert pooch.file_hash(str(originals / "uci" / name.split("/")[-1])) == expected


def write_hepmass(folder, gz, n=(600, 300)):
    """1000_train.csv and 1000_test.csv in their format: a label and 27 features; the test header names one too many."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for part, count, extra in (("train", n[0], ""), ("test", n[1], ",mass")):
        values = RNG.normal(size=(count, 28))
        values[:, uci.HEPMASS_DISCRETE] = RNG.integers(3, size=(count, 6))
        values[:, 0] = np.arange(count) % 2
        lines = ["# label," + ",".join(f"f{i}" for i in range(27)) + extra]
        lines += [",".join(f"{x:.18e}" for x in row) for row in values]
        text = "\n".join(lines) + "\n"
        open_ = gzip.open if gz else open
        with open_(folder / f"1000_{part}.csv{'.gz' if gz else ''}", "wt") as stream:
            stream.write(text)
        parts.append(values)
    return parts


@pytest.mark.parametrize("place, gz", [("uci", True), ("hepmass", False), ("uci/data/hepmass", False)])
def test_hepmass(place, gz, tmp_path, monkeypatch):
    train, test = write_hepmass(tmp_path / place, gz)
    monkeypatch.setattr(uci, "HEPMASS_ROWS", (500, 200))
    monkeypatch.setattr(uci, "HEPMASS_TEST", 120)
    table = uci.hepmass(tmp_path)
    signal = np.concatenate([train[:500], test[:200]])
    signal = signal[signal[:, 0] == 1]
    np.testing.assert_array_equal(table.values, np.delete(signal, uci.HEPMASS_DISCRETE, axis=1))
    assert table.columns[:6] == ("f0", "f1", "f2", "f3", "f4", "f6") and table.columns[-1] == "f26"
    assert len(load_table("hepmass", tmp_path, protocol="paper", seed=1).test) == 120
    assert len(load_table("hepmass", tmp_path).test) == 35


def test_hepmass_prepared_and_wrong(tmp_path, monkeypatch):
    train, test = write_hepmass(tmp_path / "a", True)
    np.savez(tmp_path / "hepmass.npz", data=np.concatenate([train, test]))
    assert uci.hepmass(tmp_path).values.shape == (450, 22)
    with pytest.raises(InputError, match="450 rows are too few \\(0 to train on"):
        load_table("hepmass", tmp_path, protocol="paper")
    np.savez(tmp_path / "hepmass.npz", data=train[:, :9])
    with pytest.raises(InputError, match="9 columns, HepMass has a label and 27 features"):
        load_table("hepmass", tmp_path)
    (tmp_path / "a" / "1000_test.csv.gz").unlink()
    with pytest.raises(InputError, match="1000_test.csv.gz: missing beside 1000_train.csv.gz"):
        load_table("hepmass", tmp_path / "a")
    whole = (tmp_path / "a" / "1000_train.csv.gz").read_bytes()
    (tmp_path / "a" / "1000_test.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="1000_test.csv.gz: cannot be read"):
        load_table("hepmass", tmp_path / "a")


def test_miniboone(tmp_path):
    signal, background = RNG.normal(size=(60, 50)), RNG.normal(size=(40, 50)) + 100
    signal[:, 7] = np.maximum(signal[:, 7], 0)  # a floor many values stand on
    signal[:, 9] = np.minimum(signal[:, 9], 1)  # a ceiling does not drop a column, as published
    signal[:5, 11] = -9.0  # its least value five times is not too often
    signal[[3, 50]] = -999.0
    file = tmp_path / "uci" / "MiniBooNE_PID.txt"
    file.parent.mkdir()
    np.savetxt(file, np.concatenate([signal, background]), "%14.6e", header="    60    40", comments="")
    table = uci.miniboone(tmp_path)
    assert table.columns == tuple(f"c{i}" for i in range(50) if i != 7)
    expected = np.delete(np.delete(signal, [3, 50], axis=0), 7, axis=1)
    np.testing.assert_allclose(table.values, expected, rtol=1e-6)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:50]))
    with pytest.raises(InputError, match="49 signal rows, line 1 says 60"):
        load_table("miniboone", tmp_path)
    file.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match="line 1: .* must be the numbers of signal and background events"):
        load_table("miniboone", tmp_path)
    file.unlink()
    np.save(file.with_name("miniboone.npy"), expected)
    np.testing.assert_array_equal(uci.miniboone(tmp_path).values, expected)
    np.save(file.with_name("miniboone.npy"), np.array([None]), allow_pickle=True)
    with pytest.raises(InputError, match="miniboone.npy: cannot be read"):
        load_table("miniboone", tmp_path)


@pytest.mark.parametrize("name", ["redwine", "whitewine", "parkinsons", "hepmass", "miniboone"])
def test_missing_files_are_downloaded_with_a_checksum(name, offline, tmp_path):
    with pytest.raises(InputError, match="archive.ics.uci.edu.* there; not found, and no download") as error:
        load_table(name, tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    ((_, known_hash, _, folder), _) = offline[0]
    assert known_hash.partition(":")[0] in ("sha256", "md5") and folder == tmp_path / "new" / "uci"


def test_a_download_is_read(originals, tmp_path, monkeypatch):
    def retrieve(url, known_hash, fname, path, progressbar):
        path.mkdir(parents=True)
        if fname == "data.tar.gz":
            np.save(tmp_path / "data.npy", RNG.normal(size=(100, 43)))
            with tarfile.open(path / fname, "w:gz") as tar:
                for member in ("data/other/data.npy", "data/miniboone/data.npy", "../../data.npy"):
                    tar.add(tmp_path / "data.npy", member)
        else:
            (path / fname).write_bytes((originals / "uci" / fname).read_bytes())
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    ours = load_table("redwine", tmp_path / "a", seed=4)
    assert np.array_equal(ours.test, load_table("redwine", originals, seed=4).test)
    assert load_table("miniboone", tmp_path / "b").shape == (43,)
    monkeypatch.undo()
    assert load_table("miniboone", tmp_path / "b").shape == (43,)  # found the next time
    unpacked = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.npy"))
    assert unpacked == [Path("uci/data/miniboone/data.npy")]  # and nothing else came out of the archive
