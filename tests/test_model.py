import copy
import json
import math
import pickle
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gebm.data import load_table
from gebm.errors import InputError
from gebm.latent import GaussianPrior
from gebm.model import GEBM, OF_ROWS, Architecture, read_architecture
from gebm.networks import BASES, ENERGIES
from gebm.samplers import KineticLangevin, Langevin

SMALL = Architecture("dcgan", "sngan", (1, 8, 8), latent_dim=4, prior="uniform", width=0.1, trunc=False)
ROWS = Architecture("nvp", "mlp", (3,), latent_dim=3, width=0.1, blocks=2, bn=True)


def build(architecture: Architecture = SMALL, seed: int = 0) -> GEBM:
    """A pair whose weights and running statistics are not where they start: flows start at the identity."""
    torch.manual_seed(seed)
    model = GEBM.build(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.log_partition.fill_(1.25)
        for _ in range(3):
            x = model.generate(8, torch.Generator().manual_seed(seed))
            model.energy(x)
            if model.has_density:
                model.base.log_prob(x)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_pieces_fit_together():
    model = build().eval()
    x = model.generate(5, seeded())
    torch.testing.assert_close(x, model.base(model.prior.sample(5, seeded())))
    assert x.requires_grad
    torch.testing.assert_close(model.log_ratio(x), -model.energy(x) - 1.25)
    target = model.posterior(3.0)
    u = target.start(5, seeded())
    expected = 0.5 * u.square().sum(1) + 2 * math.log(2 * math.pi) + 3 * model.energy(model.base(torch.erf(u / 2**0.5)))
    torch.testing.assert_close(target(u)[0], expected.detach())


@pytest.mark.parametrize("kernel", [None, Langevin(0.01), KineticLangevin(0.1, 1.0)])
def test_sample(kernel):
    model = build()
    before = copy.deepcopy(model)
    x = model.sample(6, kernel, steps=3, beta=2.0, generator=seeded())
    assert x.shape == (6, 1, 8, 8) and x.abs().max() <= 1 and not x.requires_grad
    assert torch.equal(x, model.sample(6, kernel, steps=3, beta=2.0, generator=seeded()))
    assert not torch.equal(x, model.sample(6, kernel, steps=3, beta=9.0, generator=seeded()))
    assert same_state(model, before) and all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_no_steps_are_the_base():
    model = build().eval()
    torch.testing.assert_close(model.sample(6, steps=0, generator=seeded()), model.generate(6, seeded()).detach())


def test_building_does_not_train():
    model = GEBM.build(SMALL)
    assert model.training
    assert all(n == 0 for k, n in model.state_dict().items() if k.endswith("num_batches_tracked"))


# Densities


def rows(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, generator=seeded(1))


def test_density():
    model, x = build(ROWS).eval(), rows()
    expected = model.base.log_prob(x) - model.energy(x)
    torch.testing.assert_close(model.log_prob(x), expected - 1.25)
    torch.testing.assert_close(model.log_prob(x, -2.0), expected + 2)


def test_density_of_a_flow_as_energy_is_the_flows():
    """Whatever the learnt c, as the log-partition is known."""
    model, x = build(replace(ROWS, energy="maf")).eval(), rows()
    torch.testing.assert_close(model.log_prob(x), model.energy.flow.log_prob(x))
    assert not torch.allclose(model.log_prob(x), model.base.log_prob(x))


def test_images_have_no_density():
    model = build()
    assert not model.has_density and build(ROWS).has_density
    with pytest.raises(InputError, match="this base has no density; take a flow"):
        model.log_prob(model.generate(2))


# Save and load


@pytest.fixture
def saved(tmp_path) -> Path:
    folder = tmp_path / "pair"
    folder.mkdir()
    build().save(folder)
    return folder


PAIRS = [(b, e) for b in BASES for e in ENERGIES if (b in OF_ROWS) == (e in OF_ROWS)]


@pytest.mark.parametrize("base, energy", PAIRS)
def test_load_gives_the_saved_model(base, energy, tmp_path):
    model = build(replace(ROWS if base in OF_ROWS else SMALL, base=base, energy=energy))
    model.save(tmp_path)
    loaded = GEBM.load(tmp_path)
    assert same_state(model, loaded)
    assert loaded.architecture == model.architecture and loaded.log_partition.item() == 1.25
    assert torch.equal(loaded.sample(3, steps=2, generator=seeded()), model.sample(3, steps=2, generator=seeded()))


def test_pair_of_two_runs(saved, tmp_path):
    """The base of one run under the energy of another; c comes with the energy."""
    other = build(replace(SMALL, base="resnet-sn", energy="resnet-sn", trunc=True), seed=1)
    with torch.no_grad():
        other.log_partition.fill_(-3.0)
    other.save(tmp_path)
    model = GEBM.load(saved / "base.safetensors", tmp_path / "energy.safetensors")
    assert same_state(model.base, build().base) and same_state(model.energy, other.energy)
    assert model.log_partition.item() == -3.0
    assert model.architecture == replace(SMALL, energy="resnet-sn", trunc=True)
    assert read_architecture(saved, "base") == SMALL


def test_flow_of_one_run_over_the_base_of_another(tmp_path):
    """The energy is relative to the base it now has: the density stays."""
    runs = [build(replace(ROWS, base=base, energy="made"), seed) for seed, base in enumerate(("nvp", "maf"))]
    for name, run in zip("ab", runs):
        (tmp_path / name).mkdir()
        run.save(tmp_path / name)
    model, x = GEBM.load(tmp_path / "a", tmp_path / "b"), rows()
    assert same_state(model.base, runs[0].base) and same_state(model.energy, runs[1].energy)
    torch.testing.assert_close(model.log_prob(x), runs[1].eval().log_prob(x))


def test_files_from_before_there_were_tables(saved):
    header = {k: v for k, v in asdict(SMALL).items() if k not in ("shape", "blocks", "bn", "dropout")}
    for part in ("base", "energy"):
        rewrite(saved / f"{part}.safetensors", metadata={"gebm": json.dumps({**header, "image_shape": SMALL.shape})})
    loaded = GEBM.load(saved)
    assert loaded.architecture == SMALL and same_state(loaded, build())


@pytest.mark.parametrize("architecture", [SMALL, ROWS], ids=["images", "rows"])
def test_float64_and_parameters_survive(architecture, tmp_path):
    model = build(architecture)
    model.double().save(tmp_path)
    loaded = GEBM.load(tmp_path)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert all(p.requires_grad for p in [*loaded.base.parameters(), *loaded.energy.parameters()])
    assert same_state(model.float(), loaded)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def rewrite(file: Path, change=None, metadata: dict | None = None) -> None:
    tensors = load_file(file)
    if change is not None:
        change(tensors)
    save_file(tensors, file, {"gebm": json.dumps(asdict(SMALL))} if metadata is None else metadata)


def pop_first(tensors: dict) -> None:
    del tensors[min(tensors)]


def add(tensors: dict) -> None:
    tensors["zzz"] = torch.zeros(1)


def reshape(tensors: dict) -> None:
    key = min(tensors)
    tensors[key] = tensors[key].new_zeros(3, 1, 4)


DAMAGE = {
    "missing": (lambda f: f.unlink(), "no such file: give a {part}.safetensors, or a run, checkpoint"),
    "empty": (lambda f: f.write_bytes(b""), "not a readable safetensors file"),
    "half": (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "not a readable safetensors file"),
    "short by one": (lambda f: f.write_bytes(f.read_bytes()[:-1]), "not a readable safetensors file"),
    "header only": (lambda f: f.write_bytes(f.read_bytes()[:20]), "not a readable safetensors file"),
    "noise": (lambda f: f.write_bytes(bytes(range(256)) * 50), "not a readable safetensors file"),
    "torch file": (lambda f: torch.save({"a": torch.zeros(2)}, f), "not a readable safetensors file"),
    "no metadata": (lambda f: rewrite(f, metadata={}), "not a weights file written by gebm"),
    "other metadata": (lambda f: rewrite(f, metadata={"gebm": "{'a"}), "not a weights file written by gebm"),
    "unknown field": (lambda f: rewrite(f, metadata={"gebm": '{"shape": [1], "x": 1}'}), "not a weights file"),
    "list": (lambda f: rewrite(f, metadata={"gebm": "[1]"}), "not a weights file written by gebm"),
    "tensor missing": (lambda f: rewrite(f, pop_first), "tensor .* does not fit the {part}"),
    "tensor too many": (lambda f: rewrite(f, add), "tensor zzz does not fit the {part}"),
    "tensor of another shape": (lambda f: rewrite(f, reshape), "tensor .* does not fit the {part}"),
}


@pytest.mark.parametrize("part", ["base", "energy"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file(saved, part, damage):
    break_it, says = DAMAGE[damage]
    file = saved / f"{part}.safetensors"
    break_it(file)
    with pytest.raises(InputError, match=re.escape(str(file)) + ": .*" + says.format(part=part)) as error:
        GEBM.load(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickle_does_not_run(saved, tmp_path, protocol):
    (saved / "energy.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol))
    with pytest.raises(InputError, match="not a readable safetensors file"):
        GEBM.load(saved)
    torch.save(Bomb(tmp_path / "ran"), saved / "base.safetensors")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        GEBM.load(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "architecture, part, field, value",
    [
        (SMALL, "base", "latent_dim", 5), (SMALL, "base", "prior", "gaussian"), (SMALL, "base", "base", "sngan"),
        (SMALL, "base", "width", 0.2), (SMALL, "energy", "energy", "dcgan"), (SMALL, "energy", "width", 0.2),
        (SMALL, "energy", "shape", (1, 16, 16)),
        (ROWS, "base", "base", "maf"), (ROWS, "base", "blocks", 3), (ROWS, "base", "bn", False),
        (ROWS, "energy", "energy", "nvp"), (ROWS, "energy", "blocks", 3),
    ],
)  # fmt: skip
def test_other_architecture(architecture, part, field, value, tmp_path):
    build(architecture).save(tmp_path)
    model = GEBM.build(replace(architecture, **{field: value}))
    before = copy.deepcopy(model)
    load = {"base": model.load_base, "energy": model.load_energy}[part]
    says = f"made with {field} {getattr(architecture, field)}, not {value}: give the {part} of that architecture"
    with pytest.raises(InputError, match=re.escape(says)):
        load(tmp_path)
    assert same_state(model, before)


def test_damage_leaves_the_model_as_it_was(saved):
    model = build(seed=3)
    before = copy.deepcopy(model)
    rewrite(saved / "energy.safetensors", pop_first)
    with pytest.raises(InputError):
        model.load_energy(saved)
    assert same_state(model, before)


def test_base_and_energy_exchanged(saved):
    shutil.copy(saved / "base.safetensors", saved / "energy.safetensors")
    with pytest.raises(InputError, match="does not fit the energy 'sngan'"):
        GEBM.load(saved)


# Names and the user's own networks

OWN = """
from torch import nn

def base(shape, latent_dim, width):
    c, h, w = shape
    return nn.Sequential(nn.Linear(latent_dim, c * h * w), nn.Unflatten(1, (c, h, w)), nn.Tanh())

def wide(shape, latent_dim, width):
    c, h, w = shape
    return base((c, h, 2 * w), latent_dim, width)

def energy(shape, width, trunc):
    c, h, w = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, 1), nn.Flatten(0))

def column(shape, width, trunc):
    return energy(shape, width, trunc)[:2]

def base_of_rows(shape, latent_dim, width, blocks, bn, dropout):
    return nn.Linear(latent_dim, *shape)

def energy_of_rows(shape, width, blocks, bn, dropout):
    return nn.Sequential(nn.Linear(*shape, 1), nn.Flatten(0))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks_of_a_test"


@pytest.mark.parametrize("architecture, suffix", [(SMALL, ""), (ROWS, "_of_rows")], ids=["images", "rows"])
def test_own_networks(architecture, suffix, own, tmp_path):
    base, energy = f"{own}:base{suffix}", f"{own}:energy{suffix}"
    model = GEBM.build(replace(architecture, base=base, energy=energy))
    assert model.sample(3, steps=2, generator=seeded()).shape == (3, *architecture.shape)
    model.save(tmp_path)
    with pytest.raises(InputError, match="imported only if you name it"):
        GEBM.load(tmp_path)
    assert same_state(GEBM.load(tmp_path, allow=[base, energy]), model)


@pytest.mark.parametrize(
    "architecture, changes, says",
    [
        (SMALL, {"base": "maf", "prior": "gaussian"}, "--g_model maf: is no network of images (1, 8, 8); choose dcgan"),
        (SMALL, {"energy": "mlp"}, "--d_model mlp: is no network of images (1, 8, 8); choose dcgan, "),
        (ROWS, {"base": "sngan"}, "--g_model sngan: is no network of rows of a table (3,); choose gaussian, "),
        (ROWS, {"energy": "sngan"}, "--d_model sngan: is no network of rows of a table (3,); choose gaussian, "),
    ],
)
def test_networks_of_the_other_kind(architecture, changes, says):
    with pytest.raises(InputError, match="^" + re.escape(says)):
        GEBM.build(replace(architecture, **changes))


def test_flows_that_do_not_fit(own):
    with pytest.raises(InputError, match="^--d_model nvp: as an energy it needs a base with a density: take a flow"):
        GEBM.build(replace(ROWS, base=f"{own}:base_of_rows", energy="nvp"))
    with pytest.raises(InputError, match="^--latent_noise uniform: --g_model nvp is a flow of Gaussian noise"):
        GEBM.build(replace(ROWS, prior="uniform"))


def test_a_file_cannot_name_code_to_run(tmp_path):
    ran = tmp_path / "ran"
    GEBM.build(SMALL).save(tmp_path)
    tensors = load_file(tmp_path / "base.safetensors")
    for fields in (
        {"prior": "os:system", "latent_dim": f"touch {ran}"}, {"base": "os:system"}, {"latent_dim": "4"},
        {"shape": "abc"}, {"blocks": True}, {"dropout": "0"},
    ):  # fmt: skip
        header = {"gebm": json.dumps({**asdict(SMALL), **fields})}
        save_file(tensors, tmp_path / "base.safetensors", header)
        with pytest.raises(InputError):
            GEBM.load(tmp_path)
    assert not ran.exists()


def test_own_networks_of_the_wrong_shape(own):
    with pytest.raises(InputError, match=r"--g_model .*:wide: made samples of shape \(1, 8, 16\), the data have"):
        GEBM.build(replace(SMALL, base=f"{own}:wide"))
    with pytest.raises(InputError, match=r"--d_model .*:column: gave energies of shape \(2, 1\) .*\(2,\) is needed"):
        GEBM.build(replace(SMALL, energy=f"{own}:column"))


@pytest.mark.parametrize("field, flag", [("base", "--g_model"), ("energy", "--d_model"), ("prior", "--latent_noise")])
def test_unknown_name(field, flag):
    with pytest.raises(InputError, match=f"^{flag} 'nonsense': choose "):
        GEBM.build(replace(SMALL, **{field: "nonsense"}))


def test_own_networks_in_float64_are_sampled_and_c_is_beside_them():
    model = GEBM(nn.Linear(2, 2).double(), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double(), GaussianPrior(2))
    assert model.log_partition.dtype == model.sample(3, steps=2).dtype == model.generate(2).dtype == torch.float64
    model = GEBM(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), GaussianPrior(3))
    for act in (model.generate, model.sample):
        with pytest.raises(
            InputError, match=r"the base fails on inputs \(\d+, 3\), torch.float32 \(mat1.*give the prior"
        ):
            act(2)


@pytest.mark.parametrize("name", ["dcgan", "sngan", "resnet-sn"])
def test_built_in_pairs_say_which_sizes_they_take(name):
    for shape in (1, 20, 20), (1, 28, 32), (1, 56, 56):
        line = f"images of {shape[1]} x {shape[2]}: .* squares of 8, 16, 28, 32 or 64; see --image_size"
        with pytest.raises(InputError, match=line):
            GEBM.build(Architecture(name, name, shape=shape, width=0.1))


def test_densities_of_rows_do_not_depend_on_the_mode():
    """Of dropout in the energy and batch norms in the base."""
    units = load_table("toy:moons")
    d = len(units.columns)
    model = build(replace(ROWS, shape=(d,), latent_dim=d, dropout=0.5))
    model.units = units
    rows = units.unwhiten(units.test[:20])
    expected = model.eval().log_density(rows)
    state = {key: value.clone() for key, value in model.train().state_dict().items()}
    assert torch.equal(model.log_density(rows), expected) and all(part.training for part in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
