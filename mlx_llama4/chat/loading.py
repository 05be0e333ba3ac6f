"""Load a model folder for a conversation, and limit the conversation to this machine's memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlx_llama4.chat.options import ChatOptions
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import ModelFolder, load_placed, log_notes, open_folder
from mlx_llama4.planning.admission import Experts, Task, admit, conversation_room
from mlx_llama4.planning.placement import Placement
from mlx_llama4.prompt.picture_file import PICTURE_BYTES


def load_for_chat(
    folder: str | Path | ModelFolder,
    options: ChatOptions | None,
    experts: Experts,
    force: bool,
    on_load: Callable[[int, int], None],
) -> tuple[Llama4, ModelFolder, ChatOptions]:
    """Load a model; return it, its folder, and the options limited to this machine's memory.

    With `force` the options are not limited. Raises what `load` raises.
    """
    folder, options = open_folder(folder), options or ChatOptions()
    task = Task(kv=options.kv_quantization, span=options.prefill_step, grows=True)
    admission = admit(folder.source, task, experts, force=force)
    log_notes(admission.notes)
    options = replace(options, prefill_step=admission.placement.usage.span)
    if not force:
        limit_to_memory(options, folder, admission.placement)
    return load_placed(folder, admission.placement, on_load), folder, options


def limit_to_memory(
    options: ChatOptions, folder: ModelFolder, placement: Placement, held: int = 0
) -> None:
    """Limit the conversation, the store of earlier prompts and the decoding of pictures to this
    machine's memory.

    held: tokens of a prompt cache, for which room is set aside first.
    """
    room = conversation_room(
        folder.config,
        placement,
        options.kv_quantization,
        held=held,
        prefix_bytes=options.prefix_bytes,
        picture_bytes=PICTURE_BYTES,
    )
    options.prefix_bytes = room.prefix_bytes
    folder.processor.picture_bytes = room.picture_bytes
    most = options.max_context
    options.max_context = room.max_context if most is None else min(most, room.max_context)
