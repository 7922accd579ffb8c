"""What is in a file of weights, without using it: what ``fewstep inspect`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.denoisers import Generator, load_model
from fewstep.denoisers.model_files import describe_model
from fewstep.errors import UserError
from fewstep.networks import describe_network
from fewstep.networks.kinds.network_files import load_network
from fewstep.system.files import read_tensors
from fewstep.system.ledger import file_digest
from fewstep.zoo import nvidia
from fewstep.zoo.download import local_file


def inspect(source: str | Path) -> dict[str, Any]:
    """A file's kind, size, SHA-256, number of parameters and what else it says: a ``.pkl`` of EDM's
    release (a path or an https address), or a ``.safetensors`` of ours.

    Raises ``UserError`` naming the file when it is neither, or is damaged.
    """
    if str(source).partition("?")[0].endswith(".pkl"):
        found = nvidia.describe(source)
        return {
            "file": str(found.path),
            "kind": f"{found.preconditioning} around {found.network}",
            "shape": list(found.shape),
            "classes": found.classes,
            "parameters": found.parameters,
            "bytes": found.size,
            "sha256": found.sha256,
        }
    path = local_file(source)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: can be inspected when it is a .pkl of NVIDIA's EDM release or a .safetensors that "
            "fewstep wrote; give one of these."
        )
    return {"file": str(path), **_ours(path), "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _ours(path: Path) -> dict[str, Any]:
    _, metadata = read_tensors(path)
    if "network" in metadata:
        network = load_network(path)
        return {
            "kind": describe_network(network)["kind"],
            "network": describe_network(network),
            "parameters": sum(p.numel() for p in network.parameters()),
        }
    model, extra = load_model(path)
    description = describe_model(model)
    shape = list(model.latent_shape if isinstance(model, Generator) else model.shape)
    return {
        "kind": description["kind"],
        "shape": shape,
        "classes": model.classes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": description,
        **extra,
    }
