"""Chains on disk."""

import json
import pickle
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from gebm.errors import InputError
from gebm.latent import value_and_grad
from gebm.samplers import MALA, SMC, DrawFiles, KineticLangevin, load_chain, run, save_chain
from gebm.samplers.tempering import excess

TARGET = value_and_grad(lambda z: 2 * z.square().sum(1))
KERNELS = {"mala": MALA(0.1), "lmc": KineticLangevin(0.3), "smc": SMC(0.1)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(n: int = 10, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, generator=seeded(0), dtype=dtype)


@pytest.fixture
def chain(tmp_path):
    """A stored chain."""
    generator = seeded(1)
    state = run(MALA(0.1), TARGET, start(), 5, generator=generator).state
    save_chain(tmp_path / "chain", state, 5, generator)
    return tmp_path / "chain"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_round_trip(name, dtype, tmp_path):
    """Every tensor, the step and the random state; that a chain goes on as if never stopped, test_samplers shows."""
    generator = seeded(1)
    state = run(KERNELS[name], TARGET, start(dtype=dtype), 5, generator=generator).state
    save_chain(str(tmp_path / "chain"), state, 5, generator)
    stored = load_chain(tmp_path / "chain")
    assert stored.step == 5 and torch.equal(stored.generator.get_state(), generator.get_state())
    assert stored.state.extra.keys() == state.extra.keys()
    pairs = [*zip(state[:4], stored.state[:4]), *((value, stored.state.extra[k]) for k, value in state.extra.items())]
    for old, new in pairs:
        assert old is new is None or (torch.equal(old, new) and old.dtype == new.dtype and old.shape == new.shape)
    assert [file.name for file in tmp_path.iterdir()] == ["chain"]  # and nothing temporary


def test_a_chain_takes_the_place_of_an_older_one(chain):
    state = run(MALA(0.1), TARGET, start(4), 9, generator=seeded(2)).state
    save_chain(chain, state, 9, seeded(2))
    assert load_chain(chain).step == 9 and torch.equal(load_chain(chain).state.position, state.position)


def rewrite(path, header: dict | None = None, drop: str = "", **added: torch.Tensor) -> None:
    """The stored chain with another header or other tensors."""
    tensors = {name: value for name, value in safetensors.torch.load_file(path).items() if name != drop}
    about = {"gebm_chain": json.dumps({"step": 5, "device": "cpu"})} if header is None else header
    safetensors.torch.save_file({**tensors, **added}, path, about)


def about(**values: object) -> dict[str, str]:
    return {"gebm_chain": json.dumps({"step": 5, "device": "cpu", **values})}


BROKEN = {
    "no file": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "truncated header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "truncated tensors": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "text": lambda path: path.write_text("a\nb\n" * 100),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"position": [1, 2]})),
    "a torch file": lambda path: torch.save({"position": start()}, path),
    "other safetensors": lambda path: safetensors.torch.save_file({"weight": start()}, path),
    "header of another program": lambda path: rewrite(path, {"format": "pt"}),
    "header that is no JSON": lambda path: rewrite(path, {"gebm_chain": "{"}),
    "header that is no object": lambda path: rewrite(path, {"gebm_chain": "[5]"}),
    "no device": lambda path: rewrite(path, {"gebm_chain": '{"step": 5}'}),
    "no step": lambda path: rewrite(path, {"gebm_chain": '{"device": "cpu"}'}),
    "a step that is no number": lambda path: rewrite(path, about(step="five" * 100)),
    "no random state": lambda path: rewrite(path, drop="generator"),
    "another random state": lambda path: rewrite(path, generator=torch.zeros(16, dtype=torch.uint8)),
    "no position": lambda path: rewrite(path, drop="position"),
    "a tensor too many": lambda path: rewrite(path, **{"a\nname": start()}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_a_stored_chain(name, chain):
    BROKEN[name](chain)
    with pytest.raises(InputError) as error:
        load_chain(chain)
    message = str(error.value)
    found = r"not a (chain that gebm saved|readable safetensors file) \(" if chain.exists() else "no such file"
    assert re.match(f"{re.escape(str(chain))}: {found}", message) and "\n" not in message
    assert len(message) < 2 * len(str(chain)) + 140


def test_the_file_itself_is_sound(chain):
    """`rewrite` alone breaks nothing."""
    rewrite(chain)
    assert load_chain(chain).step == 5


@pytest.mark.parametrize("device", ["cuda", "mps", "nonsense"])
def test_a_chain_of_another_device(device, chain):
    """Its random state means nothing here, whether or not this machine has such a device."""
    rewrite(chain, about(device=device))
    with pytest.raises(InputError, match=f"a chain of {device} cannot go on on cpu; give that device$") as error:
        load_chain(chain)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mala", "lmc"])
@pytest.mark.parametrize("steps, thin", [(12, 3), (13, 3), (5, 1)])
def test_draw_files(name, steps, thin, tmp_path):
    """Two chunks of chains: the thinned positions of `run`, and the energies of the same states."""
    kernel, chunks = KERNELS[name], [start(10, torch.float64)[:6], start(10, torch.float64)[6:]]
    files, expected, energies = DrawFiles(tmp_path, 10, steps, 3, thin), [], []
    for index, chunk in enumerate(chunks):
        states = {}

        def callback(step, state, first=6 * index, states=states):
            files.add(first, step, state)
            states[step] = state

        chain = run(kernel, TARGET, chunk, steps, thin=thin, callback=callback, generator=seeded(index))
        expected.append(chain.positions.transpose(0, 1))
        files.add(6 * index, 0, kernel.init(chunk, TARGET))  # a start is no draw
        energies.append(torch.stack([excess(states[step]) for step in range(thin, steps + 1, thin)], 1))

    position, energy = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("position", "energy"))
    assert position.shape == (10, steps // thin, 3) and energy.shape == (10, steps // thin)
    assert isinstance(position, np.memmap) and position.dtype == energy.dtype == np.float32
    np.testing.assert_array_equal(position, torch.cat(expected).float().numpy())
    np.testing.assert_array_equal(energy, torch.cat(energies).float().numpy())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["energy.npy", "position.npy"]
