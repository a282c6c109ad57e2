"""The Inception network of the published FID, as torch-fidelity carries it over from TensorFlow (extra `inception`)."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from gebm.bounded import open_regular
from gebm.errors import InputError

__all__ = ["Inception", "download"]

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(nn.Module):
    """Maps uint8 images (B, C, H, W), C = 1 or 3, to features (B, 2048) of the classifier of ImageNet.

    Grey images are repeated in the three channels. The network itself resizes to 299 x 299, bilinearly as TensorFlow 1
    did, without antialiasing; it is run in float32.

    Reference: Heusel et al., *GANs trained by a two time-scale update rule*, arXiv 1706.08500.

    Attributes:
        key: the hash of the weights file.
        published: whether it is the published file; only then are the distances called FID and KID.
        name: "inception", with the start of the hash where the file is another.
    """

    def __init__(self, network: nn.Module, sha256: str):
        super().__init__()
        self.network = network
        self.published = sha256 == SHA256
        self.name = "inception" if self.published else f"inception-{sha256[:8]}"
        self.key = f"inception {sha256}"

    @classmethod
    def from_file(cls, path: str | Path) -> Inception:
        """Reads a state dict in torch-fidelity's layout; runs no code in it.

        Raises:
            InputError: torch-fidelity is not installed; no such file, not a file of tensors, or of another network.
        """
        network = _network_class()
        try:
            with open_regular(path) as stream:
                data = stream.read()
        except OSError as error:
            raise InputError(f"{path}: cannot read the inception weights ({error.strerror})") from error
        try:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # torch-fidelity would run code
            built = network("inception-v3-compat", ["2048"], feature_extractor_weights_path=io.BytesIO(data))
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
            expected = Path(urlsplit(URL).path).name
            raise InputError(f"{path}: damaged, or not torch-fidelity's Inception weights ({expected})") from error
        return cls(built, hashlib.sha256(data).hexdigest()).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)[0]
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Class logits (B, 1008) of features, without the bias, as the published Inception score takes them."""
        weight = self.network.get_parameter("fc.weight")
        return features.to(weight) @ weight.T


def download(folder: str | Path) -> Path:
    """The published weights file in a folder, downloaded (96 MB, sha256 checked) if it is not there.

    Raises:
        InputError: torch-fidelity is not installed, or the download fails.
    """
    import pooch

    _network_class()
    try:
        return Path(pooch.retrieve(URL, f"sha256:{SHA256}", Path(urlsplit(URL).path).name, folder, progressbar=True))
    except (OSError, ValueError) as error:  # network and disk errors; a wrong hash
        raise InputError(
            f"features inception: the download of their weights failed ({' '.join(str(error).split())}); "
            f"fetch {URL} and give it as --inception_weights FILE"
        ) from error


def _network_class() -> type[nn.Module]:
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter beside a torch it was not built for
        why = " ".join(str(error).split())
        raise InputError(
            f"features inception: torch-fidelity or its torchvision cannot be imported ({why}); "
            "pip install 'gebm[inception]'"
        ) from error
    network: type[nn.Module] = FeatureExtractorInceptionV3
    return network
