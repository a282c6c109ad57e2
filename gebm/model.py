"""The generalized energy-based model: a latent prior, a base, an energy and the log-partition."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gebm.arguments import check_whole
from gebm.bounded import parse_json
from gebm.checkpoints import newest_checkpoint, read_newest
from gebm.errors import InputError
from gebm.latent import PRIORS, LatentPosterior, Prior, one_a_row
from gebm.manifest import check_file
from gebm.networks import BASES, ENERGIES, FLOWS, DensityRatio
from gebm.networks.common import HasDensity, called, evaluating
from gebm.networks.flows import Flow
from gebm.own_modules import OWN, OwnNetwork, describe, load_weights, make_again, own_network, state_of
from gebm.pretrained import WEIGHTS, Pretrained, write_weights
from gebm.registry import resolve
from gebm.text import hint, show
from gebm.weights import Budget, metadata_of, read_tensors

__all__ = ["GEBM", "Architecture", "read_architecture", "weight_file"]

OF_ROWS = {*FLOWS, "mlp"}  # networks of rows of a table; the others are of images
COARSE = 0.01  # standard deviations by which rows may be rounded
LARGEST = 1 << 20  # number in a stored architecture

Energy = Callable[[Tensor], Tensor]

if TYPE_CHECKING:
    from gebm.data import TableData
    from gebm.samplers import Kernel


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build the networks of a model; stored beside its weights.

    Arguments:
        base, energy: registered name or dotted path `package.module:factory`. For images a base factory is called as
            factory(shape, latent_dim=..., width=...) and an energy factory as factory(shape, width=..., trunc=...); for
            rows of a table as factory(shape, latent_dim=..., width=..., blocks=..., bn=..., dropout=...) and
            factory(shape, width=..., blocks=..., bn=..., dropout=...). A flow as the energy is minus its own
            log-density, relative to the base's (`DensityRatio`).
        shape: of one sample: (C, H, W) of images, (d,) of rows.
        latent_dim: dimension of z.
        prior: 'gaussian' or 'uniform'.
        width: factor on the channel counts, and on the hidden units of the networks of rows.
        trunc: whether image energies have the floor -10.
        blocks, bn, dropout: of the networks of rows: their number of blocks, whether there is batch normalisation
            between them, and the share of hidden units left out in training.

    Example:

        >>> model = GEBM.build(Architecture("nvp", "mlp", shape=(11,), latent_dim=11))
        >>> model.log_prob(model.generate(5)).shape
        torch.Size([5])
    """

    base: str = "sngan"
    energy: str = "sngan"
    shape: tuple[int, ...] = (3, 32, 32)
    latent_dim: int = 100
    prior: str = "gaussian"
    width: float = 1.0
    trunc: bool = True
    blocks: int = 3
    bn: bool = False
    dropout: float = 0.0


class GEBM(Pretrained, nn.Module):
    r"""Generalized energy-based model: :math:`dQ/dG(x) = \exp(-\beta E(x) - A(\beta))`, :math:`x = G(z), z \sim \eta`.

    Arguments:
        base: network G, latents (N, d) -> samples; any module.
        energy: network E, samples -> (N,). Low is likely. A module, or any callable, such as a sum of terms; a critic
            that is high where it is content becomes one by `gebm.critic`.
        prior: latent prior eta, of the dimension d that the base takes.
        architecture: how the networks were built, for models that are to be loaded by themselves.

    Raises:
        InputError: the arguments are in another order.

    The scalar parameter `log_partition` is c, the estimate of A(1) = log E_G[exp(-E)] that training keeps.

    Example:

        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> model = GEBM.build(Architecture("sngan", "sngan", shape=(1, 8, 8), latent_dim=4, width=0.1)).eval()
        >>> model.generate(2).shape, model.energy(model.generate(2)).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2]))
        >>> model.sample(2, steps=3, beta=10.0).shape
        torch.Size([2, 1, 8, 8])

        Of modules that know nothing of gebm, a curve and how its points are to be weighted:

        >>> base, energy = nn.Linear(1, 2), lambda x: x[:, 0].square()
        >>> from gebm.latent import GaussianPrior
        >>> model = GEBM(base, energy, GaussianPrior(1))
        >>> model.posterior(beta=2.0)(torch.zeros(3, 1))[0].shape
        torch.Size([3])
    """

    def __init__(
        self, base: nn.Module, energy: nn.Module | Energy, prior: Prior, architecture: Architecture | None = None
    ):
        super().__init__()
        if not isinstance(prior, Prior):
            raise InputError(
                f"GEBM(base, energy, prior): the prior must be a GaussianPrior, UniformPrior or another Prior, not a "
                f"{type(prior).__name__}"
            )
        self.prior = prior
        self.base = base
        self.energy = cast(nn.Module, energy)
        self.architecture = architecture
        like = self.posterior()._like  # latents are drawn like c
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.log_partition = nn.Parameter(torch.zeros((), dtype=dtype, device=like.device), requires_grad=False)
        self.units: TableData | None = None  # of the columns, of a model of a table that was loaded from its run

    @property
    def built_as(self) -> Architecture:
        """The architecture; ValueError for a model of the user's own modules, which has none."""
        if self.architecture is None:
            raise ValueError("this model is of modules of your own, and was not built by name: see GEBM.build")
        return self.architecture

    @classmethod
    def build(
        cls,
        base: Architecture | str,
        energy: str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> "GEBM":
        """Make the networks of an architecture, freshly initialised, and try them on two latents.

        Arguments:
            base: an architecture, or the name of the base in one.
            energy: the name of the energy; None: that of the base.
            dtype: of the weights.
            options: the other fields of `Architecture`: shape, latent_dim, prior, width, ...

        Raises:
            InputError: unknown name, or a user's network that cannot be made or does not have the stated shapes.

        Example:

            >>> model = GEBM.build("sngan", "dcgan", shape=(1, 28, 28), latent_dim=10, width=0.25)
            >>> model.generate(2).shape
            torch.Size([2, 1, 28, 28])
        """
        a = base if isinstance(base, Architecture) else _architecture(base, energy or base, options)
        if a.prior not in PRIORS:
            raise InputError(f"--latent_noise {a.prior!r}: choose {', '.join(PRIORS)}")
        if a.base in FLOWS and a.prior != "gaussian":
            raise InputError(f"--latent_noise {a.prior}: --g_model {a.base} is a flow of Gaussian noise; leave it out")
        own = {"trunc": a.trunc} if len(a.shape) == 3 else {"blocks": a.blocks, "bn": a.bn, "dropout": a.dropout}
        of_rows = {} if len(a.shape) == 3 else own
        network = _make("--g_model", a.base, BASES, a.shape, latent_dim=a.latent_dim, width=a.width, **of_rows)
        critic = _make("--d_model", a.energy, ENERGIES, a.shape, width=a.width, **own)
        if a.energy in FLOWS:
            critic = _ratio(a, critic, network)
        model = cls(network, critic, PRIORS[a.prior](a.latent_dim), a).to(dtype)
        _check_shapes(model, a)
        return model

    def generate(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples of the base alone, with the graph to its parameters."""
        return called(self.base, self.prior.sample(n, generator, like=self.log_partition), "the base")

    def log_ratio(self, x: Tensor) -> Tensor:
        """Log-density of the model (beta = 1) relative to its base, log dQ/dG(x) = -E(x) - c: (N,)."""
        return -one_a_row(self.energy(x), x, "the energy") - self.log_partition

    @property
    def has_density(self) -> bool:
        """Whether the base has a density, a flow's, and so the model."""
        return isinstance(self.base, HasDensity)

    def log_prob(self, x: Tensor, log_partition: float | Tensor | None = None) -> Tensor:
        r"""Log-density at beta = 1, on a base with a density: :math:`\log q(x) = \log g(x) - E(x) - A`, (N,).

        Networks in training mode with dropout give other values at each call: put the model into `eval()` first.

        Arguments:
            x: samples (N, d).
            log_partition: A = log E_G[exp(-E)]; None: the energy's own where it is known, else c, which is as good as
                the training made it (`gebm.metrics.likelihood` estimates it).

        Raises:
            InputError: the base has no density.
        """
        if not isinstance(self.base, HasDensity):
            raise InputError("log_prob: this base has no density; take a flow (--g_model nvp, maf, ...)")
        if log_partition is None:
            known = getattr(self.energy, "known_log_partition", None)
            log_partition = self.log_partition if known is None else known
        log_g = one_a_row(self.base.log_prob(x), x, "the base's log_prob")
        return log_g - one_a_row(self.energy(x), x, "the energy") - log_partition

    def log_density(self, rows: np.ndarray, log_partition: float | Tensor | None = None, seed: int = 0) -> Tensor:
        """Log-densities (N,), float64, of rows of a table in its own units, whatever units the networks work in.

        The networks are evaluated in evaluation mode, whatever mode they are in, and without gradients.

        Arguments:
            rows: (N, d), the columns `model.units.columns` in that order.
            log_partition: as in `log_prob`.
            seed: of the noise that rows of rounded values get, as those trained on did.

        Raises:
            InputError: the model was not loaded from a run or an export of a table, or the base has no density.
        """
        if self.units is None:
            raise InputError("log_density: the units of the columns are not known; load the model from its run")
        given, rows = np.asarray(rows), np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.units.columns):
            wanted, rest = ", ".join(self.units.columns), self.units.dropped
            left_out = f", without {', '.join(rest.columns):.200}" if rest is not None and rest.columns else ""
            raise InputError(
                f"log_density: rows of shape {rows.shape}; the model's have the columns {wanted:.200}{left_out}"
            )
        if (coarse := self.units.rounded_by(rows, given.dtype)) > COARSE:
            raise InputError(
                f"log_density: rows in {given.dtype}, which rounds some by {coarse:.2g} of a standard deviation; give "
                "them as they were read, in float64"
            )
        x = torch.from_numpy(self.units.with_noise(self.units.whiten(rows), seed)).to(self.log_partition)
        with evaluating(self):
            return self.log_prob(x, log_partition).double() + self.units.log_det

    def posterior(self, beta: float = 1.0) -> LatentPosterior:
        """Latent posterior at inverse temperature beta, of the networks as they are; `.frozen()` is faster."""
        return LatentPosterior(self.prior, self.base, self.energy, beta)

    def sample(
        self,
        n: int,
        kernel: "Kernel | None" = None,
        steps: int = 100,
        beta: float = 1.0,
        schedule: Callable[[int], float] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw n samples x = G(z) with z moved from the prior by a latent sampler (default: Langevin, h = 0.005).

        Raises:
            InputError: n below 1, steps below 0 (both whole numbers), or a beta below 0 or not finite.
        """
        from gebm.samplers import Langevin, run  # here, as the samplers stand above the model

        check_whole(1, n=n)
        check_whole(0, steps=steps)
        target = self.posterior(beta).frozen()
        start = target.start(n, generator)
        chain = run(kernel or Langevin(0.005), target, start, steps, schedule=schedule, generator=generator)
        return target.decode(chain.state.position)

    def save(self, folder: str | Path) -> None:
        """Write `base.safetensors` and `energy.safetensors` (with c), and its units, into a folder.

        The folder is made if it is not there. Beside the weights stands how the networks were built: their
        architecture, or of modules of your own their class (`load` has the rest).

        Raises:
            InputError: the state of a network of your own holds something that is not a tensor.

        Example:

            >>> from gebm.latent import GaussianPrior
            >>> model = GEBM(nn.Linear(2, 3), lambda x: x.square().sum(1), GaussianPrior(2))
            >>> model.save(getfixture("tmp_path") / "mine")
            >>> again = GEBM.load(getfixture("tmp_path") / "mine", base=nn.Linear(2, 3), energy=model.energy)
            >>> torch.equal(again.base.weight, model.base.weight)
            True
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for part, network, tensors in (
            ("base", self.base, state_of(self.base, "base")),
            ("energy", self.energy, self._energy_state()),
        ):
            header = {"gebm": json.dumps(asdict(self.architecture))} if self.architecture else self._own(network)
            write_weights(folder / f"{part}.safetensors", tensors, header)
        if self.units is not None and len(self.units.valid):  # of an export, which has no rows, they stay in it
            from gebm.data.units import save_units  # here, as the data stand above the model

            save_units(Path(folder), self.units)

    @classmethod
    def load(
        cls,
        path: str | Path,
        energy_path: str | Path | None = None,
        *,
        base: nn.Module | Callable[[], nn.Module] | None = None,
        energy: Energy | Callable[[], Energy] | None = None,
        prior: Prior | None = None,
        allow: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> "GEBM":
        """Build a model from its two weight files, or from the one folder that holds both; in evaluation mode.

        Arguments:
            path: the base's weights file, or a folder that holds both; of a run's folder, its newest whole checkpoint.
            energy_path: the same for the energy; None: where the base is.
            base, energy: of modules of your own, the module that the weights are read into, or a function of no
                arguments that makes it. An energy that was a plain function is given as it is. A class that keeps its
                constructor's arguments, as huggingface_hub's `PyTorchModelHubMixin` makes it do, need not be given
                where it is allowed.
            prior: in the place of a prior of your own.
            allow: dotted paths that may be imported. A file's own word is not enough to run code by.
            dtype: of a model built by name; modules of your own keep theirs.

        Raises:
            InputError: a file is missing, damaged, not safetensors, of another architecture, or names networks that are
                neither registered nor allowed, nor given; or the two were trained on different tables, units or splits.
        """
        other = None if energy_path is None or Path(energy_path) == Path(path) else energy_path

        def find() -> tuple[Path, Path]:
            found = _checkpoint_of(path)  # once for both: a run at work may have a newer one a moment later
            return found, found if other is None else _checkpoint_of(other)

        def read(base_path: Path, energy_path: Path) -> "GEBM":
            files = weight_file(base_path, "base"), weight_file(energy_path, "energy")
            stored = own_network(files[0]), own_network(files[1])
            if base is None and energy is None and stored == (None, None):
                return cls._load_pair(base_path, energy_path, allow, dtype)
            networks = [
                make_again(file, part, of_part, network, allow)
                for file, part, of_part, network in zip(files, ("base", "energy"), stored, (base, energy))
            ]
            model = cls(cast(nn.Module, networks[0]), networks[1], prior or _stored_prior(files[0], stored[0], allow))
            model.load_base(base_path)
            model.load_energy(energy_path)
            return model.eval()

        return read_newest(find, read)

    @classmethod
    def _load_pair(cls, base: Path, energy: Path, allow: Collection[str], dtype: torch.dtype) -> "GEBM":
        """The model of two weight files, or of folders that hold them, built by its architecture."""
        ours, theirs = read_architecture(base, "base", allow), read_architecture(energy, "energy", allow)
        if ours.shape != theirs.shape:
            raise InputError(f"{energy}: an energy of {theirs.shape}, and the base {base} makes {ours.shape}")
        budget = Budget({weight_file(base, "base"), weight_file(energy, "energy")})
        if len(ours.shape) == 1:
            budget.spend(*ours.shape, *ours.shape)  # masks of autoregressive networks
        with budget:
            model = cls.build(replace(ours, energy=theirs.energy, trunc=theirs.trunc), dtype=dtype)
        model.load_base(base)
        model.load_energy(energy)
        if len(ours.shape) == 1:
            from gebm.data.units import shared_units  # here, as the data stand above the model

            model.units = shared_units(base, energy)
            if model.units is not None and model.units.shape != ours.shape:
                raise InputError(f"{base}: a model of {ours.shape} rows beside a table of {model.units.shape}")
        return model.eval()

    def load_base(self, path: str | Path) -> None:
        """Take the base's weights from a file, or from a folder that holds `base.safetensors`; errors as in `load`."""
        fields = ("base", "shape", "latent_dim", "prior", "width", "blocks", "bn")
        self._load(path, "base", fields, state_of(self.base, "base"))

    def load_energy(self, path: str | Path) -> None:
        """Take the energy's weights and c from a file or from a folder that holds `energy.safetensors`."""
        self._load(path, "energy", ("energy", "shape", "width", "blocks", "bn"), self._energy_state())

    def whole_state(self) -> dict[str, Tensor]:
        """All tensors as an exported folder's one weights file names them: `base.*`, `energy.*`, `log_partition`."""
        return {**{f"base.{k}": v for k, v in state_of(self.base, "base").items()}, **self._energy_state()}

    def _energy_state(self) -> dict[str, Tensor]:
        state = state_of(self.energy, "energy")
        return {**{f"energy.{k}": v for k, v in state.items()}, "log_partition": self.log_partition}

    def _load_own(self, file: Path, part: str) -> None:
        """Read the weights of a module of the user's own."""
        tensors = _of_part(read_tensors(file), part)
        if part == "base":
            return load_weights(file, part, tensors, self.base)
        c = tensors.pop("log_partition", None)
        if c is None or c.shape != ():
            raise InputError(f"{file}: holds no log_partition, so it is no energy's; give an energy.safetensors")
        load_weights(file, part, {key.removeprefix("energy."): value for key, value in tensors.items()}, self.energy)
        with torch.no_grad():
            self.log_partition.copy_(c)

    def _own(self, network: Energy) -> dict[str, str]:
        """The header of the weights of a module of the user's own."""
        prior = next((name for name, kind in PRIORS.items() if type(self.prior) is kind), None)
        return describe(network, prior, self.prior.dim).header()

    def _load(self, path: str | Path, part: str, fields: tuple[str, ...], state: dict[str, Tensor]) -> None:
        file = weight_file(path, part)
        if self.architecture is None:
            check_file(file)
            return self._load_own(file, part)
        stored = read_architecture(file, part, {self.built_as.base, self.built_as.energy})
        for field in fields:
            have, want = getattr(stored, field), getattr(self.built_as, field)
            if have != want:
                raise InputError(f"{file}: made with {field} {have}, not {want}: give the {part} of that architecture")
        check_file(file)
        tensors = _of_part(read_tensors(file), part)
        own = getattr(stored, part) not in (BASES if part == "base" else ENERGIES)
        wrong = sorted(state.keys() ^ tensors.keys()) or [k for k in state if not _fits(tensors[k], state[k], own)]
        if wrong:
            tensor = show(wrong[0])
            raise InputError(f"{file}: tensor {tensor} does not fit the {part} '{getattr(stored, part)}' it names")
        with torch.no_grad():
            for key, value in state.items():
                value.copy_(tensors[key])


def read_architecture(path: str | Path, part: str, allow: Collection[str] = ()) -> Architecture:
    """The architecture stored in the weights of `part` ('base' or 'energy'): a file, or the folder that holds it.

    Raises:
        InputError: missing or damaged file, one that this project did not write, or one whose network of that part is
            neither registered nor in `allow`.
    """
    file = weight_file(path, part)
    metadata = metadata_of(file)
    if OWN in metadata:
        raise InputError(
            f"{file}: of a module of your own, which no name stands for: load it from Python, with "
            "gebm.GEBM.load(folder, base=..., energy=...)"
        )
    try:
        fields = parse_json(metadata["gebm"])
        fields["shape"] = tuple(fields.pop("image_shape", None) or fields["shape"])  # the name it once had
        stored = Architecture(**fields)
        if not _well_typed(stored):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{file}: no architecture in its header: not a weights file written by gebm") from None
    name = getattr(stored, part)
    if name not in (BASES if part == "base" else ENERGIES) and name not in allow:
        flag = "--g_model" if part == "base" else "--d_model"
        raise InputError(f"{file}: made with {name!r:.80}, which is imported only if you name it: give {flag}")
    return stored


def _well_typed(a: Architecture) -> bool:
    texts = all(isinstance(value, str) for value in (a.base, a.energy, a.prior))
    whole = all(type(value) is int and 0 < value <= LARGEST for value in (a.latent_dim, a.blocks, *a.shape))
    switches = type(a.trunc) is bool and type(a.bn) is bool
    factors = {type(a.width), type(a.dropout)} <= {int, float} and 0 < a.width <= LARGEST and 0 <= a.dropout < 1
    return texts and whole and switches and factors and len(a.shape) in (1, 3)


def _fits(read: Tensor, built: Tensor, own: bool) -> bool:
    """Whether a tensor of a file can stand for the one of a network just built.

    Masks and column numbers, arrays that are not of floats, follow from the architecture; of networks that are not the
    user's own they must be the same, as a number out of range would fail only when it is used.
    """
    kinds = ((t.shape, t.is_floating_point(), t.is_complex()) for t in (read, built))
    alike = next(kinds) == next(kinds)
    planned = built.ndim > 0 and not built.is_floating_point() and not own
    return alike and (not planned or torch.equal(read.to(built.dtype), built.cpu()))


def _architecture(base: str, energy: str, options: dict[str, Any]) -> Architecture:
    """The architecture of those names; InputError for an option that is no field of it."""
    allowed = [field.name for field in fields(Architecture) if field.name not in ("base", "energy")]
    if unknown := sorted(options.keys() - set(allowed)):
        raise InputError(
            f"GEBM.build: {unknown[0]} is no option; choose {', '.join(allowed)}{hint(unknown[0], allowed)}"
        )
    return Architecture(base, energy, **options)


def _stored_prior(file: Path, stored: OwnNetwork | None, allow: Collection[str]) -> Prior:
    """The prior that the weights of a base were saved with."""
    if stored is None:
        architecture = read_architecture(file, "base", allow)
        return PRIORS[architecture.prior](architecture.latent_dim)
    if stored.prior not in PRIORS or not 0 < stored.latent_dim <= LARGEST:
        raise InputError(f"{file}: its prior is of your own: give prior=")
    return PRIORS[stored.prior](stored.latent_dim)


def _make(flag: str, name: str, registry: dict[str, Any], shape: tuple[int, ...], **arguments: object) -> nn.Module:
    """Call the factory of that name."""
    if name in registry and (name in OF_ROWS) != (len(shape) == 1):
        kind, fitting = ("rows of a table", OF_ROWS) if len(shape) == 1 else ("images", registry.keys() - OF_ROWS)
        named = ", ".join(sorted(fitting & registry.keys()))
        raise InputError(f"{flag} {name}: is no network of {kind} {shape}; choose {named} or package.module:factory")
    factory = resolve(name, registry, flag)
    try:
        network = factory(shape, **arguments)
    except TypeError as error:
        call = f"factory(shape, {', '.join(f'{argument}=...' for argument in arguments)})"
        raise InputError(f"{flag} {name}: must be callable as {call} ({error})") from None
    if not isinstance(network, nn.Module):
        raise InputError(f"{flag} {name}: must return a torch module, not {type(network).__name__}")
    return network


def _ratio(a: Architecture, flow: nn.Module, base: nn.Module) -> nn.Module:
    """A flow as the energy of a base that has a density."""
    if not isinstance(base, HasDensity):
        raise InputError(f"--d_model {a.energy}: as an energy it needs a base with a density: take a flow as --g_model")
    return DensityRatio(cast(Flow, flow), base)


def _of_part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part, by their names in a file of its own, where the file holds both."""
    if not {"base", "energy", "log_partition"} <= {key.partition(".")[0] for key in tensors}:
        return tensors
    if part == "base":
        return {key.removeprefix("base."): value for key, value in tensors.items() if key.startswith("base.")}
    return {key: value for key, value in tensors.items() if not key.startswith("base.")}


def _checkpoint_of(path: str | Path) -> Path:
    """The newest whole checkpoint of a run; any other path as it is, a folder with weights of its own too."""
    if (Path(path) / "base.safetensors").is_file():
        return Path(path)
    return (newest_checkpoint(path) if Path(path).is_dir() else None) or Path(path)


def weight_file(path: str | Path, part: str) -> Path:
    """The file that holds the weights of `part` ('base' or 'energy'), of its own path or a folder's."""
    path = Path(path)
    file = path / f"{part}.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / WEIGHTS).is_file():
        return path / WEIGHTS  # an exported folder
    if not file.is_file():
        raise InputError(
            f"{file}: no such file: give a {part}.safetensors, or a run, checkpoint or export that holds one"
        )
    return file


def _check_shapes(model: GEBM, a: Architecture) -> None:
    """Try a freshly built pair on two latents, so that a user's network of the wrong shape is named at once."""
    with evaluating(model):
        try:
            x = model.generate(2, torch.Generator().manual_seed(0))
        except InputError as error:
            raise InputError(f"--g_model {a.base}: {error}; its latent_dim is --Z_dim {a.latent_dim}") from error
        if x.shape != (2, *a.shape):
            shape = tuple(x.shape[1:])
            raise InputError(f"--g_model {a.base}: made samples of shape {shape}, the data have {a.shape}")
        try:
            e = called(model.energy, x, "the energy")
        except InputError as error:
            raise InputError(f"--d_model {a.energy}: {error}") from error
        if e.shape != (2,):
            shape = tuple(e.shape)
            raise InputError(f"--d_model {a.energy}: gave energies of shape {shape} for 2 samples, (2,) is needed")
