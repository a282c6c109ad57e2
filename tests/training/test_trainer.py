"""Which step moves what, and in which mode the base is."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from gebm.errors import InputError
from gebm.graphs import Graphed
from gebm.objectives import log_mean_exp
from gebm.training.negatives import Fresh, Pool, Replay


def snapshot(module: nn.Module) -> dict:
    return {k: v.clone() for k, v in module.state_dict().items()}


def changed(module: nn.Module, before: dict) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def parameters(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def norm_buffers(module: nn.Module) -> set[str]:
    return {k for k in module.state_dict() if k.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_an_energy_step_moves_the_energy_and_c_and_only_the_batch_statistics_of_the_base(make_trainer):
    trainer = make_trainer()
    base, energy, c = snapshot(trainer.model.base), snapshot(trainer.model.energy), trainer.model.log_partition.item()
    stats = trainer.energy_step()
    assert parameters(trainer.model.energy) <= changed(trainer.model.energy, energy)
    assert trainer.model.log_partition.item() != c
    assert changed(trainer.model.base, base) == norm_buffers(trainer.model.base) != set()
    assert {"energy_loss", "kale", "kale_dv", "c", "c_batch", "penalty"} <= stats.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in stats.values())


@pytest.mark.parametrize("energy", ["dcgan", "sngan", "resnet-sn"])
def test_base_steps_against_a_frozen_energy_leave_it_whole_and_c_follows(make_trainer, energy):
    trainer = make_trainer(energy=energy)
    trainer.freeze_energy()
    before, c = snapshot(trainer.model.energy), trainer.model.log_partition.item()
    loss = trainer.base_step()["base_loss"].item()
    assert not changed(trainer.model.energy, before)  # spectral norm's vectors too
    assert (trainer.model.log_partition.item() - c) * (-loss - c) > 0


@pytest.mark.parametrize("criterion", ["kale", "wasserstein"])
def test_c_is_that_of_the_last_batches_in_base_steps_against_a_frozen_energy(make_trainer, criterion):
    trainer = make_trainer(criterion=criterion)
    trainer.freeze_energy()
    trainer.base_optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        trainer.model.log_partition.fill_(7.0)
    for _ in range(30):
        trainer.base_step()
    with torch.no_grad():
        e = torch.stack([trainer.model.energy(trainer.model.generate(8, trainer.generator)) for _ in range(200)])
    c_batch = torch.stack([log_mean_exp(-batch) for batch in e])
    assert abs(trainer.model.log_partition - log_mean_exp(-e.flatten())) < c_batch.std()  # that of one batch


def test_a_known_partition_draws_no_samples_and_the_base_of_ml_sees_data(make_trainer):
    trainer = make_trainer(criterion="ml", penalty="none")
    trainer.model.energy.known_log_partition = torch.tensor(-1.5)
    before = trainer.generator.get_state()
    stats = trainer.energy_step()
    assert torch.equal(trainer.generator.get_state(), before)
    assert stats["c_batch"].item() == -1.5
    seen, first = [], next(trainer.model.base.parameters())
    trainer.model.base.log_prob = lambda x: seen.append(x) or first.sum() - x.flatten(1).square().sum(1)
    images, position = trainer.counters.images, trainer.batches.position
    trainer.base_step()
    assert seen[0].shape == (8, 1, 8, 8)
    assert trainer.batches.position == position + 8
    assert trainer.counters.images == images  # those of the energy


@pytest.mark.parametrize("criterion, negatives", [("cd", Fresh), ("cd", lambda: Pool(8)), ("ml", Replay)])
def test_negatives_of_the_wrong_distribution_are_refused(make_trainer, criterion, negatives):
    with pytest.raises(InputError, match="needs samples of the (base|model): not from negatives"):
        make_trainer(criterion=criterion, negatives=negatives)


def test_a_pool_lasts_until_the_base_moves(make_trainer):
    trainer = make_trainer(criterion="donsker", negatives=lambda: Pool(30))
    pools = []
    refine = partial(trainer.start, "refine")
    e, b = trainer.energy_step, trainer.base_step
    for step in (e, e, b, e, refine, e):
        step()
        pools.append(trainer.negatives.samples)
    assert pools[0] is pools[1] and pools[2] is pools[4] is None
    assert not torch.equal(pools[3], pools[1]) and not torch.equal(pools[5], pools[3])


def test_a_base_step_moves_the_base_only(make_trainer):
    trainer = make_trainer()
    base, energy, c = snapshot(trainer.model.base), snapshot(trainer.model.energy), trainer.model.log_partition.item()
    trainer.base_step()
    # A bias right before a batch norm has a gradient of rounding errors alone, which moves it under Adam all the same.
    assert changed(trainer.model.base, base) == set(base)
    assert not changed(trainer.model.energy, energy) & parameters(trainer.model.energy)
    assert trainer.model.log_partition.item() == c
    assert all(p.requires_grad for p in trainer.objective.energy.parameters())


def test_refinement_leaves_the_base_alone_and_uses_it_as_sampling_will(make_trainer):
    trainer = make_trainer()
    for _ in range(3):
        trainer.energy_step()
        trainer.base_step()
    trainer.start("refine")
    base, energy, c = snapshot(trainer.model.base), snapshot(trainer.model.energy), trainer.model.log_partition.item()
    seen = []
    trainer.objective.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    generator = torch.Generator()
    generator.set_state(trainer.generator.get_state())
    trainer.energy_step()
    assert not changed(trainer.model.base, base)
    assert parameters(trainer.model.energy) <= changed(trainer.model.energy, energy)
    assert trainer.model.log_partition.item() != c
    expected = copy.deepcopy(trainer.model).eval().generate(8, generator)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)


def test_an_energy_step_sees_noise_factor_base_samples_for_each_image(make_trainer):
    trainer = make_trainer(noise_factor=3)
    shapes = []
    trainer.objective.register_forward_pre_hook(lambda module, inputs: shapes.append([len(x) for x in inputs[:2]]))
    trainer.energy_step()
    assert shapes == [[8, 24]]
    assert trainer.counters.images == 8


def test_the_moving_average_follows_the_base(make_trainer):
    trainer = make_trainer(ema=0.3)
    expected = None
    for step, decay in enumerate((0.0, 2 / 11, 3 / 12, 0.3, 0.3)):  # (1 + n) / (10 + n), no more than 0.3
        trainer.energy_step()
        trainer.base_step()
        now = [p.detach().clone() for p in trainer.model.base.parameters()]
        expected = now if step == 0 else [decay * old + (1 - decay) * new for old, new in zip(expected, now)]
    for average, value in zip(trainer.sampled_base.parameters(), expected):
        torch.testing.assert_close(average, value)
    raw = trainer.model.base.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(trainer.sampled_base.parameters(), raw))
    average = snapshot(trainer.sampled_base)
    trainer.start("refine")
    assert trainer.sampled_base is trainer.model.base
    assert not changed(trainer.model.base, average)


@pytest.mark.parametrize("step", ["energy_step", "base_step"])
def test_clipping_bounds_the_step(make_trainer, step):
    moved = {}
    for clip in (0.0, 1e-3):
        trainer = make_trainer(sgd=0.0, lr=1.0, grad_clip=clip)
        moving = [*trainer.model.base.parameters(), *trainer.model.energy.parameters()]
        before = torch.nn.utils.parameters_to_vector(moving).detach()
        getattr(trainer, step)()
        moved[clip] = float((torch.nn.utils.parameters_to_vector(moving).detach() - before).norm())
    assert moved[0.0] > 2e-3
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-2)


def test_initialize_log_partition_is_the_monte_carlo_value(make_trainer):
    trainer, twin = make_trainer(noise_factor=2), make_trainer(noise_factor=2)
    trainer.initialize_log_partition(batches=5)
    with torch.no_grad():
        energies = torch.cat([twin.model.energy(twin.model.generate(16, twin.generator)) for _ in range(5)])
    assert len(energies) == 5 * 2 * 8
    torch.testing.assert_close(trainer.model.log_partition.detach(), log_mean_exp(-energies))
    stats = trainer.energy_step()
    assert abs(stats["c"] - log_mean_exp(-energies)) < 0.2 * abs(stats["c_batch"] - log_mean_exp(-energies)) + 0.05


def test_log_partition_of_a_new_energy_takes_one_batch(make_trainer, monkeypatch):
    """New energies of tables are a constant, and their bases slow to sample."""
    trainer, drawn = make_trainer(), []
    make = trainer._generate_batch
    monkeypatch.setattr(trainer, "_generate_batch", lambda: drawn.append(1) or make())
    monkeypatch.setattr(trainer.model.energy, "forward", lambda x: torch.full((len(x),), 0.7))
    trainer.initialize_log_partition()
    assert trainer.model.log_partition.item() == pytest.approx(-0.7) and len(drawn) == 1


def test_frozen_parts_of_a_users_energy_stay_frozen(make_trainer):
    trainer = make_trainer()
    first = next(trainer.model.energy.parameters())
    first.requires_grad_(False)
    trainer = type(trainer)(
        trainer.model, trainer.batches, trainer.objective, trainer.energy_optimizer, trainer.base_optimizer
    )
    before = first.clone()
    for _ in range(2):
        trainer.energy_step()
        trainer.base_step()
    assert not first.requires_grad
    assert torch.equal(first, before)


def test_float64_throughout(make_trainer):
    trainer = make_trainer(dtype=torch.float64, penalty="gradient_l2")
    stats = trainer.energy_step() | trainer.base_step()
    assert {value.dtype for value in stats.values()} == {torch.float64}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float64}


@pytest.fixture
def replayed_by_calling(monkeypatch):
    """Graphs without a GPU: a replay calls the function again on the argument it was captured with; counts captures."""
    captures = []

    def capture(self, given):
        captures.append(self.function.__name__)
        results = {}
        return lambda: results.update(self.function(given)), results, given

    monkeypatch.setattr(Graphed, "_capture", capture)
    return captures


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "grad_clip": 0.1, "energy": "sngan"}, {"sgd": 0.9}])
def test_replayed_steps_are_the_steps(make_trainer, state, replayed_by_calling, options):
    """Batches, random numbers, learning rates and changes of stage reach steps that are replayed."""
    trainers = make_trainer(lr=2**-9, **options), make_trainer(lr=2**-9, graphs=True, **options)
    seen = []
    for trainer in trainers:
        stats = [copy.deepcopy(trainer.energy_step()) for _ in range(6)]
        stats += [trainer.base_step() for _ in range(6)]
        trainer.scale_lr(0.5)
        stats += [copy.deepcopy(trainer.energy_step()), trainer.base_step()]
        trainer.start("refine")
        stats += [copy.deepcopy(trainer.energy_step()) for _ in range(5)]
        seen.append(stats)
    state.assert_same(*map(state.of, trainers))
    for plain, replayed in zip(*seen):
        assert plain.keys() == replayed.keys()
        assert all(torch.equal(plain[name], replayed[name]) for name in plain)
    assert replayed_by_calling == ["_energy_update", "_base_update", "_energy_update"]


@pytest.mark.parametrize("options", [{"negatives": partial(Pool, 50)}, {"criterion": "ml"}])
def test_what_cannot_be_replayed_is_refused(make_trainer, options):
    with pytest.raises(InputError, match="graphs: are of one process, negatives Fresh"):
        make_trainer(graphs=True, **options)


def test_a_state_that_is_loaded_is_recorded_anew(make_trainer, state, replayed_by_calling):
    """Its moments lie elsewhere in memory than those of the graph before."""
    make_trainer = partial(make_trainer, lr=2**-9)  # a number of float32, as learning rates of graphs are
    saved, trainer = make_trainer(seed=1), make_trainer(graphs=True)
    saved.energy_step()
    for _ in range(5):
        trainer.energy_step()
    twin = make_trainer()
    for loaded in (trainer, twin):
        loaded.model.load_state_dict(saved.model.state_dict())
        loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
        for _ in range(5):
            loaded.energy_step()
    state.assert_same(state.of(trainer), state.of(twin))
    assert replayed_by_calling == ["_energy_update"] * 2
