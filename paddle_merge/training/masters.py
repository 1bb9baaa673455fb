"""Put merged weights in place of the float32 master weights that an optimizer keeps of 16-bit weights.

Where they are: in optimizer*.pdopt under "master_weights", by the names of parameters; in master_weights*.safetensors of
unified checkpoints, by the names of weights; in master_weight/ of flex checkpoints, with ".w_0" behind these names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from ..checkpoints.open import open_checkpoint
from ..checkpoints.tensors import TensorEntry
from ..errors import WorkError
from ..recipe.config import MergeConfig
from ..run.merge import merge
from . import flex
from .checkpoints import copy, state_of
from .unified import write_index

_INDEX = "master_weights.safetensors.index.json"
_SUFFIX = ".w_0"


def replace(output: str, like: str, form: str, fields: Mapping[str, Any], model: Any) -> None:
    """Write the master weights of a checkpoint that is otherwise complete, or not, if the last one has none.

    output: the folder, which has a copy of all else of the checkpoint `like`, of this form. fields: of the merge, with the
    output_layout of the library's models and inputs as exact as they are: masters are not rounded to 16 bits.
    Raises WorkError if the last checkpoint's masters aren't those of whole weights.
    """
    if form == "flex":
        _flex(output, like, fields)
    elif os.path.exists(os.path.join(like, _INDEX)):
        _unified(output, fields)
    for name in os.listdir(output):
        if name.startswith("optimizer") and name.endswith(".pdopt"):
            _pdopt(os.path.join(output, name), fields, model)


def _merged(folder: str, fields: Mapping[str, Any], **more: Any) -> None:
    merge(MergeConfig(**{**fields, **more, "out_dtype": "float32", "output_path": folder}), progress=False)


def _flex(output: str, like: str, fields: Mapping[str, Any]) -> None:
    import paddle

    source, folder = os.path.join(like, "master_weight"), os.path.join(output, "master_weight")
    if not os.path.isdir(source):
        return
    names = [name for name in os.listdir(source) if name.endswith(".metadata")]
    wanted = {key for name in names for key in paddle.load(os.path.join(source, name)).state_dict_metadata}
    if not wanted:
        copy(source, folder)  # with metadata that lists nothing, without which the Trainer doesn't resume
        return
    own = f"{output}.masters"
    _merged(own, fields, save_format="pdparams", max_shard_size="2GB")
    entries = open_checkpoint(own, "model").tensors
    if missing := sorted(name for name in wanted if name.removesuffix(_SUFFIX) not in entries):
        raise WorkError(f"{like}: master weight {missing[0]!r} is of no weight that is merged")
    os.makedirs(folder)
    held: dict[str, tuple[TensorEntry, str]] = {}
    for number, file in enumerate(flex.weights_files(own)):
        name = f"{number}_0.distcp"
        kept = {key + _SUFFIX: tensor for key, tensor in paddle.load(file).items() if key + _SUFFIX in wanted}
        paddle.save(kept, os.path.join(folder, name))
        held |= {key: (entries[key.removesuffix(_SUFFIX)], name) for key in kept}
    flex.write_metadata(folder, held)
    shutil.rmtree(own)


def _unified(output: str, fields: Mapping[str, Any]) -> None:
    own, file = f"{output}.masters", os.path.join(output, "master_weights-00001-of-00001.safetensors")
    _merged(own, fields, max_shard_size="1000TB")
    os.rename(os.path.join(own, "model.safetensors"), file)
    write_index(file, os.path.join(output, _INDEX))
    shutil.rmtree(own)


def _pdopt(file: str, fields: Mapping[str, Any], model: Any) -> None:
    """Replace the masters in a file of an optimizer's state, which is read as a whole."""
    import paddle

    state = paddle.load(file)
    if not state.get("master_weights"):
        return
    own = f"{file}.masters"
    _merged(own, fields, save_format="pdparams", max_shard_size="1000TB")
    merged = {key: tensor for part in flex.weights_files(own) for key, tensor in paddle.load(part).items()}
    by_parameter = {parameter.name: merged[name] for name, parameter in state_of(model).items() if name in merged}
    for name, master in state["master_weights"].items():
        if name not in by_parameter:
            raise WorkError(f"{file}: master weight {name!r} is of no weight that is merged")
        if by_parameter[name].shape != master.shape:
            raise WorkError(f"{file}: master weight {name!r} is a part of one that is merged")
        state["master_weights"][name] = by_parameter[name]
    paddle.save(state, file)
    shutil.rmtree(own)
