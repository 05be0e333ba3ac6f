"""Model folder → model and processor."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_llama4.checkpoint.matching import match_tensors, stored_quantization
from mlx_llama4.checkpoint.names import is_ignored
from mlx_llama4.checkpoint.safetensors import Checkpoint, open_checkpoint
from mlx_llama4.config import Config, load_config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.mlx_arrays import STORED_DTYPES
from mlx_llama4.files.safetensors_file import load_safetensors
from mlx_llama4.hub.repository import find_folder
from mlx_llama4.model.cpu_layout import lay_out_for_cpu
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.offload.expert_cache import ExpertCache
from mlx_llama4.offload.expert_store import expert_tensors, is_routed_expert
from mlx_llama4.offload.streamed_experts import StreamedExperts
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import without_absent_vision

OnLoad = Callable[[int, int], None]  # bytes of weights in memory, bytes in all
Prepare = Callable[[Llama4], None]
LOAD_STEP = 256 * 2**20  # bytes; the progress of a load is told so often


def ignore_load(done: int, total: int) -> None:
    pass


def load(
    folder: str | Path,
    dtype: mx.Dtype | None = None,
    streaming: ExpertStreaming | None = None,
    on_load: OnLoad = ignore_load,
    *,
    arrange: bool = True,
    prepare: Prepare | None = None,
) -> tuple[Llama4, Processor]:
    """The model of an MLX folder, its weights in memory, and what turns messages into prompts.

    folder: a path, or OWNER/NAME on the Hugging Face hub, which is downloaded.
    dtype: of activations and of all weights that are not packed. By default float32 on the CPU,
    whose kernels for 16 bits are ten times slower, and the folder's own on a GPU. streaming: leave
    the routed experts on the disk and read them as tokens need them.

    arrange: join queries, keys and values into one projection, and store weights as the device
    multiplies them fastest. False keeps the folder's tensors, name for name, as training and
    adapters need them; the logits differ by rounding only. prepare: is called with the model before
    any weight is read or arranged, and may replace parameters, for example with one rank's part. A
    parameter that it replaces is never read. One that it cuts is read whole, and the whole stays in
    memory unless mx.contiguous copies the part. Wrap modules after the load, not in `prepare`.

    Raises CheckpointError or ConfigError if the folder is incomplete or not what it says, and
    InputError if there is no such folder or `streaming` has not memory enough for one expert.
    """
    folder = find_folder(folder)
    checkpoint, config = _open(folder)
    processor = Processor.load(folder, config)
    model = _load_weights(checkpoint, config, dtype, streaming, arrange, prepare)
    _read_in(model, on_load)
    return model, processor


def open_folder(folder: str | Path) -> tuple[Config, Processor]:
    """All of a model folder but its weights, of which the headers are checked."""
    folder = find_folder(folder)
    _, config = _open(folder)
    return config, Processor.load(folder, config)


def load_model(
    folder: str | Path,
    dtype: mx.Dtype | None = None,
    streaming: ExpertStreaming | None = None,
    on_load: OnLoad = ignore_load,
    *,
    arrange: bool = True,
    prepare: Prepare | None = None,
) -> Llama4:
    """As `load`, for a folder that need have no tokenizer."""
    model = _load_weights(*_open(find_folder(folder)), dtype, streaming, arrange, prepare)
    _read_in(model, on_load)
    return model


def _open(folder: Path) -> tuple[Checkpoint, Config]:
    """The tensors, and the config less a vision tower that the folder does not have."""
    config = load_config(folder)
    checkpoint = open_checkpoint(folder)
    config = without_absent_vision(config, checkpoint.tensors)
    matching = match_tensors(checkpoint, config)
    if config.foreign_quantization or not matching.is_mlx:
        raise CheckpointError(
            f"{folder} is not converted yet; run: mlx-llama4 convert {folder} OUTPUT_FOLDER"
        )
    matching.check(folder)
    return checkpoint, config


def _load_weights(
    checkpoint: Checkpoint,
    config: Config,
    dtype: mx.Dtype | None,
    streaming: ExpertStreaming | None,
    arrange: bool,
    prepare: Prepare | None,
) -> Llama4:
    """The model with the weights of a folder whose tensors are known to match its config; they are
    not read yet.
    """
    dtype = dtype or _default_dtype(config)
    model = Llama4(config)
    if streaming is not None:
        _stream_experts(model, checkpoint, dtype, streaming)

    def packing_of(path: str) -> Quantization | None:
        if f"{path}.scales" not in checkpoint.tensors:
            return None
        return stored_quantization(checkpoint, config, path)

    weights: list[tuple[str, mx.array]] = []
    for file in checkpoint.files:
        for name, array in load_safetensors(file).items():
            if not is_ignored(name) and not (streaming and is_routed_expert(name)):
                is_float = mx.issubdtype(array.dtype, mx.floating)
                weights.append((name, array.astype(dtype) if is_float else array))
    _place(model, weights, packing_of if config.quantization is not None else None)
    if prepare is not None:
        prepare(model)
    if arrange:
        _arrange(model)
    return model


def fill(
    model: Llama4,
    weights: list[tuple[str, mx.array]],
    packing_of: Callable[[str], Quantization | None] | None = None,
) -> None:
    """Give a model all its weights, lazily, laid out as the device that computes likes them.

    weights: by their names in an MLX folder, of one dtype where they are not packed; the list is
    emptied, or what is laid out anew would be in memory twice. packing_of: a module's path → how
    its weight is packed. None: nothing is.
    """
    _place(model, weights, packing_of)
    _arrange(model)


def _place(
    model: Llama4,
    weights: list[tuple[str, mx.array]],
    packing_of: Callable[[str], Quantization | None] | None,
) -> None:
    """Give a model all its weights, lazily, as they are; arguments as for `fill`."""

    def predicate(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        packing = None if packing_of is None else packing_of(path)
        if packing is None:
            return False
        return {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}

    if packing_of is not None:
        nn.quantize(model, class_predicate=predicate)
    model.load_weights(weights)
    weights.clear()
    model.eval()


def _arrange(model: Llama4) -> None:
    """Join projections, and store weights as the device multiplies them fastest; lazily."""
    for layer in model.language_model.model.layers:
        layer.self_attn.join_projections()
    if mx.default_device() == mx.cpu:
        lay_out_for_cpu(model)


def _read_in(model: Llama4, on_load: OnLoad) -> None:
    """Until here weights are names and places in files. Some at a time: on the way somebody may
    see how far it is, or stop it.
    """
    # A list, as no dict to fill is given.
    parameters = cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))
    arrays = [array for _, array in parameters]
    total, done, waiting = sum(array.nbytes for array in arrays), 0, 0
    on_load(0, total)
    start = 0
    for index, array in enumerate(arrays, start=1):
        waiting += array.nbytes
        if waiting >= LOAD_STEP or index == len(arrays):
            mx.eval(arrays[start:index])
            done, waiting, start = done + waiting, 0, index
            on_load(done, total)


def _stream_experts(
    model: Llama4, checkpoint: Checkpoint, dtype: mx.Dtype, streaming: ExpertStreaming
) -> None:
    """Put what reads experts from the shards in their place."""
    text = model.config.text
    tensors = expert_tensors(checkpoint, model.config, STORED_DTYPES[dtype])
    if not tensors:
        return
    model.expert_cache = ExpertCache(tensors, streaming)
    for index, layer in model.expert_cache.layers.items():
        moe = model.language_model.model.layers[index].feed_forward
        moe.experts = StreamedExperts(layer, text.num_experts_per_tok)


def _default_dtype(config: Config) -> mx.Dtype:
    if mx.default_device() == mx.cpu:
        return mx.float32
    named = {"float16": mx.float16, "float32": mx.float32}
    return named.get(config.dtype or "", mx.bfloat16)
