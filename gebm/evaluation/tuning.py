"""Choosing how a pair is sampled, on training data."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gebm.arguments import check_whole
from gebm.data.given import as_items, note_on_levels, seen
from gebm.errors import InputError
from gebm.evaluation.features import features_of
from gebm.memory import rows_that_fit
from gebm.metrics import Extractor, Moments, frechet_distance
from gebm.model import GEBM
from gebm.networks.common import modes_kept
from gebm.samplers import Kernel, NonFiniteError
from gebm.samples import Setting, kernel_of
from gebm.sampling import Observer, as_made, draw
from gebm.seeds import stream

__all__ = ["tune"]

log = logging.getLogger("gebm")

REAL = 5000  # training samples that settings are compared on


def tune(
    model: GEBM,
    data: Any,
    *,
    sampler: str | Kernel = "langevin",
    betas: Sequence[float] = (1.0, 3.0, 10.0, 30.0),
    step_sizes: Sequence[float] = (0.05, 0.015, 0.005),
    max_steps: int = 40,
    n: int = 1000,
    features: Extractor | str | None = None,
    seed: int = 0,
) -> Setting:
    """Choose beta, step size and the number of steps with the least Fréchet distance to training data.

    All chains of a setting are looked at eleven times on their way, so a setting is judged at its best moment. What is
    found are *refined samples*: at another beta than 1, or after few steps, they are no draws from the model
    (`Samples.are_draws`). Judge them on other features and other data than they were chosen on: `gebm.evaluate` does.

    Arguments:
        model: the pair, tried in evaluation mode and left in its own.
        data: training data, of any kind that `gebm.fit` takes.
        sampler, betas, step_sizes, max_steps: what is tried, each with each.
        n: chains of a setting.
        features: one set of features; None: pixels averaged to 8 x 8 for images, values for other data.
        seed: of the latents, which are the same for all settings.

    Raises:
        InputError: an unknown sampler or features, data of another shape than the base makes, or fewer than two of
            them.
        NonFiniteError: no setting gave finite potentials.

    Example:

        >>> import gebm
        >>> from torch import nn
        >>> model = gebm.GEBM(nn.Identity(), lambda x: (x - 1).square().sum(1) / 2, gebm.GaussianPrior(2))
        >>> data = 0.9 + 0.3 * torch.randn(500, 2)  # narrower than the model, and further out
        >>> setting = tune(model, data, betas=[1, 10], step_sizes=[0.05], n=200)
        >>> setting.beta, setting.sampler
        (10, 'langevin')
    """
    items = as_items(data)
    if len(items) < 2:
        raise InputError("data: a distance needs at least 2 samples")
    check_whole(1, n=n)
    check_whole(0, max_steps=max_steps, seed=seed)
    if not len(betas) or not len(step_sizes):
        raise InputError("betas and step_sizes: must hold at least one value each")
    with modes_kept(model):
        return _best(model.eval(), items, features, sampler, betas, step_sizes, max_steps, n, stream(seed, "tune"))


def _best(
    model: GEBM,
    items: Any,
    features: Extractor | str | None,
    sampler: str | Kernel,
    betas: Sequence[float],
    step_sizes: Sequence[float],
    max_steps: int,
    n: int,
    seed: int,
) -> Setting:
    """The setting of the least distance, by latents of their own: those of later samples have not chosen it."""
    posterior = model.posterior().frozen()
    if rows := rows_that_fit(posterior, min(n, 1000)):
        posterior = model.posterior().frozen(rows=rows)
    made = posterior.decode(posterior.start(64, torch.Generator(posterior.device).manual_seed(seed)))
    if made.shape[1:] != tuple(items.shape[1:]):
        raise InputError(f"data: of shape {tuple(items.shape[1:])}, the base makes {tuple(made.shape[1:])}")
    if note := note_on_levels(items, made):
        log.warning("tune: %s", note)
    chosen = features_of(items, features)[0]
    order = np.random.default_rng(seed).permutation(len(items))[:REAL]
    reference = Moments.of(chosen.of(seen(items, torch.from_numpy(order))))
    looks = sorted({round(max_steps * i / 10) for i in range(11)})
    tried: dict[tuple[float, float, int], float] = {}
    for beta in betas:
        for step_size in step_sizes:
            observer = Observer(lambda x: chosen.of(torch.from_numpy(x)), looks, convert=as_made)
            try:
                draw(posterior.at(beta), kernel_of(sampler, step_size), n, max_steps, seed=seed, observer=observer)
            except NonFiniteError:
                continue
            for step, found in observer.features().items():
                tried[beta, step_size, step] = frechet_distance(Moments.of(found), reference)
    if not tried:
        raise NonFiniteError("no setting of the sampler gave finite potentials: the energy has diverged")
    beta, step_size, steps = min(tried, key=tried.__getitem__)
    return Setting(sampler=sampler, beta=beta, step_size=step_size, steps=steps, warm_up=0)
