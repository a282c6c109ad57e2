"""Toy distributions in two and three dimensions with exact samples, and densities where there is one in closed form.

Line and flower are those of M. Arbel, L. Zhou and A. Gretton, Generalized energy based models (ICLR 2021): their mass
lies on a curve and on a surface, unevenly, so a model must find both the support and the mass on it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gebm.data.csv_files import numbered
from gebm.data.table_files import Table
from gebm.errors import InputError
from gebm.seeds import stream
from gebm.text import hint

__all__ = ["TOYS", "Toy", "flower_energy", "flower_surface", "table"]

ROWS = 5000
LINE_POWER = 3  # density of the line's parameter: 3 t^2 on [0, 1]
RINGS, RING_WIDTH = (1.0, 2.0, 3.0), 0.1
MOON_WIDTH, MOON_NODES = 0.1, 64
ARMS, ARM_RADIUS, ARM_WIDTHS, ARM_TWIST = 5, 2.0, (0.5, 0.15), 0.6
FLOWER_RADIUS = 4.0  # largest


@dataclass(frozen=True)
class Toy:
    """A distribution on R^dim, dim 2 or 3.

    Attributes:
        sample: sample(n, generator) draws float32 (n, dim).
        log_density: of points (n, dim), in nats, (n,); None where the mass lies on a curve or surface.
        bounds: of a plot, the lowest and highest value on each axis.

    Example:

        >>> moons = TOYS["moons"]
        >>> x = moons.sample(1000, torch.Generator().manual_seed(0))
        >>> round(float(-moons.log_density(x).mean()))  # its entropy, nats
        1
    """

    name: str
    dim: int
    sample: Callable[[int, torch.Generator | None], Tensor]
    log_density: Callable[[Tensor], Tensor] | None
    bounds: tuple[tuple[float, float], ...]


def table(name: str, seed: int) -> Table:
    """5,000 rows of a toy, drawn by the seed, to be left as they are; raises InputError if there is none."""
    if name not in TOYS:
        raise InputError(f"--dataset toy:{name}: choose {', '.join(TOYS)}{hint(name, TOYS)}")
    toy = TOYS[name]
    rows = toy.sample(ROWS, torch.Generator().manual_seed(stream(seed, "toy")))
    return Table(numbered(toy.dim), rows.double().numpy(), named=False, whiten=False)


def _line(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Points (4 t - 2, sin 2 pi t) of a curve, t with density 3 t^2 on [0, 1]."""
    t = torch.rand(n, generator=generator) ** (1 / LINE_POWER)
    return torch.stack([4 * t - 2, torch.sin(2 * math.pi * t)], 1)


def flower_surface(directions: Tensor) -> Tensor:
    """Points r(u) u of the surface, r(u) = sum_i (u_i + u_i^4)^2, from unit vectors u, (n, 3)."""
    return (directions + directions**4).square().sum(1, keepdim=True) * directions


def flower_energy(x: Tensor) -> Tensor:
    """A(x) of points (n, 3), a fixed random net, (n,): the flower's mass is proportional to exp(-A(r(u) u)) du."""
    w, b, v = (array.to(x) for array in _flower_weights())
    return nn.functional.leaky_relu(x @ w.T + b, 0.2) @ v


def _flower_weights() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.RandomState(0)  # the legacy generator's stream never changes
    w, b, v = (torch.from_numpy(rng.randn(*shape)) for shape in ((3, 3), (3,), (3,)))
    return w, b, v


def _flower(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform directions, kept with probability exp(A_min - A(x)), A_min a bound on the ball around the surface."""
    w, b, v = _flower_weights()
    reach = FLOWER_RADIUS * w.norm(dim=1)
    ends = nn.functional.leaky_relu(torch.stack([b - reach, b + reach]), 0.2) * v  # each unit is monotone
    least = ends.amin(0).sum()
    kept, missing = [], n
    while missing > 0:
        u = nn.functional.normalize(torch.randn(max(4 * n, 1000), 3, generator=generator), dim=1)
        x = flower_surface(u)
        accepted = torch.rand(len(x), generator=generator) < torch.exp(least - flower_energy(x.double()))
        kept.append(x[accepted])
        missing -= len(kept[-1])
    return torch.cat(kept)[:n]


def _rings(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Angle uniform; radius normal around that of a ring, taken in proportion to its radius."""
    radii = torch.tensor(RINGS)
    ring = radii[torch.multinomial(radii, n, replacement=True, generator=generator)]
    radius = ring + RING_WIDTH * torch.randn(n, generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _rings_log_density(x: Tensor) -> Tensor:
    radius: Tensor = x.norm(dim=1)
    radii = torch.tensor(RINGS).to(x)
    rings = (radii / radii.sum()).log() + _log_normal(radius[:, None] - radii, RING_WIDTH)
    return rings.logsumexp(1) - (2 * math.pi * radius).log()


def _moon_centres(t: Tensor, lower: Tensor) -> Tensor:
    """The upper half circle around (0, 0) or the lower one around (1, 0.5), both of radius 1, t in [0, pi]."""
    x = torch.where(lower, 1 - t.cos(), t.cos())
    return torch.stack([x, torch.where(lower, 0.5 - t.sin(), t.sin())], -1)


def _moons(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on two half circles, with normal noise."""
    t = math.pi * torch.rand(n, generator=generator)
    lower = torch.rand(n, generator=generator) < 0.5
    return _moon_centres(t, lower) + MOON_WIDTH * torch.randn(n, 2, generator=generator)


def _moons_log_density(x: Tensor) -> Tensor:
    """The arcs convolved with the noise, by Gauss-Legendre quadrature along them."""
    nodes, weights = (torch.from_numpy(a).to(x) for a in np.polynomial.legendre.leggauss(MOON_NODES))
    t = (nodes + 1) * math.pi / 2
    centres = torch.cat([_moon_centres(t, torch.full_like(t, lower, dtype=torch.bool)) for lower in (False, True)])
    logs = _log_normal(x[:, None] - centres, MOON_WIDTH).sum(2)
    return (logs + (weights / 4).log().repeat(2)).logsumexp(1)  # weights sum to 2, over two arcs


def _twist(x: Tensor, sign: int) -> Tensor:
    """Turns each point by an angle in proportion to its distance from 0, which keeps volumes."""
    angle = sign * ARM_TWIST * x.norm(dim=-1)
    return _rotate(x, angle)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


def _pinwheel(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Normal blobs, long along the radius, at equal angles, twisted."""
    blob = torch.randn(n, 2, generator=generator) * torch.tensor(ARM_WIDTHS) + torch.tensor([ARM_RADIUS, 0.0])
    arm = torch.randint(ARMS, (n,), generator=generator)
    return _twist(_rotate(blob, arm * (2 * math.pi / ARMS)), 1)


def _pinwheel_log_density(x: Tensor) -> Tensor:
    back = torch.arange(ARMS).to(x) * (-2 * math.pi / ARMS)
    blobs = _rotate(_twist(x, -1)[:, None], back)
    along, across = blobs.unbind(-1)
    logs = _log_normal(along - ARM_RADIUS, ARM_WIDTHS[0]) + _log_normal(across, ARM_WIDTHS[1])
    return logs.logsumexp(1) - math.log(ARMS)


def _log_normal(x: Tensor, std: float) -> Tensor:
    return -0.5 * (x / std).square() - math.log(std * math.sqrt(2 * math.pi))


TOYS: dict[str, Toy] = {
    toy.name: toy
    for toy in (
        Toy("line", 2, _line, None, ((-2.5, 2.5), (-1.5, 1.5))),
        Toy("flower", 3, _flower, None, ((-2.5, 4.5),) * 3),
        Toy("moons", 2, _moons, _moons_log_density, ((-1.5, 2.5), (-1.0, 1.5))),
        Toy("rings", 2, _rings, _rings_log_density, ((-3.5, 3.5),) * 2),
        Toy("pinwheel", 2, _pinwheel, _pinwheel_log_density, ((-4.0, 4.0),) * 2),
    )
}
