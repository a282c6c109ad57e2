"""Pairs of modules that know nothing of gebm, saved and loaded."""

import json
import sys

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import gebm
from gebm.cli import main
from gebm.errors import InputError
from gebm.latent import Prior


class Decoder(nn.Module):
    """A base of the user's own, with a buffer and a norm."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 4)
        self.register_buffer("mean", torch.randn(4))

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.norm(self.first(z)).relu()) + self.mean


class Remembers(Decoder):
    """One that keeps its constructor's arguments as huggingface_hub's mixin does."""

    def __init__(self, width: int = 6):
        super().__init__(width)
        self._hub_mixin_config = {"width": width}


def critic() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 1), nn.Flatten(0))


def pair(base: nn.Module | None = None) -> gebm.GEBM:
    torch.manual_seed(0)
    model = gebm.GEBM(base or Decoder(), critic(), gebm.UniformPrior(3))
    model.base(torch.randn(20, 3))  # moves the norm's statistics
    with torch.no_grad():
        model.log_partition.fill_(1.5)
    return model.eval()


def same(a: gebm.GEBM, b: gebm.GEBM) -> bool:
    z = torch.randn(5, 3)
    return torch.equal(a.energy(a.base(z)), b.energy(b.base(z))) and torch.equal(a.log_partition, b.log_partition)


@pytest.mark.parametrize("given", [(Decoder(), critic()), (Decoder, critic), (lambda: Decoder(), critic())])
def test_a_saved_pair_comes_back_into_modules_and_from_factories(tmp_path, given):
    model = pair()
    model.save(tmp_path / "deep" / "mine")
    base, energy = given
    loaded = gebm.GEBM.load(tmp_path / "deep" / "mine", base=base, energy=energy)
    assert same(model, loaded) and not loaded.training
    assert type(loaded.prior) is gebm.UniformPrior and loaded.prior.dim == 3
    assert (loaded.base is base) == isinstance(base, nn.Module)


class Scaled(Decoder):
    """With a state beside its parameters that only torch's own way of loading sets."""

    scale = 1.0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.scale)

    def set_extra_state(self, state: Tensor) -> None:
        self.scale = float(state)


def test_state_that_only_load_state_dict_sets_is_set(tmp_path):
    model = pair(Scaled())
    model.base.scale = 5.0
    model.save(tmp_path)
    assert gebm.GEBM.load(tmp_path, base=Scaled, energy=critic).base.scale == 5.0
    with pytest.raises(InputError, match="base: give a module, or a function of no arguments that makes it"):
        gebm.GEBM.load(tmp_path, base=nn.Linear, energy=critic)


def test_what_was_saved_into_the_folder_of_a_run_is_what_is_loaded(tmp_path):
    model = gebm.GEBM(Decoder(), critic(), gebm.GaussianPrior(3))
    data = torch.randn(60, 4)
    gebm.refine(model, data, steps=2, batch_size=16, out=tmp_path, progress=False)
    gebm.refine(model, data, steps=2, batch_size=16, progress=False)
    model.save(tmp_path)
    assert same(model, gebm.GEBM.load(tmp_path, base=Decoder, energy=critic))


def test_a_plain_function_is_an_energy_without_weights(tmp_path):
    model = gebm.GEBM(Decoder(), lambda x: x.square().sum(1), gebm.GaussianPrior(3)).eval()
    model.save(tmp_path)
    loaded = gebm.GEBM.load(tmp_path, base=Decoder, energy=model.energy)
    assert same(model, loaded)
    with pytest.raises(InputError, match=r"energy is a network of your own \(a plain function\): give energy="):
        gebm.GEBM.load(tmp_path, base=Decoder)


def test_a_class_that_keeps_its_arguments_is_made_again_where_it_is_allowed(tmp_path):
    model = pair(Remembers(width=9))
    model.save(tmp_path)
    name = f"{__name__}:Remembers"
    assert same(model, gebm.GEBM.load(tmp_path, energy=critic, allow=[name]))
    with pytest.raises(InputError, match=f"give base= to GEBM.load, .*, or allow=.*{name}"):
        gebm.GEBM.load(tmp_path, energy=critic)


class Laplace(Prior):
    def log_prob(self, z: Tensor) -> Tensor:
        return -z.abs().sum(1)

    def from_gaussian(self, u: Tensor) -> Tensor:
        return u.sign() * -torch.log1p(-torch.erf(u.abs() / 2**0.5) * 0.999)


def test_a_prior_of_ones_own_is_given_again(tmp_path):
    model = gebm.GEBM(Decoder(), critic(), Laplace(3)).eval()
    model.save(tmp_path)
    with pytest.raises(InputError, match="its prior is of your own: give prior="):
        gebm.GEBM.load(tmp_path, base=Decoder, energy=critic)
    loaded = gebm.GEBM.load(tmp_path, base=Decoder, energy=critic, prior=Laplace(3))
    assert same(model, loaded) and isinstance(loaded.prior, Laplace)


def test_a_named_base_under_an_energy_of_ones_own(tmp_path):
    """The weights of a base that was trained by name go under any energy."""
    named = gebm.GEBM.build("dcgan", shape=(1, 8, 8), latent_dim=3, width=0.1).eval()
    named.save(tmp_path / "named")
    energy = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    with pytest.raises(InputError, match="its base was built by name, the other network was not: give base= too"):
        gebm.GEBM.load(tmp_path / "named", energy=energy)
    model = gebm.GEBM(named.base, energy, named.prior)
    model.save(tmp_path / "mixed")
    again = gebm.GEBM.load(tmp_path / "mixed", base=named.base, energy=energy)
    assert torch.equal(again.log_partition, model.log_partition)


@pytest.mark.parametrize(
    "base, says",
    [
        (Decoder(width=7), r"tensor first.weight is float32 \(6, 3\), the given base has float32 \(7, 3\)"),
        (Decoder().double(), r"is float32 .*, the given base has float64"),
        (nn.Linear(3, 4), "has no tensor (bias|weight), which the given base has"),
        (nn.Sequential(), "holds a tensor first.bias, which the given base has not"),
        (lambda: "a text", "base: must be a module or a function that returns one, not a str"),
    ],
)
def test_other_modules_are_refused(tmp_path, base, says):
    pair().save(tmp_path)
    with pytest.raises(InputError, match=says):
        gebm.GEBM.load(tmp_path, base=base, energy=critic)


class Extra(Decoder):
    def get_extra_state(self) -> object:
        return {"epoch": 3}

    def set_extra_state(self, state: object) -> None:
        """Taken, and of no use."""


def test_a_state_that_is_no_tensor_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="base: its state '_extra_state' is a dict, and only tensors can be saved"):
        pair(Extra()).save(tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("change", [{"name": 3}, {"latent_dim": "3"}, {"arguments": []}, {"prior": 1}, {"more": 1}])
def test_a_damaged_header_is_said(tmp_path, change):
    pair().save(tmp_path)
    file = tmp_path / "base.safetensors"
    with safetensors.safe_open(file, "pt") as stored:
        header = json.loads(stored.metadata()["gebm_own"])
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, {"gebm_own": json.dumps({**header, **change})})
    with pytest.raises(InputError, match="its header is damaged"):
        gebm.GEBM.load(tmp_path, base=Decoder, energy=critic)


def test_the_command_line_says_where_such_a_pair_is_loaded(tmp_path, monkeypatch, capsys):
    pair().save(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--g_path", "mine", "--n_samples", "10"]) == 2
    assert "mine/base.safetensors: its base is a network of your own (class" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_order_of_the_arguments_is_said():
    with pytest.raises(InputError, match=r"GEBM\(base, energy, prior\): the prior must be a GaussianPrior"):
        gebm.GEBM(gebm.GaussianPrior(3), Decoder(), critic())


def test_a_pair_by_name():
    model = gebm.GEBM.build("nvp", "mlp", shape=(2,), latent_dim=2, blocks=1, dtype=torch.float64)
    assert model.built_as.energy == "mlp" and model.generate(2).dtype == torch.float64
    assert gebm.GEBM.build("dcgan", shape=(1, 8, 8), latent_dim=2).built_as.energy == "dcgan"
    with pytest.raises(InputError, match="latent_dims is no option; choose shape, .*did you mean latent_dim"):
        gebm.GEBM.build("nvp", latent_dims=2)


def test_nothing_of_a_file_is_imported_by_itself(tmp_path):
    model = pair(Remembers())
    model.save(tmp_path)
    file = tmp_path / "base.safetensors"
    with safetensors.safe_open(file, "pt") as stored:
        header = json.loads(stored.metadata()["gebm_own"])
    header["name"] = "antigravity:fly"
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, {"gebm_own": json.dumps(header)})
    with pytest.raises(InputError, match="give base="):
        gebm.GEBM.load(tmp_path, energy=critic)
    assert "antigravity" not in sys.modules
