"""Checkpoints in the layout of the reference code of 2021, against the same networks in functional calls."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gebm.cli import main
from gebm.model import GEBM, Architecture
from gebm.reference import load_reference

CHANNELS = [512, 256, 128, 64]
LATENTS = 100
C = 0.7
State = dict[str, Tensor]


def layer(state: State, name: str, *shape: int, spectral: bool = False, aliases: tuple[str, ...] = ()) -> None:
    """Random tensors of a layer, under all its names, keys in the order that torch 1.4 gave them."""
    weight, bias = torch.randn(shape) / torch.tensor(shape[1:]).prod() ** 0.5, 0.1 * torch.randn(shape[0])
    tensors = {"weight": weight, "bias": bias}
    if spectral:
        matrix = weight.flatten(1)
        u = F.normalize(torch.randn(len(matrix)), dim=0)  # not the singular vectors: what is stored is what counts
        tensors = {"bias": bias, "weight_orig": weight, "weight_u": u, "weight_v": F.normalize(matrix.T @ u, dim=0)}
    for alias in (name, *aliases):
        state.update({f"{alias}.{key}": tensor for key, tensor in tensors.items()})


def norm(state: State, name: str, channels: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * torch.randn(channels), 0.1 * torch.randn(channels)
    state[f"{name}.running_mean"] = 0.1 * torch.randn(channels)
    state[f"{name}.running_var"] = 0.5 + torch.rand(channels)
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def transposed(state: State, name: str, before: int, after: int, size: int) -> None:
    state[f"{name}.weight"] = torch.randn(before, after, size, size) / before**0.5 / 2
    state[f"{name}.bias"] = 0.1 * torch.randn(after)


def sngan_base() -> State:
    state: State = {}
    layer(state, "dense", CHANNELS[0] * 16, LATENTS)
    for i, (before, after, size) in enumerate([(512, 256, 4), (256, 128, 4), (128, 64, 4), (64, 3, 3)]):
        norm(state, f"main.{3 * i}", before)
        transposed(state, f"main.{3 * i + 2}", before, after, size)
    return state


def sngan_energy() -> State:
    state: State = {}
    plan = [(3, 64, 3), (64, 128, 4), (128, 128, 3), (128, 256, 4), (256, 256, 3), (256, 512, 4), (512, 512, 3)]
    for i, (before, after, size) in enumerate(plan):
        layer(state, f"main.{2 * i}", after, before, size, size, spectral=True)
    layer(state, "fc", 1, 8192)
    return state


def resnet_base() -> State:
    state: State = {}
    layer(state, "dense", 128 * 16, LATENTS)
    layer(state, "final", 3, 128, 3, 3)
    for i in range(3):
        layer(state, f"main.{i}.conv1", 128, 128, 3, 3)
        layer(state, f"main.{i}.conv2", 128, 128, 3, 3)
        norm(state, f"main.{i}.model.0", 128)
        again(state, f"main.{i}.conv1", f"main.{i}.model.3")
        norm(state, f"main.{i}.model.4", 128)
        again(state, f"main.{i}.conv2", f"main.{i}.model.6")
    norm(state, "main.3", 128)
    again(state, "final", "main.5")
    return state


def resnet_energy() -> State:
    state: State = {}
    layer(state, "fc", 1, 128, spectral=True)
    for i in range(4):
        layer(state, f"main.{i}.conv1", 128, 3 if i == 0 else 128, 3, 3, spectral=True)
        layer(state, f"main.{i}.conv2", 128, 128, 3, 3, spectral=True)
        if i < 2:
            layer(state, f"main.{i}.bypass_conv", 128, 3 if i == 0 else 128, 1, 1, spectral=True)
        again(state, f"main.{i}.conv1", f"main.{i}.model.{0 if i == 0 else 1}")
        again(state, f"main.{i}.conv2", f"main.{i}.model.{3 if i == 0 else 4}")
        if i < 2:
            again(state, f"main.{i}.bypass_conv", f"main.{i}.bypass.{1 - i}")
    again(state, "fc", "main.7")
    return state


def again(state: State, name: str, alias: str) -> None:
    state.update(
        {f"{alias}.{k.removeprefix(name + '.')}": v for k, v in list(state.items()) if k.startswith(name + ".")}
    )


def normed(s: State, name: str, x: Tensor) -> Tensor:
    tensors = (s[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *tensors))


def weight_of(s: State, name: str) -> Tensor:
    """W / sigma, sigma = u^T W v by the stored vectors."""
    w = s[f"{name}.weight_orig"]
    return w / (s[f"{name}.weight_u"] @ w.flatten(1) @ s[f"{name}.weight_v"])


def by_hand_sngan_base(s: State, z: Tensor) -> Tensor:
    x = F.linear(z, s["dense.weight"], s["dense.bias"]).view(-1, 512, 4, 4)
    for i, stride in enumerate([2, 2, 2, 1]):
        x = normed(s, f"main.{3 * i}", x)
        x = F.conv_transpose2d(x, s[f"main.{3 * i + 2}.weight"], s[f"main.{3 * i + 2}.bias"], stride, 1)
    return x.tanh()


def by_hand_sngan_energy(s: State, x: Tensor) -> Tensor:
    for i in range(7):
        x = F.conv2d(x, weight_of(s, f"main.{2 * i}"), s[f"main.{2 * i}.bias"], 1 + i % 2, 1)
        x = F.leaky_relu(x, 0.1)
    return F.linear(x.flatten(1), s["fc.weight"], s["fc.bias"])[:, 0]


def by_hand_resnet_base(s: State, z: Tensor) -> Tensor:
    x = F.linear(z, s["dense.weight"], s["dense.bias"]).view(-1, 128, 4, 4)
    for i in range(3):
        h = F.interpolate(normed(s, f"main.{i}.model.0", x), scale_factor=2)
        h = F.conv2d(h, s[f"main.{i}.conv1.weight"], s[f"main.{i}.conv1.bias"], padding=1)
        h = normed(s, f"main.{i}.model.4", h)
        h = F.conv2d(h, s[f"main.{i}.conv2.weight"], s[f"main.{i}.conv2.bias"], padding=1)
        x = h + F.interpolate(x, scale_factor=2)
    return F.conv2d(normed(s, "main.3", x), s["final.weight"], s["final.bias"], padding=1).tanh()


def by_hand_resnet_energy(s: State, x: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, padding: int = 1) -> Tensor:
        return F.conv2d(x, weight_of(s, name), s[f"{name}.bias"], padding=padding)

    for i in range(4):
        h = conv(f"main.{i}.conv1", x if i == 0 else F.relu(x))
        h = conv(f"main.{i}.conv2", F.relu(h))
        if i == 0:
            x = F.avg_pool2d(h, 2) + conv("main.0.bypass_conv", F.avg_pool2d(x, 2), 0)
        elif i == 1:
            x = F.avg_pool2d(h, 2) + F.avg_pool2d(conv("main.1.bypass_conv", x, 0), 2)
        else:
            x = h + x
    x = F.avg_pool2d(F.relu(x), 8).flatten(1)
    return F.linear(x, weight_of(s, "fc"), s["fc.bias"])[:, 0]


FAMILIES: dict[str, tuple[Callable, ...]] = {
    "sngan": (sngan_base, sngan_energy, by_hand_sngan_base, by_hand_sngan_energy),
    "resnet-sn": (resnet_base, resnet_energy, by_hand_resnet_base, by_hand_resnet_energy),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gebm.commands.sample.write_report", lambda run, allow: run)  # takes longer than all the rest
    torch.manual_seed(0)


def write(g: State, d: State, **options) -> None:
    torch.save(g, "g.pth", **options)
    torch.save(d | {"log_partition": torch.nn.Parameter(torch.tensor([C]))}, "d.pth", **options)


def refused(capsys, *flags: str) -> str:
    assert main(["convert", "out", "--g_path", "g.pth", "--d_path", "d.pth", *flags]) == 2
    assert not Path("out").exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", FAMILIES)
def test_converted_networks_are_the_stored_ones(name):
    make_g, make_d, base, energy = FAMILIES[name]
    g, d = make_g(), make_d()
    write(g, d)
    assert main(["convert", "out", "--g_path", "g.pth", "--d_path", "d.pth"]) == 0
    model = GEBM.from_pretrained("out", dtype=torch.float64)  # so that rounding does not blur the comparison
    assert model.architecture == Architecture(base=name, energy=name)
    g, d = ({k: v.double() for k, v in state.items()} for state in (g, d))
    z = torch.randn(4, LATENTS).double()
    with torch.no_grad():
        x = base(g, z)
        torch.testing.assert_close(model.base(z), x, rtol=0, atol=1e-6)
        e = energy(d, x)
        assert e.std() > 1e-3 and (e > -10).all()
        torch.testing.assert_close(model.energy(x), e, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.log_ratio(x), -e - C, rtol=0, atol=1e-6)


def test_old_files_of_data_parallel_networks(capsys):
    g, d = sngan_base(), sngan_energy()
    write({f"module.{k}": v for k, v in g.items()}, {f"module.{k}": v for k, v in d.items()},
          _use_new_zipfile_serialization=False)  # fmt: skip
    model, _ = load_reference("g.pth", "d.pth")
    z = torch.randn(2, LATENTS)
    torch.testing.assert_close(model.base(z), by_hand_sngan_base(g, z), rtol=0, atol=1e-4)
    assert model.log_partition.item() == pytest.approx(C)


def test_an_older_base_starts_with_a_convolution_of_one_pixel():
    g = sngan_base()
    weight, bias = torch.randn(LATENTS, 512, 4, 4) / 10, torch.randn(512)
    old = {"main.0.weight": weight, "main.0.bias": bias}
    rest = {k: v for k, v in g.items() if k.startswith("main")}
    old |= {f"main.{int(k.split('.')[1]) + 1}.{k.split('.')[2]}": v for k, v in rest.items()}
    write(old, sngan_energy())
    model, _ = load_reference("g.pth", "d.pth")
    z = torch.randn(2, LATENTS)
    x = F.conv_transpose2d(z.view(-1, LATENTS, 1, 1), weight, bias).flatten(1)
    g |= {"dense.weight": torch.eye(8192), "dense.bias": torch.zeros(8192)}
    torch.testing.assert_close(model.base(z), by_hand_sngan_base(g, x), rtol=0, atol=1e-4)


def test_their_uniform_latents_are_on_the_unit_cube():
    g = sngan_base()
    write(g, sngan_energy())
    model, _ = load_reference("g.pth", "d.pth", Architecture(prior="uniform"))
    z = torch.rand(2, LATENTS)
    torch.testing.assert_close(model.base(2 * z - 1), by_hand_sngan_base(g, z), rtol=0, atol=1e-4)


def test_a_converted_checkpoint_is_sampled():
    write(sngan_base(), sngan_energy())
    assert main(["convert", "--g_path", "g.pth", "--d_path", "d.pth"]) == 0
    draw = ["--n_samples", "2", "--num_sampler_steps", "1", "--temperature", "1", "--device", "-2", "--log_name", "s"]
    assert main(["sample", "--g_path", "runs/converted", *draw]) == 0
    assert Path("runs/s/samples.npz").is_file()


def test_tensors_that_do_not_fit_are_named(capsys):
    write(sngan_base(), sngan_energy() | {"main.4.bias": torch.zeros(5)})
    assert "d.pth: tensor main.4.bias (5,), (128,) is needed in the energy 'sngan'" in refused(capsys)
    d = sngan_energy()
    del d["main.2.weight_u"]
    write(sngan_base(), d)
    assert "d.pth: tensor main.2.weight_u is missing, (128,) is needed" in refused(capsys)
    write(sngan_base(), resnet_energy())
    assert "tensor main.0.model.0.bias (128,), (64,) is needed" in refused(capsys, "--d_model", "sngan")


def test_networks_without_a_counterpart_are_refused(capsys):
    bn = resnet_energy()
    norm(bn, "main.0.bn1", 128)
    write(sngan_base(), bn)
    assert "d.pth: 12 layers, has batch normalisation (tensor main.0.bn1.running_mean)" in refused(capsys)
    write({"main.0.weight": torch.zeros(100, 512, 4, 4)}, sngan_energy())
    line = refused(capsys)
    assert "g.pth: 1 layers, starts with main.0.weight: only sngan with 9 or resnet-sn with 15 layers" in line


def test_no_pickle_is_run(capsys):
    write(sngan_base(), sngan_energy())

    class Evil:
        def __reduce__(self):
            return Path("broken").touch, ()

    torch.save({"a": Evil()}, "g.pth")
    assert "g.pth: not a checkpoint that holds tensors alone" in refused(capsys)
    Path("g.pth").write_bytes(pickle.dumps({"a": 1}))
    assert "g.pth: not a" in refused(capsys)
    Path("g.pth").write_bytes(b"junk")
    assert "g.pth: not a" in refused(capsys)
    torch.save([1, 2], "g.pth")
    assert "g.pth: not a state dict" in refused(capsys)
    Path("g.pth").unlink()
    assert "g.pth: no such file" in refused(capsys)
    assert not Path("broken").exists()


def test_sizes_that_no_checkpoint_has_are_not_read(capsys, monkeypatch):
    write(sngan_base(), sngan_energy())
    with zipfile.ZipFile("g.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(300 << 20))
    assert "314,572,800 bytes unpacked, at most" in refused(capsys)
    monkeypatch.setattr("gebm.reference.MAX_BYTES", 1000)
    assert "bytes, at most 1,000 are read" in refused(capsys)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(capsys):
    base = sngan_base()
    first = next(key for key, value in base.items() if value.ndim == 2)
    write(base | {first: torch.zeros(1).expand(8192, 10**7)}, sngan_energy())
    assert f"tensor {first} claims more numbers than the file holds" in refused(capsys)


def test_a_checkpoint_without_c_says_so(capsys):
    torch.save(sngan_base(), "g.pth")
    torch.save(sngan_energy(), "d.pth")
    assert main(["convert", "out", "--g_path", "g.pth", "--d_path", "d.pth"]) == 0
    assert "holds no log_partition" in capsys.readouterr().out
    assert GEBM.from_pretrained("out").log_partition.item() == 0
