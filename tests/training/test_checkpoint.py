"""A checkpoint holds everything, is whole or absent, and runs no code."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from gebm.checkpoints import checkpoints, newest_checkpoint
from gebm.commands.build import build_trainer
from gebm.config import Config
from gebm.data import ImageData
from gebm.errors import InputError
from gebm.model import GEBM
from gebm.samplers import KineticLangevin
from gebm.training.checkpoint import Measure, best_before, best_checkpoint, load_checkpoint, measure_of, save_checkpoint
from gebm.training.loop import Schedule, train
from gebm.training.negatives import Fresh, Pool, Replay
from gebm.training.trainer import Trainer


def advance(trainer, steps=2):
    for _ in range(steps):
        trainer.energy_step()
        trainer.base_step()
    trainer.energy_step()
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9},
        {"sgd": 0.9},
        {"sgd": 0.0},
        {"dtype": torch.float64, "penalty": "gradient_l2"},
        {"dropout": 0.3},
        {"criterion": "wasserstein", "negatives": lambda: Pool(20, 0.6)},
        {"criterion": "cd", "negatives": lambda: Replay(KineticLangevin(0.3, friction=1.0), 2, size=20)},
    ],
    ids=["adam", "ema", "momentum", "plain sgd", "float64", "dropout", "pool", "replay"],
)
@pytest.mark.parametrize("refine", [False, True])
def test_round_trip_and_the_next_steps(make_trainer, state, run, options, refine):
    trainer = advance(make_trainer(**options))
    if refine:
        trainer.start("refine")
        trainer.energy_step()
    path = save_checkpoint(run, trainer, "")
    other = make_trainer(seed=5, **options)
    load_checkpoint(path, other)
    state.assert_same(state.of(other), state.of(trainer))
    trainer.energy_step() if refine else advance(trainer)
    load_checkpoint(path, other)  # again: torch's own random state is common to both
    other.energy_step() if refine else advance(other)
    state.assert_same(state.of(other), state.of(trainer))


def test_a_checkpoint_from_before_there_were_negatives(make_trainer, run):
    trainer = advance(make_trainer())
    path = save_checkpoint(run, trainer, "")
    state = json.loads((path / "training.json").read_text())
    state["dict"] = [[key, value] for key, value in state["dict"] if key != "negatives"]
    (path / "training.json").write_text(json.dumps(state))
    (path / "manifest.json").unlink()  # there was none either
    for negatives in (Fresh, lambda: Pool(20)):
        other = make_trainer(seed=5, negatives=negatives)
        load_checkpoint(path, other)
        assert other.counters == trainer.counters
        advance(other)


def test_the_model_in_a_checkpoint_is_the_one_to_sample(make_trainer, run):
    trainer = advance(make_trainer(ema=0.9))
    path = save_checkpoint(run, trainer, "seed: 7\n")
    assert sorted(p.name for p in path.iterdir()) == [
        "base.safetensors", "config.yaml", "energy.safetensors", "manifest.json", "training.json",
        "training.safetensors",
    ]  # fmt: skip
    assert (path / "config.yaml").read_text() == "seed: 7\n"
    model = GEBM.load(path)
    for a, b in zip(model.base.parameters(), trainer.sampled_base.parameters()):
        assert torch.equal(a, b)
    assert model.log_partition.item() == trainer.model.log_partition.item() != 0


def test_the_newest_two_of_each_stage_are_kept_in_order(make_trainer, run):
    trainer = make_trainer()
    for g_step in (8, 9, 10, 123_456_789):
        trainer.counters.g_step = g_step
        save_checkpoint(run, trainer, "")
    trainer.counters.stage = "refine"
    for refine_step in (1, 2, 3):
        trainer.counters.refine_step = refine_step
        save_checkpoint(run, trainer, "")
    names = [p.name for p in checkpoints(run)]
    assert names == ["joint-00000010", "joint-123456789", "refine-00000002", "refine-00000003"]


def test_strangers_are_neither_checkpoints_nor_deleted_and_leavings_of_a_kill_are(make_trainer, run):
    trainer = make_trainer()
    save_checkpoint(run, trainer, "")
    folder = run / "checkpoints"
    for name in ("joint-00000001", "joint-1-copy", "jazz-3", "best"):  # the first without its files
        (folder / name).mkdir()
    shutil.copytree(folder / "joint-00000000", folder / ".joint-00000001.0a1b2c3d.tmp")
    assert [p.name for p in checkpoints(run)] == ["joint-00000000"]
    trainer.counters.g_step = 2
    save_checkpoint(run, trainer, "")
    left = {p.name for p in folder.iterdir()}
    assert left == {"joint-00000000", "joint-00000001", "joint-00000002", "joint-1-copy", "jazz-3", "best"}


def test_a_save_that_fails_leaves_the_earlier_one(make_trainer, run, monkeypatch):
    trainer = make_trainer()
    path = save_checkpoint(run, trainer, "")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    trainer.energy_step()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run, trainer, "")
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["joint-00000000"]


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("the pickle's code ran",))


@pytest.mark.parametrize("name", ["training.safetensors", "training.json", "base.safetensors", "energy.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "pickle"])
def test_damaged_files_are_refused_in_one_line(make_trainer, run, name, damage):
    path = save_checkpoint(run, advance(make_trainer()), "")
    file = path / name
    content = {"empty": b"", "half": file.read_bytes()[: file.stat().st_size // 2], "pickle": pickle.dumps(Boom())}
    file.unlink() if damage == "missing" else file.write_bytes(content[damage])
    with pytest.raises(InputError) as error:
        load_checkpoint(path, make_trainer())
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "1", '{"dict": 3}', '{"dict": [["counters", 1]]}', '{"tensor": "no"}'])
def test_json_of_something_else_is_refused(make_trainer, run, content):
    path = save_checkpoint(run, make_trainer(), "")
    (path / "training.json").write_text(content)
    (path / "manifest.json").unlink()
    with pytest.raises(InputError, match="cannot resume|not a readable JSON"):
        load_checkpoint(path, make_trainer())


def test_another_optimizer_is_refused(make_trainer, run):
    path = save_checkpoint(run, advance(make_trainer()), "")
    with pytest.raises(InputError, match="another --optimizer"):
        load_checkpoint(path, make_trainer(sgd=0.9))


def test_another_architecture_is_refused(make_trainer, run):
    path = save_checkpoint(run, make_trainer(), "")
    with pytest.raises(InputError, match="energy dcgan, not sngan"):
        load_checkpoint(path, make_trainer(energy="sngan"))


def test_learning_rates_are_those_configured_now(make_trainer, run):
    path = save_checkpoint(run, advance(make_trainer(lr=1e-2)), "")
    trainer = make_trainer(lr=1e-4)
    load_checkpoint(path, trainer)
    for optimizer in (trainer.energy_optimizer, trainer.base_optimizer):
        assert optimizer.param_groups[0]["lr"] == 1e-4
        assert len(optimizer.state) > 0


# What is kept, what is whole


def at(trainer, **counters):
    for name, value in counters.items():
        setattr(trainer.counters, name, value)
    return trainer


def names(run) -> list[str]:
    return [p.name for p in checkpoints(run)]


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_wanted(make_trainer, run, keep):
    trainer = make_trainer()
    for g_step in range(5):
        save_checkpoint(run, at(trainer, g_step=g_step), "", keep)
    assert names(run) == [f"joint-{step:08d}" for step in range(5)][-keep:]


@pytest.mark.parametrize("lowest, best", [(True, 3), (False, 2)])
def test_the_best_is_kept_beside_the_newest(make_trainer, run, lowest, best):
    trainer = make_trainer()
    for g_step, value in enumerate([5.0, 4.0, 7.0, 1.0, 2.0, None, 3.0, None]):
        at(trainer, g_step=g_step)
        measure = None if value is None else Measure("FD", value, lowest)
        earlier = best_before(run, trainer.counters, "FD")
        if measure and earlier and not measure.better(earlier[1]):
            measure = None
        save_checkpoint(run, trainer, "", 2, measure)
    assert names(run) == [f"joint-{step:08d}" for step in (best, 6, 7)]
    assert best_checkpoint(run, "joint") == checkpoints(run)[0]
    assert measure_of(checkpoints(run)[0]) == Measure("FD", 1.0 if lowest else 7.0, lowest)
    assert best_checkpoint(run, "refine") is None
    path, measure = best_before(run, trainer.counters, "FD")
    assert (path.name, measure.value) == (f"joint-{best:08d}", 1.0 if lowest else 7.0)
    assert best_before(run, at(trainer, g_step=best).counters, "FD") is None  # only earlier ones count
    assert best_before(run, trainer.counters, "KD") is None


@pytest.mark.parametrize(
    "value, lowest, far", [(12.1, True, True), (11.9, True, False), (7.9, False, True), (8.1, False, False)]
)
def test_far_worse_is_by_more_than_a_fifth(value, lowest, far):
    assert Measure("FD", value, lowest).far_worse(Measure("FD", 10.0, lowest)) is far


def test_what_lies_ahead_of_a_new_checkpoint_goes(make_trainer, run):
    trainer = make_trainer()
    for g_step in (1, 2):
        save_checkpoint(run, at(trainer, g_step=g_step), "")
    save_checkpoint(run, at(trainer, stage="refine", refine_step=3), "")
    save_checkpoint(run, at(trainer, stage="joint", g_step=1), "")  # as after a newer one that was damaged
    assert names(run) == ["joint-00000001"]


def spoil(file, how):
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:-1])
    else:  # a single bit, which the format of the file does not notice
        content[-3] ^= 1
        file.write_bytes(content)


FILES = ("training.safetensors", "training.json", "base.safetensors", "energy.safetensors", "config.yaml")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "bit"])
def test_the_last_good_one_is_taken_and_one_line_says_so(make_trainer, run, caplog, file, how):
    trainer = make_trainer()
    for g_step in range(3):
        save_checkpoint(run, at(trainer, g_step=g_step), "seed: 0\n", 3)
    bad, good = checkpoints(run)[2], checkpoints(run)[1]
    spoil(bad / file, how)
    assert newest_checkpoint(run) == good
    (line,) = caplog.messages
    assert line.startswith(f"{bad / file} is ") and line.endswith(f"taking {good} instead")
    with pytest.raises(InputError, match=f"^{bad / file} is "):
        load_checkpoint(bad, make_trainer())
    if file in ("base.safetensors", "energy.safetensors"):
        with pytest.raises(InputError, match=f"{bad / file}"):
            GEBM.load(bad)


def test_a_damaged_manifest_is_damage_and_none_is_not(make_trainer, run, caplog):
    for g_step in range(2):
        save_checkpoint(run, at(make_trainer(), g_step=g_step), "")
    older, newer = checkpoints(run)
    for content in ("", "[]", '{"files": {"base.safetensors": 3}}'):
        (newer / "manifest.json").write_text(content)
        assert newest_checkpoint(run) == older
    (newer / "manifest.json").unlink()  # somebody changed a file and said so
    with caplog.at_level("INFO", "gebm"):
        assert newest_checkpoint(run) == newer
    assert caplog.messages[-1] == f"{newer}: without its manifest.json, so its contents are not checked"


@pytest.mark.parametrize("file", ["base.safetensors", "energy.safetensors", "training.safetensors"])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_without_a_manifest_lengths_are_looked_at(make_trainer, run, file, how):
    for g_step in range(2):
        save_checkpoint(run, at(make_trainer(), g_step=g_step), "")
    older, newer = checkpoints(run)
    (newer / "manifest.json").unlink()
    spoil(newer / file, how)
    assert newest_checkpoint(run) == older


def test_where_none_is_whole(make_trainer, run):
    assert newest_checkpoint(run) is None
    for g_step in range(2):
        save_checkpoint(run, at(make_trainer(), g_step=g_step), "")
    for path in checkpoints(run):
        spoil(path / "training.safetensors", "cut")
    with pytest.raises(InputError, match="none of its checkpoints is whole") as error:
        newest_checkpoint(run)
    assert "\n" not in str(error.value)


def test_weights_in_channels_last_layout_go_on_to_the_same_bits(tmp_path):
    """From 16 pixels on the fast form lays weights out so, and fused steps do not look at strides."""
    images = np.random.RandomState(0).randint(256, size=(12, 3, 16, 16), dtype=np.uint8)
    config = Config(dataset="npz:noise", g_model="dcgan", d_model="dcgan", width=0.05, b_size=4, Z_dim=4)

    def make() -> Trainer:
        return build_trainer(config, frozenset(), ImageData("noise", images, images, ""), torch.device("cpu"))[0]

    def go_on(trainer: Trainer) -> list[torch.Tensor]:
        for step in (trainer.energy_step, trainer.base_step, trainer.energy_step):
            step()
        return [p.detach().clone() for p in trainer.model.parameters()]

    whole = make()
    go_on(whole)
    assert any(not p.is_contiguous() for p in whole.model.parameters())
    checkpoint = save_checkpoint(tmp_path, whole, "")
    resumed = make()
    load_checkpoint(checkpoint, resumed)
    assert all(map(torch.equal, go_on(whole), go_on(resumed)))


def test_what_a_kill_right_after_the_last_checkpoint_left_is_dropped_where_the_run_goes_on(make_trainer, run):
    """Between the writing of a checkpoint and the removal of the older ones."""
    trainer, schedule = make_trainer(), Schedule(base_steps=4, n_iter_d=1, n_iter_d_init=1, refine_steps=0)
    train(trainer, replace(schedule, checkpoint_every=1), run, keep=9)
    assert len(checkpoints(run)) == 4
    train(trainer, schedule, run, keep=2)
    assert [path.name for path in checkpoints(run)] == ["joint-00000003", "joint-00000004"]
