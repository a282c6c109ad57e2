"""ONNX files of a model's networks, for inference without PyTorch."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gebm.errors import InputError
from gebm.files import atomic_folder
from gebm.model import GEBM
from gebm.networks.common import HasDensity
from gebm.networks.flows import MixtureMAF
from gebm.networks.folding import Original, copied
from gebm.pretrained import CONFIG, NONE, check_new, configuration

__all__ = ["TOLERANCE", "check_packages", "export_onnx"]

# Largest difference between onnxruntime and torch, relative to 1 or the value. float32 rounds in another order; in
# float64 the exporter still writes the numbers that stand in the code as float32.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
BISECTION = (
    "samples of a mogmaf are found by bisection on log_ndtr, the logarithm of the normal distribution function, which "
    "ONNX has no operator for; sample with gebm"
)
TRIED = (1, 2, 7)  # batch sizes, none that of the export but one
BATCH = 2  # of the export; 0 and 1 would be taken for constants


def check_packages() -> None:
    """Raise InputError unless the packages that write ONNX are there."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs {' and '.join(missing)}: pip install 'gebm[onnx]'")


def export_onnx(model: GEBM, folder: str | Path, about: Mapping[str, Any] = NONE) -> list[str]:
    """Write `base.onnx`, `energy.onnx` and `config.json` into a new folder; returns a line about each file.

    `base.onnx` maps latents `z` (N, d) to `samples`, `energy.onnx` samples to `energy` (N,); where the base has a
    density, `log_prob.onnx` gives that, `log_prob` (N,): the model's is log_prob - energy - A. N is free. Norms are
    folded in. Each file is compared with torch on other batches where onnxruntime is installed. Of a `mogmaf` there is
    no `base.onnx`.

    Raises:
        InputError: a package is missing, the folder exists, a network has an operation that ONNX lacks, or a file gives
            other values than torch by more than `TOLERANCE`.
    """
    check_packages()
    folder = Path(folder)
    check_new(folder)
    target = model.posterior().frozen()
    base, energy = cast(nn.Module, target.base), cast(nn.Module, target.energy)
    plain_base, plain_energy = copied(model.base), copied(model.energy)
    for name, network in (("base", base), ("energy", energy)):
        if isinstance(network, Original):
            raise InputError(
                f"{name}.onnx: a copy of this network computes something else; set no forward on instances"
            )
    generator = torch.Generator().manual_seed(0)
    like = model.log_partition.detach()

    def latents(n: int) -> Tensor:
        return model.prior.sample(n, generator, like=like)

    def samples(n: int) -> Tensor:
        with torch.no_grad():
            x: Tensor = base(latents(n))
            return x

    files = [
        ("base", base, plain_base, latents, "z", "samples"),
        ("energy", energy, plain_energy, samples, "samples", "energy"),
    ]
    if model.has_density:
        files.append(("log_prob", _LogProb(base), _LogProb(plain_base), samples, "samples", "log_prob"))
    lines = []
    with atomic_folder(folder, new=True) as temporary:
        for name, network, plain, inputs, takes, gives in files:
            if network is base and isinstance(model.base, MixtureMAF):
                lines.append(f"{name}.onnx: not written: {BISECTION}")
                continue
            file = temporary / f"{name}.onnx"
            _export(network, inputs(BATCH), file, takes, gives)
            lines.append(_compared(plain, [inputs(n) for n in TRIED], file))
        config = json.dumps(configuration(model, about), indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / CONFIG).write_text(config + "\n", encoding="utf-8")
    return lines


class _LogProb(nn.Module):
    """A flow's log-density as a forward pass."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return cast(HasDensity, self.flow).log_prob(x)


def _export(network: nn.Module, x: Tensor, file: Path, takes: str, gives: str) -> None:
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            program = program.run_decompositions(_decompositions())
            onnx = torch.onnx.export(
                program, (x,), dynamo=True, input_names=[takes], output_names=[gives], verbose=False
            )
            assert onnx is not None  # as it is with dynamo
            onnx.save(file)
    except Exception as error:  # of tracing, of the conversion: no common class
        raise InputError(f"{file.name}: ONNX cannot express this network ({_reason(error)})") from None


def _decompositions() -> dict[Any, Any]:
    """Torch's own, and one for what ONNX has no operator for."""
    return torch.export.default_decompositions() | {torch.ops.aten.linalg_solve_triangular.default: _solve_triangular}


def _solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """Forward substitution, row by row."""
    if upper or not left or unitriangular:
        raise NotImplementedError("linalg_solve_triangular other than a lower triangle from the left")
    rows: list[Tensor] = []
    for i in range(a.shape[-1]):
        rest = b[..., i, :]
        for j, solved in enumerate(rows):
            rest = rest - a[..., i, j, None] * solved
        rows.append(rest / a[..., i, i, None])
    return torch.stack(rows, -2)


def _compared(network: nn.Module, inputs: list[Tensor], file: Path) -> str:
    """A line on how far onnxruntime is from torch."""
    if find_spec("onnxruntime") is None:
        return f"{file.name}: not compared with torch, onnxruntime is not installed (pip install 'gebm[onnx]')"
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst, name = 0.0, session.get_inputs()[0].name
    for x in inputs:
        with torch.no_grad():
            want = network(x)
        have = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        if have.shape != want.shape:
            raise InputError(f"{file.name}: onnxruntime gives {tuple(have.shape)}, torch {tuple(want.shape)}")
        worst = max(worst, float(((have - want).abs() / want.abs().clamp(min=1)).max()))
    if not worst <= TOLERANCE[inputs[0].dtype]:
        raise InputError(
            f"{file.name}: onnxruntime differs from torch by {worst:.1e}, more than {TOLERANCE[inputs[0].dtype]:.0e}"
        )
    return f"{file.name}: within {worst:.1e} of torch (onnxruntime, batches of {', '.join(map(str, TRIED))})"


def _reason(error: Exception) -> str:
    """The root cause in a line: the exporter's own messages are pages of advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, of packages it does not need here and of its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
