import math
import warnings

import numpy as np
import pytest
import torch

from gebm.errors import InputError
from gebm.samplers.diagnostics import ess, mcse_mean, rhat

ALL = (ess, rhat, mcse_mean)
BOUND = 4.0  # standard errors


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autoregressive(rho: float, *shape: int, seed: int = 0) -> torch.Tensor:
    """Stationary AR(1) draws (chains, draws, ...) of unit variance."""
    draws = noise(*shape, seed=seed)
    for t in range(1, shape[1]):
        draws[:, t] = rho * draws[:, t - 1] + math.sqrt(1 - rho**2) * draws[:, t]
    return draws


def metropolis(chains: int, draws: int) -> torch.Tensor:
    """Random-walk Metropolis on a normal target; two draws in three repeat the one before."""
    generator = torch.Generator().manual_seed(0)
    z, out = torch.zeros(chains, dtype=torch.float64), []
    for _ in range(draws):
        proposal = z + 5 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
        accept = torch.rand(z.shape, generator=generator) < ((z**2 - proposal**2) / 2).exp()
        z = torch.where(accept, proposal, z)
        out.append(z)
    return torch.stack(out, 1)


def with_value(value: float, fraction: float, chains: int = 4, draws: int = 101) -> torch.Tensor:
    """Normal draws, some of them replaced."""
    where = torch.rand(chains, draws, generator=torch.Generator().manual_seed(1)) < fraction
    return noise(chains, draws).masked_fill(where, value)


# Agreement with ArviZ

CHAINS = {
    "independent": noise(4, 250),
    "many short": noise(100, 12),
    "positively correlated": autoregressive(0.95, 4, 500),
    "negatively correlated": autoregressive(-0.5, 4, 500),
    "alternating": autoregressive(-0.98, 4, 200),
    "random walk": noise(4, 300).cumsum(1),
    "levels": noise(4, 200) + torch.arange(4)[:, None],
    "scales": noise(4, 200) * torch.arange(1, 5)[:, None],
    "metropolis": metropolis(4, 300),
    "rounded": autoregressive(0.8, 4, 200).round(),
    "two values": (noise(4, 200).argsort(1) - 99.5).sign(),
    "one chain stands still": torch.cat([noise(3, 200), torch.ones(1, 200)]),
    "odd": autoregressive(0.7, 3, 251),
    "one chain": autoregressive(0.5, 1, 400),
    "heavy tails": torch.tan(math.pi * (torch.special.ndtr(noise(4, 300)) - 0.5)),
    "far from zero": 1e4 + autoregressive(0.5, 4, 200),
    "multidimensional": autoregressive(0.8, 4, 100, 3, 2),
    "constant": torch.full((4, 50), 0.3, dtype=torch.float64),
    "NaN": with_value(math.nan, 0.01),
    "NaN between the halves": noise(4, 101).index_fill(1, torch.tensor([50]), math.nan),
    "NaN among few": noise(4, 6).index_fill(1, torch.tensor([1]), math.nan),
    "some infinite": with_value(math.inf, 0.05),
    "most infinite": with_value(-math.inf, 0.6),
} | {f"{draws} draws": noise(2, draws, 50) for draws in range(1, 17)}


@pytest.fixture
def arviz():
    """ess, rhat and mcse_mean of ArviZ on (chains, draws, ...)."""
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    axes = {"chain_axis": 0, "draw_axis": 1}

    def statistics(draws: torch.Tensor) -> list[np.ndarray]:
        with warnings.catch_warnings():  # it divides zero by zero where the answer is NaN
            warnings.simplefilter("ignore")
            return [
                array_stats.ess(draws.numpy(), method="bulk", **axes),
                array_stats.rhat(draws.numpy(), method="rank", **axes),
                array_stats.mcse(draws.numpy(), method="mean", **axes),
            ]

    return statistics


@pytest.mark.parametrize("name", CHAINS)
def test_agrees_with_arviz(name, arviz):
    draws = CHAINS[name]
    for statistic, expected in zip(ALL, arviz(draws)):
        ours = statistic(draws)
        assert ours.shape == draws.shape[2:]
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-15, err_msg=statistic.__name__)


# Known answers

REPLICATES = 50


def recurrent(rho: float, chains: int, draws: int) -> torch.Tensor:
    """An autoregression driven by a fixed sequence, the same on every machine and in every version."""
    force = torch.arange(chains * draws, dtype=torch.float64).square().sin().view(chains, draws)
    for t in range(1, draws):
        force[:, t] += rho * force[:, t - 1]
    return force


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        (recurrent(0.9, 4, 101), (24.605915294, 1.1558930003, 0.31636915595)),
        (recurrent(-0.6, 2, 60), (249.50174953, 0.98994288970, 0.057673752390)),
        (recurrent(0.5, 3, 40).round(), (66.114827448, 1.0228614298, 0.099808204221)),
    ],
)
def test_stored_values(draws, expected):
    """Of arviz-stats 0.8.0, so that they are held to where it is not installed."""
    assert [statistic(draws).item() for statistic in ALL] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9, -0.5])
def test_ess_of_autoregressive_chains(rho):
    chains, draws = 4, 4000
    per_ess = chains * draws / ess(autoregressive(rho, chains, draws, REPLICATES))
    ratio = per_ess * (1 - rho) / (1 + rho)
    # One per cent is left to the bias of the truncation, which falls with the number of draws.
    assert abs(ratio.mean() - 1) < BOUND * ratio.std() / math.sqrt(REPLICATES) + 0.01
    assert ratio.std() < 0.15


def test_mcse_is_the_spread_of_means():
    draws = 3 + 2 * autoregressive(0.8, 4, 500, 1000)
    z = (draws.mean((0, 1)) - 3) / mcse_mean(draws)
    assert abs(z.mean()) < BOUND / math.sqrt(1000)
    assert abs(z.var() - 1) < BOUND * math.sqrt(2 / 1000)


def test_rhat_of_chains_that_agree():
    values = rhat(noise(4, 1000, REPLICATES))
    assert values.min() > 0.999 and values.max() < 1.01


def test_rhat_of_chains_at_two_levels():
    # Halves of a normal have means -+ sqrt(2 / pi); the unbiased variance of four such means is 4/3 of their square.
    between, within = 4 / 3 * 2 / math.pi, 1 - 2 / math.pi
    draws = noise(2, 2000) + torch.tensor([[0.0], [100.0]])
    assert rhat(draws).item() == pytest.approx(math.sqrt(1 + between / within), rel=1e-3)
    assert ess(draws) < 3


def test_rhat_sees_scales():
    draws = noise(4, 1000) * torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None]
    assert rhat(draws) > 1.1


def test_rhat_sees_a_drift_within_each_chain():
    drift = torch.linspace(-1, 1, 1000)
    assert rhat(noise(4, 1000) + drift) > 1.1


def test_only_ranks_count():
    draws = CHAINS["metropolis"]
    torch.testing.assert_close(ess(draws.exp()), ess(draws), rtol=1e-12, atol=0)


def test_ties_share_their_mean_rank():
    """No other rule keeps the answer when the order is turned round."""
    for name in ("metropolis", "rounded", "two values"):
        draws = CHAINS[name]
        for statistic in ALL:
            torch.testing.assert_close(statistic(-draws), statistic(draws), rtol=1e-10, atol=0)


# Edges


def test_constant_draws():
    draws = torch.full((4, 51), 0.1)
    assert ess(draws) == 200 and mcse_mean(draws) == 0 and rhat(draws).isnan()


def test_draws_of_two_values():
    """Half the draws each: all are as far from the median, and there is no folded R-hat."""
    assert rhat(CHAINS["two values"]).item() == pytest.approx(1, abs=0.02)


def test_chains_that_never_move():
    draws = torch.arange(4.0)[:, None].expand(4, 100)
    assert rhat(draws) > 1e6
    assert ess(draws) < 8


@pytest.mark.parametrize(("number", "where"), [(7, 1), (7, 3), (51, 1), (51, 25)])  # in a half, and between the halves
def test_nan_spoils_its_own_quantity_alone(number, where):
    draws = noise(4, number, 3)
    clean = [statistic(draws) for statistic in ALL]
    draws[2, where, 1] = math.nan
    for statistic, expected in zip(ALL, clean):
        values = statistic(draws)
        assert values[1].isnan()
        torch.testing.assert_close(values[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(0, 10), (4, 0), (4, 3), (4, 3, 2), (4, 10, 0)])
def test_nothing_to_estimate(shape):
    for statistic in ALL:
        values = statistic(torch.ones(shape))
        assert values.shape == shape[2:] and values.dtype == torch.float64 and values.isnan().all()


def test_one_chain_has_no_rhat():
    assert rhat(noise(1, 100, 2)).isnan().all()


def test_draws_need_two_dimensions():
    for statistic in ALL:
        with pytest.raises(InputError, match=r"\(100,\).*draws\[None\]"):
            statistic(noise(100))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_computed_in_float64(dtype):
    draws = (100 * autoregressive(0.5, 4, 100, 3)).to(dtype)
    for statistic in ALL:
        torch.testing.assert_close(statistic(draws), statistic(draws.double()), rtol=0, atol=0)


def test_chains_laid_out_otherwise():
    """Views, such as the transposed arrays of a `Chain`, and any number of trailing dimensions."""
    draws = autoregressive(0.5, 4, 100, 3, 2)
    stored = draws.transpose(0, 1).contiguous()
    for statistic in ALL:
        each = [[statistic(draws[:, :, i, j]) for j in range(2)] for i in range(3)]
        torch.testing.assert_close(statistic(stored.transpose(0, 1)), torch.tensor(each, dtype=torch.float64))


def test_never_waits_for_the_device():
    """Tensors without values stop whatever reads one."""
    for statistic in ALL:
        assert statistic(torch.empty(4, 100, 3, 2, device="meta")).shape == (3, 2)
