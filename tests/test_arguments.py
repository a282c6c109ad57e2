"""Numbers that no call can mean are refused in one line that names the argument."""

import math

import numpy as np
import pytest
import torch

import gebm
from gebm.arguments import check_number, check_whole
from gebm.errors import InputError
from gebm.metrics.partition import base_energies, path, sequential_monte_carlo

NOT_WHOLE = (-1, 2.5, math.nan, "3", None, True)
NOT_A_NUMBER = (-1, -1e-9, math.nan, math.inf, "3", None, True)


class Bowl(torch.nn.Module):
    def forward(self, x):
        return x.square().sum(1)


def model() -> gebm.GEBM:
    return gebm.GEBM(torch.nn.Linear(2, 2), Bowl(), gebm.GaussianPrior(2))


def posterior(beta: float = 1.0) -> gebm.LatentPosterior:
    return model().posterior(beta)


def started(**options):
    return gebm.run(gebm.MALA(0.1), posterior(), torch.zeros(2, 2), **{"steps": 2} | options)


WHOLE = {  # argument and where -> the least it may be, and a call with it
    "n of sample": (1, lambda n: model().sample(n, steps=1)),
    "steps of sample": (0, lambda steps: model().sample(2, steps=steps)),
    "n of generate": (1, lambda n: model().generate(n)),
    "n of start": (1, lambda n: posterior().start(n)),
    "n of draw": (1, lambda n: gebm.draw(posterior(), gebm.MALA(0.1), n, 1)),
    "steps of draw": (0, lambda steps: gebm.draw(posterior(), gebm.MALA(0.1), 2, steps)),
    "chunk of draw": (1, lambda chunk: gebm.draw(posterior(), gebm.MALA(0.1), 2, 1, chunk=chunk)),
    "warm_up of draw": (0, lambda warm_up: gebm.draw(posterior(), gebm.MALA(0.1), 2, 1, warm_up=warm_up)),
    "seed of draw": (0, lambda seed: gebm.draw(posterior(), gebm.MALA(0.1), 2, 1, seed=seed)),
    "steps of run": (0, lambda steps: started(steps=steps)),
    "thin of run": (0, lambda thin: started(thin=thin)),
    "first_step of run": (0, lambda first_step: started(first_step=first_step)),
    "steps of adapt": (0, lambda steps: gebm.adapt(gebm.MALA(0.1), posterior(), torch.zeros(2, 2), steps)),
    "rows of frozen": (0, lambda rows: posterior().frozen(rows=rows)),
    "dim of a Gaussian": (1, gebm.GaussianPrior),
    "dim of a uniform": (1, gebm.UniformPrior),
    "leapfrog of HMC": (1, lambda leapfrog: gebm.HMC(0.1, leapfrog=leapfrog)),
    "steps of path": (1, path),
    "n of base_energies": (1, lambda n: base_energies(model(), n)),
    "batch_size of base_energies": (1, lambda size: base_energies(model(), 2, batch_size=size)),
    "max_steps of sequential_monte_carlo": (
        1,
        lambda steps: sequential_monte_carlo(posterior(0.01), torch.randn(50, 2), max_steps=steps),
    ),
}
NUMBERS = {
    "beta of sample": lambda beta: model().sample(2, steps=1, beta=beta),
    "beta of posterior": posterior,
    "beta of at": lambda beta: posterior().at(beta),
    "friction of KineticLangevin": lambda friction: gebm.KineticLangevin(0.1, friction),
}


def refuses(call, value, name: str) -> None:
    with pytest.raises(InputError) as error:
        call(value)
    assert str(error.value).startswith(f"{name} must be a ") and "\n" not in str(error.value)


@pytest.mark.parametrize("what", WHOLE)
def test_a_number_that_must_be_whole(what):
    least, call = WHOLE[what]
    for value in (*NOT_WHOLE, least - 1):
        refuses(call, value, what.partition(" ")[0])
    for value in (np.int64(2), torch.tensor(2), 2, least):
        call(value)


@pytest.mark.parametrize("what", NUMBERS)
def test_a_number_that_must_be_finite(what):
    for value in NOT_A_NUMBER:
        refuses(NUMBERS[what], value, what.partition(" ")[0])
    for value in (0, 0.0, 2, np.float32(0.5), torch.tensor(0.5)):
        NUMBERS[what](value)


@pytest.mark.parametrize("step_size", ["3", None, 0, -1, math.nan])
def test_step_sizes(step_size):
    with pytest.raises(InputError, match="MALA: step_size .* must be a number above 0"):
        gebm.MALA(step_size)


@pytest.mark.parametrize("ess", [0, 1, -1, 2.5, math.nan, "3", None])
def test_effective_sample_sizes_of_smc(ess):
    with pytest.raises(InputError, match="SMC: ess must be a number between 0 and 1"):
        gebm.SMC(0.1, ess)


@pytest.mark.parametrize("factor", [-0.1, 1.1, math.nan])
def test_factors_on_beta(factor):
    with pytest.raises(InputError, match="beta_schedule must give factors from 0 to 1"):
        started(beta_schedule=lambda step: factor)


@pytest.mark.parametrize("n, chunk", [(1001, 1000), (1099, 1000), (2001, 1000), (1, 1000), (3, 1), (11, 10)])
def test_last_populations_too_small_are_refused(n, chunk):
    with pytest.raises(InputError, match=rf"SMC: n={n} with chunk={chunk} leaves a last population of \d+, .*chunk"):
        gebm.draw(posterior(), gebm.SMC(0.1), n, 5, chunk=chunk)


@pytest.mark.parametrize("n, chunk", [(60, 1000), (300, 100), (15, 5)])
def test_populations_that_are_allowed(n, chunk):
    assert len(gebm.draw(posterior(0.01), gebm.SMC(0.1), n, 20, chunk=chunk).latents) == n


def test_checks_name_the_first_that_is_wrong():
    check_whole(1, n=1, steps=2)
    check_number(0, beta=0.0)
    with pytest.raises(InputError, match=r"^steps must be a whole number of 1 or more, not 0$"):
        check_whole(1, n=1, steps=0)
    with pytest.raises(InputError, match=r"^beta must be a finite number of 0 or more, not nan$"):
        check_number(0, beta=math.nan)
