"""Chains of several samplers, in as many processes as are launched: every draw of process r into a file of its own."""

import sys

import numpy as np
import torch

from gebm import parallel
from gebm.model import GEBM, Architecture
from gebm.samplers import MALA, SMC, KineticLangevin, Langevin, NonFiniteError
from gebm.sampling import Observer, draw


def main(out: str) -> None:
    parallel.join(cpu=True)
    torch.manual_seed(0)
    target = GEBM.build(Architecture("dcgan", "dcgan", (1, 8, 8), latent_dim=4, width=0.1)).posterior(5.0).frozen()
    cases = {
        "langevin": (Langevin(0.05), {"n": 23}),  # five chunks, the last of three
        "one chunk": (KineticLangevin(0.2, 1.0), {"n": 4}),
        "tuned": (MALA(0.1), {"n": 12, "warm_up": 6, "precondition": True}),
        "populations": (SMC(0.1), {"n": 15, "steps": 60}),
        "no steps": (Langevin(0.05), {"n": 8, "steps": 0}),
    }
    found: dict[str, object] = {}
    for name, (kernel, options) in cases.items():
        observer = Observer(images=lambda images: torch.tensor(images).flatten(1).double(), images_at=(0, 8))
        steps = options.pop("steps", 8)
        draws = draw(target, kernel, steps=steps, chunk=5, seed=3, observer=observer, **options)
        for field in ("start", "images", "latents", "energies_start", "energies", "acceptance", "nonfinite"):
            found[f"{name}/{field}"] = np.asarray(getattr(draws, field))
        found[f"{name}/step_size"] = np.asarray(draws.kernel.step_size)
        found[f"{name}/log_partition"] = np.asarray(draws.log_partition or ())
        found[f"{name}/diagnostics"] = np.asarray(draws.diagnostics)
        found |= {f"{name}/seen at {step}": np.asarray(x) for step, x in observer.features().items()}
        found |= {f"{name}/energies at {step}": np.asarray(torch.cat(e)) for step, e in observer.energies.items()}
    begin = target.start

    def broken(n: int, generator: torch.Generator) -> torch.Tensor:
        return begin(n, generator) * (float("nan") if n == 3 else 1)  # the last chunk alone

    target.start = broken
    try:
        draw(target, Langevin(0.05), 8, 4, chunk=5)
    except NonFiniteError as error:
        found["error"] = np.asarray(str(error))
    np.savez(f"{out}.{parallel.rank()}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
