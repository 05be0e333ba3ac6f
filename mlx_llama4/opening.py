"""Model folder → model and processor."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_llama4.checkpoint.identity import Identity, model_digest
from mlx_llama4.checkpoint.matching import stored_quantization
from mlx_llama4.checkpoint.names import is_ignored
from mlx_llama4.checkpoint.open import Source, open_with_config
from mlx_llama4.checkpoint.safetensors import Checkpoint
from mlx_llama4.checkpoint.whole import whole_weights
from mlx_llama4.config import Config, GenerationConfig, load_generation_config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.mlx_arrays import STORED_DTYPES
from mlx_llama4.files.safetensors_file import load_safetensors
from mlx_llama4.hub.repository import find_folder
from mlx_llama4.model.cpu_layout import lay_out_for_cpu
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.offload.expert_cache import ExpertCache
from mlx_llama4.offload.expert_store import expert_tensors, is_routed_expert
from mlx_llama4.offload.heat import carry_over
from mlx_llama4.offload.streamed_experts import StreamedExperts
from mlx_llama4.planning.admission import Experts, Task, admit
from mlx_llama4.planning.placement import Placement, Where
from mlx_llama4.planning.refusal import unconverted_stream
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.quantization import Quantization

OnLoad = Callable[[int, int], None]  # bytes of weights in memory, bytes in all
Prepare = Callable[[Llama4], None]
LOAD_STEP = 256 * 2**20  # bytes; the progress of a load is told so often


def ignore_load(done: int, total: int) -> None:
    pass


class ModelFolder:
    """A folder that is open: each of its files is read once, and of its weights the headers.

    It is an MLX folder, or one that was not converted and whose weights are ordinary floats.
    Whatever takes a folder takes this in its place.
    """

    def __init__(self, path: Path):
        """Raises CheckpointError or ConfigError if the folder is incomplete or not what it says."""
        self.path = path
        self.source = open_with_config(path)
        if not self.source.is_converted and not self.source.is_plain:
            raise CheckpointError(
                f"{path} is not converted yet; run: mlx-llama4 convert {path} OUTPUT_FOLDER"
            )
        self.source.matching.check(path)

    @property
    def config(self) -> Config:
        """Less a vision tower that the folder does not have."""
        return self.source.config

    @property
    def checkpoint(self) -> Checkpoint:
        return self.source.checkpoint

    @cached_property
    def processor(self) -> Processor:
        """Raises CheckpointError or ConfigError for a tokenizer that is missing or damaged."""
        return Processor.load(self.path, self.config, self.defaults)

    @cached_property
    def defaults(self) -> GenerationConfig:
        """How the model's makers would have tokens chosen."""
        return load_generation_config(self.path, self.source.raw)

    @cached_property
    def identity(self) -> Identity:
        """What keys and values of this model are known by. Reads a little of each tensor."""
        processor = self.processor
        return Identity(
            self.path.resolve().name,
            model_digest(self.config, self.checkpoint.tensors),
            processor.tokenizer.digest(processor.template.source),
        )

    def __repr__(self) -> str:
        return f"ModelFolder({str(self.path)!r})"


def open_folder(folder: str | Path | ModelFolder, revision: str | None = None) -> ModelFolder:
    """All of a model folder but its weights.

    folder: a path, or OWNER/NAME on the Hugging Face hub, which is downloaded; revision: a branch,
    tag or commit there. Raises CheckpointError or ConfigError if the folder is incomplete or not
    what it says, another InputError if there is none, and RunError if the hub cannot be reached.
    """
    folder = _opened(folder, revision)
    _ = folder.processor  # whose files may be damaged too
    return folder


def load(
    folder: str | Path | ModelFolder,
    dtype: mx.Dtype | None = None,
    *,
    experts: Where = "auto",
    expert_memory: int | None = None,
    page_cache: bool = True,
    force: bool = False,
    arrange: bool = True,
    prepare: Prepare | None = None,
    on_load: OnLoad = ignore_load,
) -> tuple[Llama4, Processor]:
    """The model of an MLX folder, its weights in memory, and what turns messages into prompts.

    folder: a path, or OWNER/NAME on the Hugging Face hub, which is downloaded. dtype: of
    activations and of all weights that are not packed. By default float32 on the CPU, whose
    kernels for 16 bits are ten times slower, and the folder's own on a GPU.

    experts: keep the routed experts in memory ("resident"), read them from the disk as tokens need
    them ("stream"), or do so if they do not fit ("auto"), which is then logged. expert_memory:
    stream, with so many bytes for experts; by default what is left. page_cache: may the system keep
    what was read of them? force: try even what does not fit in this machine's memory.

    arrange: join queries, keys and values into one projection, and store weights as the device
    multiplies them fastest. False keeps the folder's tensors, name for name, as training and
    adapters need them; the logits differ by rounding only. prepare: is called with the model before
    any weight is read or arranged, and may replace parameters, for example with one rank's part. A
    parameter that it replaces is never read. One that it cuts is read whole, and the whole stays in
    memory unless mx.contiguous copies the part. Wrap modules after the load, not in `prepare`.

    Raises what `open_folder` does, and InputError for a model that does not fit, saying what would.
    """
    folder = open_folder(folder)
    wanted = Experts(experts, expert_memory, page_cache)
    width = None if dtype is None else dtype.size
    admission = admit(folder.source, Task(), wanted, force=force, width=width)
    log_notes(admission.notes)
    model = load_placed(
        folder, admission.placement, on_load, dtype=dtype, arrange=arrange, prepare=prepare
    )
    return model, folder.processor


def load_model(
    folder: str | Path | ModelFolder,
    dtype: mx.Dtype | None = None,
    streaming: ExpertStreaming | None = None,
    on_load: OnLoad = ignore_load,
    *,
    arrange: bool = True,
    prepare: Prepare | None = None,
) -> Llama4:
    """As `load`, for a folder that need have no tokenizer, whatever the machine's memory.

    streaming: leave the routed experts on the disk and read them as tokens need them. Raises
    InputError if its memory does not hold one expert, or if the folder is not converted.
    """
    folder = _opened(folder)
    disable_compile_on_cpu()
    if folder.source.is_converted:
        model = _load_weights(folder.checkpoint, folder.config, dtype, streaming, arrange, prepare)
    else:
        model = _load_unconverted(folder.source, dtype, streaming, arrange, prepare)
    _read_in(model, on_load)
    return model


def load_placed(
    folder: ModelFolder,
    placement: Placement,
    on_load: OnLoad = ignore_load,
    *,
    dtype: mx.Dtype | None = None,
    arrange: bool = True,
    prepare: Prepare | None = None,
) -> Llama4:
    """As `load`, where it is decided how the model runs. Streamed experts begin with those that
    former runs wanted, and leave word for the next one.
    """
    model = load_model(
        folder, dtype, placement.streaming, on_load, arrange=arrange, prepare=prepare
    )
    if model.expert_cache is not None:
        carry_over(model.expert_cache.heats, folder.identity.model)
    return model


def log_notes(notes: Sequence[str]) -> None:
    """For those who call the library: without settings of their own they go to standard error."""
    for note in notes:
        logging.getLogger("mlx_llama4").warning(note)


def disable_compile_on_cpu() -> None:
    """MLX would compile kernels with the machine's C++ compiler, into TMPDIR; there need be
    neither, and on the CPU nothing is gained.
    """
    if mx.default_device() == mx.cpu:
        mx.disable_compile()


def _opened(folder: str | Path | ModelFolder, revision: str | None = None) -> ModelFolder:
    if isinstance(folder, ModelFolder):
        return folder
    return ModelFolder(find_folder(folder, revision))


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


def _load_unconverted(
    source: Source,
    dtype: mx.Dtype | None,
    streaming: ExpertStreaming | None,
    arrange: bool,
    prepare: Prepare | None,
) -> Llama4:
    """As `_load_weights`, for a folder as it was published. Reads all its weights at once."""
    if streaming is not None:
        raise unconverted_stream(source.folder)
    model = Llama4(source.config)
    _place(model, list(whole_weights(source, dtype or _default_dtype(source.config))), None)
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
