"""Write files with torch.save as its users do, and what torch.load gives for each, in an environment that has torch.

The first command-line argument is an empty folder. For a file that torch.load reads with weights_only=True, NAME.npz holds
the bytes of its tensors, by name. In refused/ are files of tensors that can't be merged, and the same ones remedied as the
messages say, in remedied/.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

warnings.simplefilter("ignore")
torch.manual_seed(1)
X = torch.randn(6, 4)


def attributed(tensor: torch.Tensor, **attributes: Any) -> torch.Tensor:
    for name, value in attributes.items():
        setattr(tensor, name, value)
    return tensor


def parameter(**attributes: Any) -> torch.Tensor:
    return attributed(torch.nn.Parameter(X.clone()), **attributes)


MODEL = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Conv2d(2, 3, 3))
COMPLEX = torch.randn(3, dtype=torch.complex64)
READ: dict[str, Any] = {
    "parameters": {"w": torch.nn.Parameter(X.clone()), "v": torch.nn.Parameter(X.bfloat16(), requires_grad=False)},
    "parameters_with_state": {"w": parameter(is_norm=True, axes={"x", "y"}, sizes=torch.Size([1, 2]))},
    "attributes": {
        "w": attributed(X.clone(), tags=("a", 1.5, None), device_=torch.device("cuda", 1), dtype_=torch.float16),
        "v": attributed(X.double(), number=1 + 2j, raw=b"y\x80", array=bytearray(b"x\x80"), counts=Counter("aab")),
        "u": attributed(
            X.half(), order=OrderedDict(a=1), keys={1: 2, None: 3, (1, 2): 4, 1.5: 3}, big=2**70, layout_=X.layout
        ),
        "s": attributed(X[1], other=torch.ones(2), sub=parameter(a=1)),
    },
    "float8_with_attributes": {"w": attributed(X.to(torch.float8_e5m2), note="x")},
    "buffer": {"w": torch.nn.Buffer(X.clone())},
    "views": {"a": X, "b": X, "c": X.T, "d": X[1:3, ::2], "e": X[:1].expand(5, 4), "z": X[:0], "s": X[2, 3], "p": X[:, 1:2]},
    "empty": {"a": torch.zeros(0, 3), "b": torch.zeros(3, 0, dtype=torch.bfloat16), "s": torch.tensor(2.0)},
    "integers": {
        name: torch.tensor([1, 250]).to(getattr(torch, name)) for name in ("int8", "uint8", "int16", "int64", "bool")
    },
    "unsigned": {name: torch.tensor([1, 65535]).to(getattr(torch, name)) for name in ("uint16", "uint32", "uint64")},
    "float8": {name: X.to(getattr(torch, name)) for name in ("float8_e5m2", "float8_e4m3fn")},
    "state_dict": MODEL.state_dict(),
    "state_dict_with_parameters": MODEL.state_dict(keep_vars=True),
    "channels_last": {"w": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)},
}
REFUSED: dict[str, Any] = {
    "negative": COMPLEX.conj().imag,
    "conjugate": COMPLEX.conj(),
    "complex": COMPLEX,
    "sparse": torch.eye(3).to_sparse(),
    "compressed": torch.eye(3).to_sparse_csr(),
    "quantized": torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "by_channel": torch.quantize_per_channel(X, torch.ones(6) * 0.1, torch.zeros(6, dtype=torch.long), 0, torch.quint8),
    "meta": torch.empty(3, 3, device="meta"),
    "other_float8": X.to(torch.float8_e4m3fnuz),
    "distributed": X,  # made so in main(), for it needs a process group
}
REMEDIES: dict[str, Any] = {
    "negative": lambda x: x.resolve_conj().resolve_neg(),
    "conjugate": lambda x: torch.view_as_real(x.resolve_conj().resolve_neg()),
    "complex": torch.view_as_real,
    "sparse": lambda x: x.to_dense(),
    "compressed": lambda x: x.to_dense(),
    "quantized": lambda x: x.dequantize(),
    "by_channel": lambda x: x.dequantize(),
    "other_float8": lambda x: x.to(torch.bfloat16),
    "distributed": lambda x: x.full_tensor(),
}


def distributed(tensor: torch.Tensor) -> Any:
    """A tensor that is distributed over one process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("dp",))
    return distribute_tensor(tensor, mesh, [Shard(0)])


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor's elements, in row-major order."""
    whole = tensor.detach().as_subclass(torch.Tensor).contiguous()
    return np.frombuffer(whole.flatten().view(torch.uint8).numpy().tobytes() if whole.numel() else b"", np.uint8)


def save(folder: str, name: str, content: Any, **options: Any) -> str:
    os.makedirs(os.path.join(folder, name))
    file = os.path.join(folder, name, "pytorch_model.bin")
    torch.save(content, file, **options)
    return file


def main(folder: str) -> None:
    for name, content in READ.items():
        for kind, options in {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}.items():
            file = save(folder, f"{name}-{kind}", content, **options)
            # torch itself can't open its old format with dtypes that have no storage class
            newer = kind == "old" and any(value.dtype in torch.storage._new_dtypes() for value in content.values())
            loaded = content if newer else torch.load(file, weights_only=True)
            np.savez(os.path.join(folder, f"{name}-{kind}.npz"), **{key: raw(value) for key, value in loaded.items()})
        for protocol in (3, 4, 5):
            file = save(folder, f"{name}-protocol{protocol}", content, pickle_protocol=protocol)
            loaded = torch.load(file, weights_only=False)
            np.savez(os.path.join(folder, f"{name}-protocol{protocol}.npz"), **{key: raw(x) for key, x in loaded.items()})
    for name, value in {**REFUSED, "distributed": distributed(X)}.items():
        save(os.path.join(folder, "refused"), name, {"w": value, "v": X})
        if name in REMEDIES:
            save(os.path.join(folder, "remedied"), name, {"w": REMEDIES[name](value), "v": X})
            np.savez(os.path.join(folder, "remedied", f"{name}.npz"), w=raw(REMEDIES[name](value)), v=raw(X))


if __name__ == "__main__":
    main(sys.argv[1])
