"""Exported folders: the same model comes back, and what is not one is refused in a line."""

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from gebm import GEBM, Architecture
from gebm.errors import InputError
from gebm.latent import PRIORS
from gebm.networks import BASES, ENERGIES, FLOWS
from gebm.samplers import Langevin

IMAGES = Architecture(shape=(1, 8, 8), latent_dim=4, width=0.1)
ROWS = Architecture(base="maf", energy="mlp", shape=(3,), latent_dim=3, width=0.05, blocks=2, bn=True)
OF_ROWS = {*FLOWS, "mlp"}
ALL = [
    *(replace(IMAGES, base=base, energy=energy, prior=prior)
      for base in sorted(BASES.keys() - OF_ROWS) for energy in sorted(ENERGIES.keys() - OF_ROWS) for prior in PRIORS),
    *(replace(ROWS, base=base, energy=energy) for base in FLOWS for energy in sorted(ENERGIES.keys() & OF_ROWS)),
]  # fmt: skip


def build(a: Architecture = IMAGES, dtype: torch.dtype = torch.float32) -> GEBM:
    """A model off its initial weights and running statistics, with a c."""
    torch.manual_seed(0)
    model = GEBM.build(a, dtype=dtype)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
        model.log_partition.fill_(1.25)
    return model.eval()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


class OwnBase(nn.Module):
    """A user's network, with names that those of a whole model's weights must not be taken for."""

    def __init__(self, shape, latent_dim, width):
        super().__init__()
        self.base = nn.Linear(latent_dim, 64)
        self.energy = nn.Parameter(torch.ones(1))

    def forward(self, z):
        return (self.energy * self.base(z)).tanh().unflatten(1, (1, 8, 8))


OWN = f"{__name__}:OwnBase"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("a", ALL, ids=lambda a: f"{a.base}-{a.energy}-{a.prior}")
def test_the_same_model_comes_back(a, dtype, tmp_path):
    model = build(a, dtype)
    model.save_pretrained(tmp_path / "out")
    loaded = GEBM.from_pretrained(tmp_path / "out")
    assert loaded.architecture == a and not loaded.training
    assert loaded.log_partition.dtype == dtype and loaded.log_partition == 1.25
    x = model.generate(5, seeded()).detach()
    with torch.no_grad():
        torch.testing.assert_close(loaded.energy(x), model.energy(x), rtol=0, atol=1e-6)
    draws = [m.sample(5, Langevin(0.01), steps=2, generator=seeded()) for m in (model, loaded)]
    torch.testing.assert_close(*draws, rtol=0, atol=1e-6)
    assert not torch.allclose(draws[0], x)


def test_a_folder_says_what_it_holds(tmp_path):
    build().save_pretrained(tmp_path / "out", {"sampler": {"latent_sampler": "mala", "temperature": 2.0}})
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["format_version"] == 1 and config["c"] == 1.25 and config["architecture"]["latent_dim"] == 4
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "gebm" and "license" not in yaml.safe_load(front)
    assert "# license:" in front
    assert "gebm sample --g_path FOLDER --latent_sampler mala --temperature 2\n" in text
    assert "## Training" not in text and "## Figures" not in text  # nothing is known of them


def test_the_python_of_a_card_runs(tmp_path):
    sampler = {"latent_sampler": "langevin", "temperature": 2.0, "num_sampler_steps": 3, "lmc_gamma": 0.01}
    build(replace(IMAGES, base=OWN)).save_pretrained(tmp_path / "out", {"sampler": sampler})
    code = (tmp_path / "out" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert 'SAMPLERS["langevin"].from_gamma(0.01), steps=3, beta=2.0)' in code
    names = {}
    exec(code.replace("FOLDER", str(tmp_path / "out")), names)
    assert names["x"].shape == (16, 1, 8, 8) and names["energies"].shape == (16,)


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "interchange.md").read_text()
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out == "torch.Size([4])\n"


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    model = build()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: exists"):
        model.save_pretrained(tmp_path / "out")
    monkeypatch.setattr("gebm.pretrained.model_card", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_bare_networks_cannot_be_exported(tmp_path):
    bare = GEBM(nn.Linear(4, 2), nn.Linear(2, 1), PRIORS["gaussian"](4))
    with pytest.raises(ValueError, match="no architecture"):
        bare.save_pretrained(tmp_path / "out")


def test_a_users_networks_are_imported_only_if_named(tmp_path):
    model = build(replace(IMAGES, base=OWN))
    model.save_pretrained(tmp_path / "out")
    with pytest.raises(InputError, match="imported only if you name it"):
        GEBM.from_pretrained(tmp_path / "out")
    loaded = GEBM.from_pretrained(tmp_path / "out", allow=[OWN])
    torch.testing.assert_close(loaded.generate(3, seeded()), model.generate(3, seeded()))


def test_a_users_base_is_not_taken_for_a_whole_model(tmp_path):
    model = build(replace(IMAGES, base=OWN))
    model.save(tmp_path)
    loaded = GEBM.load(tmp_path, allow=[OWN])
    torch.testing.assert_close(loaded.generate(3, seeded()), model.generate(3, seeded()))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "not the configuration of a gebm model"),
        ({"format_version": 2}, "format version 2, this gebm reads 1; upgrade gebm"),
        ({"dtype": "float8"}, "damaged"),
        ({"dtype": ["float32"]}, "damaged"),
        ({"architecture": 3}, "damaged"),
        ({"architecture": {"base": "dcgan"}}, "are of different models"),
    ],
)
def test_other_configurations_are_refused(change, message, tmp_path):
    build().save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        GEBM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_damaged_configurations_are_refused(text, tmp_path):
    build().save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="config.json: not"):
        GEBM.from_pretrained(tmp_path / "out")


def test_missing_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder, and no name on the hub"):
        GEBM.from_pretrained(tmp_path / "none")
    with pytest.raises(InputError, match="config.json: no such file"):
        GEBM.from_pretrained(tmp_path)


# The hub, whose client is replaced: nothing here goes out


class HubError(Exception):
    """Stands for the client's own errors."""


def hub(monkeypatch, **functions) -> None:
    errors = SimpleNamespace(HfHubHTTPError=HubError)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(errors=errors, **functions))


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    model, asked = build(), []
    model.save_pretrained(tmp_path / "out")

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "out")

    hub(monkeypatch, snapshot_download=download)
    loaded = GEBM.from_pretrained("someone/digits", revision="v1")
    assert asked == [("someone/digits", "v1", ["config.json", "model.safetensors"])]
    torch.testing.assert_close(loaded.generate(3, seeded()), model.generate(3, seeded()))


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("bad name"), HubError("404")])
def test_a_hub_that_does_not_answer(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    hub(monkeypatch, snapshot_download=fail, HfApi=lambda: SimpleNamespace(create_repo=fail))
    with pytest.raises(InputError, match=f"someone/digits: no such folder, and the hub did not give it .*{error}"):
        GEBM.from_pretrained("someone/digits")
    with pytest.raises(InputError, match=f"someone/digits: cannot be uploaded .*{error}"):
        build().push_to_hub("someone/digits")


def test_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'gebm\[hub\]'"):
        GEBM.from_pretrained("someone/digits")


def test_upload(tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            calls.append((name, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            calls.append((repo_id, revision))
            return SimpleNamespace(commit_url="https://hub.example/someone/digits/commit/1")

    hub(monkeypatch, HfApi=Api)
    model = build()
    assert model.push_to_hub("someone/digits", private=True).endswith("commit/1")
    assert calls == [("someone/digits", True, True), ("someone/digits", None)]
    loaded = GEBM.from_pretrained(tmp_path / "hub")
    torch.testing.assert_close(loaded.generate(3, seeded()), model.generate(3, seeded()))


def test_the_hubs_client_takes_these_calls():
    client = pytest.importorskip("huggingface_hub")
    bind = [inspect.signature(f).bind for f in (
        client.snapshot_download, client.HfApi.create_repo, client.HfApi.upload_folder
    )]  # fmt: skip
    bind[0]("a/b", revision=None, allow_patterns=["x"])
    bind[1](None, "a/b", private=False, exist_ok=True)
    bind[2](None, repo_id="a/b", folder_path="x", revision=None, commit_message="m")
    assert issubclass(client.errors.HfHubHTTPError, Exception)
    assert "commit_url" in {field.name for field in fields(client.CommitInfo)}


def test_help_needs_no_torch():
    """The commands' names are in the help, which answers at once."""
    code = "import sys; from gebm.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert out.returncode == 0 and "export" in out.stdout and "convert" in out.stdout
