"""Training from Python, of modules that know nothing of gebm, on data of every kind."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import gebm
from gebm.checkpoints import checkpoints
from gebm.data.given import as_items, levels_of
from gebm.errors import InputError
from gebm.training.fit import Training, fit, refine
from gebm.training.guard import DivergenceError

ROOT = Path(__file__).parents[2]
SHORT = dict(steps=6, refine_steps=4, batch_size=16, energy_steps=2, first_energy_steps=3, log_every=2, progress=False)


class Base(nn.Module):
    """Images (N, 1, 6, 6) in [-1, 1], with a norm whose statistics a run must keep."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 36), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).unflatten(1, (1, 6, 6))


class Energy(nn.Module):
    """With dropout, which draws from torch's own random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


def pair(seed: int = 0) -> gebm.GEBM:
    torch.manual_seed(seed)
    return gebm.GEBM(Base(), Energy(), gebm.GaussianPrior(3))


def images(n: int = 60, seed: int = 1) -> Tensor:
    return torch.randint(256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def state(model: gebm.GEBM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    model = pair()
    history = fit(model, images(), **SHORT)
    return state(model), history.rows


def timeless(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def test_it_trains_in_place_and_says_how_it_went(whole):
    model = pair()
    before = state(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    history = fit(model, images(), **SHORT)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers are the caller's
    after = state(model)
    assert equal(after, whole[0]) and not equal(after, before)
    assert not model.training and all(p.requires_grad for p in [*model.base.parameters(), *model.energy.parameters()])
    assert [row["stage"] for row in history] == ["joint"] * 3 + ["refine"] * 2
    assert history["kale"] == [row["kale"] for row in history] and len(history) == 5 and history.out is None
    assert "refine 4, kale" in repr(history) and history.to_dict()["g_step"] == [2, 4, 6, 6, 6]
    assert history.plot("kale", "base_loss").axes[0].get_xlabel() == "energy steps"
    with pytest.raises(InputError, match="holds no 'kales'; did you mean kale"):
        history["kales"]


class Pairs(Dataset):
    """Samples with labels."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return images()[i], i % 3


class Dicts(Pairs):
    def __getitem__(self, i: int) -> dict[str, object]:
        return {"image": images()[i].numpy(), "label": 3}


@pytest.mark.parametrize(
    "data",
    [
        images().numpy(),
        images()[:, 0].numpy(),
        images().permute(0, 2, 3, 1).contiguous(),
        gebm.data.from_uint8(images()),
        gebm.data.from_uint8(images()).double().numpy(),
        TensorDataset(images(), torch.arange(60)),
        Pairs(),
        Dicts(),
        DataLoader(Pairs(), batch_size=7, shuffle=True),
    ],
    ids=["array", "grey", "channels last", "float", "float64", "TensorDataset", "pairs", "dicts", "loader"],
)
def test_the_same_samples_train_the_same_pair_whatever_holds_them(data, whole):
    model = pair()
    fit(model, data, **SHORT)
    assert equal(state(model), whole[0])


def test_paths_and_names_are_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("some.npz", train=images().numpy(), test=images(10).numpy())
    assert np.array_equal(as_items("some.npz"), images().numpy()) and as_items("digits").shape == (1397, 1, 8, 8)
    assert as_items(gebm.load_images("digits")).shape == (1397, 1, 8, 8)
    Path("t.csv").write_text("a,b\n" + "".join(f"{i},{i * i % 17}\n" for i in range(60)))
    assert as_items(Path("t.csv")).shape[1] == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter(images())


class Ragged(Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> Tensor:
        return torch.zeros(1, 6, 6 + i % 2)


@pytest.mark.parametrize(
    "data, says",
    [
        (Stream(), "an IterableDataset has no numbered items"),
        (DataLoader(Stream()), "an IterableDataset has no numbered items"),
        (DataLoader(Pairs(), sampler=WeightedRandomSampler(torch.rand(60), 60)), "draws by a WeightedRandomSampler"),
        (DataLoader(Pairs(), collate_fn=lambda items: items), "has a collate_fn of its own"),
        (Ragged(), "and all must have one"),
        ([images()[0], images()[1]], "a list; give one tensor"),
        (images().int(), "of torch.int32; uint8 images or floats are needed"),
        (images()[:0], "is empty"),
        (torch.rand(60), r"of shape \(60,\); samples \(N, ...\) are needed"),
        (torch.full((60, 1, 6, 6), torch.nan), "60 of 60 samples hold NaN or infinite values"),
        (images(60)[:, :, :5], r"the base makes samples of shape \(1, 6, 6\), the data have \(1, 5, 6\)"),
        ("nothing/there.npz", "nothing/there.npz: no such folder, .npz or .csv file"),
        ("digit", "choose .*did you mean digits"),
        (None, "data: a NoneType; give a tensor, an array, a Dataset"),
        (TensorDataset(torch.zeros(0, 1, 6, 6)), "the dataset is empty"),
    ],
)
def test_other_data_are_refused_in_one_line_and_nothing_is_written_or_moved(tmp_path, data, says):
    model = pair()
    before = state(model)
    with pytest.raises(InputError, match=says) as error:
        fit(model, data, out=tmp_path / "run", **SHORT)
    assert "\n" not in str(error.value) and equal(state(model), before)
    assert not (tmp_path / "run" / "checkpoints").exists()


class Column(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    "model, settings, says",
    [
        (lambda: gebm.GEBM(Base(), Column(), gebm.GaussianPrior(3)), {}, "the energy gives .*squeeze"),
        (lambda: gebm.GEBM(Base(), Energy(), gebm.GaussianPrior(4)), {}, "the base fails on inputs"),
        (lambda: gebm.GEBM(Base().double(), Energy(), gebm.GaussianPrior(3)), {}, "float64|dtype"),
        (lambda: gebm.GEBM(Base(), lambda x: x.flatten(1).sum(1), gebm.GaussianPrior(3)), {}, "no parameters to train"),
        (lambda: gebm.GEBM(Base().requires_grad_(False), Energy(), gebm.GaussianPrior(3)), {}, "use gebm.refine"),
        (pair, {"step": 3}, "fit: step is no setting; did you mean steps"),
        (pair, {"criterion": "kales"}, "criterion must be one of kale, .*did you mean kale"),
        (pair, {"penalty": "gradients"}, "penalty must be one of .*did you mean gradient"),
        (pair, {"steps": -1}, "steps must be a whole number of 0 or more, not -1"),
        (pair, {"steps": 0, "refine_steps": 0}, "there is nothing to train"),
        (pair, {"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        (pair, {"betas": (0.5, 1.0)}, "betas and ema must be below 1"),
        (pair, {"patience": 3}, "give valid="),
        (pair, {"training": {"steps": 3}}, "must be a gebm.Training, not a dict"),
        (pair, {"betas": 0.9}, "betas: must be two numbers"),
        (pair, {"callbacks": [5]}, r"callbacks: must be pairs \(steps, function\), not 5"),
        (pair, {"callbacks": [(0, print)]}, "callbacks: steps must be a whole number of 1 or more"),
        (pair, {"valid": images()[:, :, :4]}, r"valid: samples of shape \(1, 4, 6\), the data of \(1, 6, 6\)"),
        (pair, {"valid": images(), "refine_steps": 0}, "valid: is looked at in the refinement"),
        (pair, {"device": "gpu"}, "device: 'gpu' cannot be used"),
        (Base, {}, r"model: must be a gebm.GEBM\(base, energy, prior\), not a Base"),
    ],
)
def test_other_pairs_and_settings_are_refused(tmp_path, model, settings, says):
    with pytest.raises(InputError, match=says):
        fit(model(), images(), out=tmp_path / "run", **{**SHORT, **settings})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_refine_leaves_the_base_as_it_is():
    model = pair()
    base, energy = state(model.base), state(model.energy)
    model.base.requires_grad_(False)
    refine(model, images(), steps=5, batch_size=16, progress=False)
    assert equal(state(model.base), base) and not equal(state(model.energy), energy)
    assert not any(p.requires_grad for p in model.base.parameters())
    with pytest.raises(InputError, match="refine: ema is of fit's joint stage"):
        refine(model, images(), ema=0.9)
    with pytest.raises(InputError, match="refine: its number of energy steps is steps="):
        refine(model, images(), refine_steps=5)
    with pytest.raises(InputError, match="steps must be a whole number of 1 or more, not -1"):
        refine(model, images(), steps=-1)


def test_a_refinement_goes_on_with_its_own_base_alone(tmp_path):
    options = dict(steps=4, batch_size=16, progress=False, out=tmp_path / "run")
    refine(pair(), images(), **options)
    refine(pair(), images(), **options)  # it is finished
    model = pair(seed=7)
    base = state(model.base)
    with pytest.raises(InputError, match="is of a base with other weights"):
        refine(model, images(), **options)
    assert equal(state(model.base), base)
    with pytest.raises(InputError, match="is of gebm.refine; name another folder"):
        fit(pair(), images(), out=tmp_path / "run", **SHORT)
    other = gebm.GEBM(Base(), Energy(), gebm.UniformPrior(3))
    fit(pair(), images(), out=tmp_path / "fit", **SHORT)
    with pytest.raises(InputError, match=r"is of a prior GaussianPrior\(3\)"):
        fit(other, images(), out=tmp_path / "fit", **SHORT)


def test_parts_frozen_in_evaluation_mode_stay_as_they_are():
    model = pair()
    model.energy = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Flatten(0))
    for part in (model.energy[1], model.energy[2]):
        part.eval().requires_grad_(False)
    before, last = state(model.energy[2]), state(model.energy[3])
    refine(model, images(), steps=5, batch_size=16, progress=False)
    assert equal(state(model.energy[2]), before) and not equal(state(model.energy[3]), last)
    assert all(p.grad is None for p in model.parameters())


def test_a_refinement_of_less_than_a_pass_is_kept_where_it_helps():
    plain, judged = pair(), pair()
    options = dict(steps=3, batch_size=16, learning_rate=1e-3, progress=False)
    refine(plain, images(300), **options)
    history = refine(judged, images(300), valid=images(60), **options)  # of the same data, so that it helps
    values = history["minus_kale_valid"]
    better = values[-1] == min(values)
    assert equal(state(judged.energy), state(plain.energy)) == better


def test_the_average_stays_where_there_is_no_refinement(tmp_path):
    options = {**SHORT, "refine_steps": 0, "ema": 0.9, "out": tmp_path / "run"}
    model = pair()
    fit(model, images(), **options)
    loaded = gebm.GEBM.load(tmp_path / "run", base=Base, energy=Energy)
    assert equal(state(model.base), state(loaded.base))
    again = pair(seed=5)
    fit(again, images(), **options)
    assert equal(state(again.base), state(loaded.base))


def test_numbers_of_numpy_are_numbers(tmp_path):
    model = pair()
    settings = {**SHORT, "steps": np.int64(2), "learning_rate": np.float64(1e-4), "betas": [0.5, np.float32(0.9)]}
    look = lambda trainer: {"a": torch.tensor(2.0), "b": np.float32(3)}  # noqa: E731
    history = fit(model, images(), out=tmp_path / "run", callbacks=[(1, look)], **settings)
    assert history["a"][0] == 2.0 and history["b"][0] == 3.0


def test_the_units_of_a_table_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal((50, 5), (3, 1), size=(200, 2))
    Path("t.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
    flow = gebm.GEBM.build("nvp", "mlp", shape=(2,), latent_dim=2, blocks=1)
    fit(flow, "t.csv", **SHORT)
    assert flow.units.columns == ("a", "b") or list(flow.units.columns) == ["a", "b"]
    assert flow.log_density(rows[:3]).isfinite().all()


def test_a_base_without_parameters_is_refined(tmp_path):
    """A generator made elsewhere, its numbers in buffers or in no module's keeping."""
    base = nn.Sequential(nn.Unflatten(1, (1, 1, 3)), nn.UpsamplingNearest2d(size=(6, 6)), nn.Tanh())
    model = gebm.GEBM(base, Energy(), gebm.GaussianPrior(3))
    energy = state(model.energy)
    refine(model, images(), steps=3, batch_size=16, progress=False, out=tmp_path)
    assert not equal(state(model.energy), energy)


class Stop(Exception):
    pass


@pytest.mark.parametrize("when", [1, 4, 7])
def test_what_was_stopped_goes_on_to_the_same_bits(tmp_path, when, whole):
    looks = iter(range(100))

    def stop(trainer: object) -> None:
        if next(looks) == when:
            raise Stop

    options = {**SHORT, "out": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(Stop):
        fit(pair(), images(), callbacks=[(1, stop)], **options)
    model = pair(seed=9)  # the weights that it was begun with are on record
    history = fit(model, images(), **options)
    assert equal(state(model), whole[0]) and timeless(history.rows) == timeless(whole[1])
    rows = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert rows == history.rows and (tmp_path / "run" / "grids" / "joint-00000006.png").is_file()
    files = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    model = pair(seed=8)
    assert len(fit(model, images(), **options)) == 5 and equal(state(model), whole[0])  # it is finished
    assert files == {p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()}
    assert equal(state(gebm.GEBM.load(tmp_path / "run", base=Base, energy=Energy)), whole[0])


def test_a_kill_loses_nothing_but_the_steps_since_the_last_checkpoint(tmp_path, whole):
    script = (
        "import os, signal, sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from tests.training.test_fit import SHORT, fit, images, pair\n"
        "count = [0]\n"
        "def die(trainer):\n"
        "    count[0] += 1\n"
        "    if count[0] == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "fit(pair(), images(), out=sys.argv[3], checkpoint_every=2, callbacks=[(1, die)], **SHORT)\n"
    )
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(ROOT / "tests"), str(run)],
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    model = pair(seed=9)
    fit(model, images(), out=run, checkpoint_every=2, **SHORT)
    assert equal(state(model), whole[0])
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def test_a_signal_saves_first(tmp_path, whole, capsys):
    def interrupt(trainer: object) -> None:
        if trainer.counters.g_step == 3:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(pair(), images(), out=run, callbacks=[(1, interrupt)], **SHORT)
    assert checkpoints(run)[-1].name == "joint-00000003"
    model = pair(seed=9)
    fit(model, images(), out=run, **SHORT)
    assert equal(state(model), whole[0])


def test_it_works_in_a_thread(whole):
    model = pair()
    thread = threading.Thread(target=lambda: fit(model, images(), **SHORT))
    thread.start()
    thread.join()
    assert model.training is False and not equal(state(model), state(pair()))


def test_another_folder_is_asked_for_where_this_one_holds_something_else(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty, and holds no run of gebm.fit"):
        fit(pair(), images(), out=tmp_path, **SHORT)
    run = tmp_path / "run"
    fit(pair(), images(), out=run, **SHORT)
    (tmp_path / "file").write_text("mine")
    for bad in (tmp_path / "file", tmp_path / "file" / "run", "", 5):
        with pytest.raises(InputError, match="out: "):
            fit(pair(), images(), out=bad, **SHORT)
    with pytest.raises(InputError, match="is of other data"):
        fit(pair(), images(seed=2), out=run, **SHORT)
    with pytest.raises(InputError, match="was begun with seed 0, not 1"):
        fit(pair(), images(), out=run, **SHORT, seed=1)
    other = gebm.GEBM(nn.Sequential(nn.Linear(3, 36), nn.Unflatten(1, (1, 6, 6))), Energy(), gebm.GaussianPrior(3))
    with pytest.raises(InputError, match="the given base"):
        fit(other, images(), out=run, **SHORT)


def test_callbacks_and_held_out_data(tmp_path):
    model, seen = pair(), []

    def look(trainer: object) -> dict[str, float]:
        seen.append(trainer.counters.stage_step)  # type: ignore[attr-defined]
        return {"norm": 2.0}

    history = fit(
        model, images(), valid=images(40, seed=3), patience=2, callbacks=[(3, look)],
        **{**SHORT, "refine_steps": 60, "learning_rate": 0.05},
    )  # fmt: skip
    assert seen[:2] == [3, 6] and history["norm"][0] == 2.0
    values = history["minus_kale_valid"]
    assert values and min(values) == history["minus_kale_valid_best"][-1]
    assert history.rows[-1]["refine_step"] < 60  # an energy that fits noise is stopped


def test_an_average_of_the_base_is_what_stays():
    model, plain = pair(), pair()
    fit(model, images(), ema=0.9, **SHORT)
    fit(plain, images(), **SHORT)
    assert not equal(state(model.base), state(plain.base))


def test_one_that_diverges_says_what_to_do(tmp_path):
    model = pair()
    with pytest.raises(DivergenceError, match="lower the learning rates, or raise the weight of the penalty"):
        fit(model, images(), out=tmp_path, max_rollbacks=1, **{**SHORT, "learning_rate": 1e30})


def test_the_split_that_is_meant_is_taken():
    digits = gebm.load_images("digits")
    assert len(as_items("digits")) == 1397 and len(as_items("digits", split="test")) == 400
    assert np.array_equal(as_items(digits, "valid", "valid"), digits.test)


def test_levels():
    assert levels_of(torch.rand(5, 3, 4, 4)) == (0.0, 1.0) and levels_of(images()) == (-1.0, 1.0)
    assert levels_of(torch.rand(5, 3, 4, 4) * 2 - 1) == (-1.0, 1.0) and levels_of(torch.randn(500, 3, 4, 4)) is None
    assert levels_of(torch.rand(5, 2, 4, 4)) is None and levels_of(torch.rand(5, 4)) is None
    assert levels_of(as_items(Pairs())) == (-1.0, 1.0)


def test_a_base_that_ends_in_a_sigmoid_is_spoken_of(caplog):
    base = nn.Sequential(nn.Linear(3, 36), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6)))
    for data in (images(), images().numpy()):
        caplog.clear()
        fit(gebm.GEBM(base, Energy(), gebm.GaussianPrior(3)), data, **SHORT)
        assert "if it ends with a sigmoid, give the data as floats in [0, 1]" in caplog.text
    caplog.clear()
    fit(pair(), images().float() / 255, **SHORT)
    assert "the data are floats in [0, 1], and the base makes values from -" in caplog.text
    caplog.clear()
    fit(pair(), images(), **SHORT)
    assert "sigmoid" not in caplog.text and "range" not in caplog.text


def test_settings_are_a_dataclass():
    training = Training(steps=3, refine_steps=0)
    model = pair()
    history = fit(model, images(), training, batch_size=16, log_every=1, progress=False)
    assert [row["g_step"] for row in history] == [1, 2, 3]
