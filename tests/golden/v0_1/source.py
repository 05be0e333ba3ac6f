"""The checkpoint that version 0.1.0 converted, and what was asked of the result.

Drawn by tests/tiny.py, so the weights need not be kept; `fingerprint` in expected.json tells
whether they are still the same. Read by make.py and by tests/test_lasting.py.
"""

import os
import shutil
from pathlib import Path

from tests import tiny

HERE = Path(__file__).parent
# The journal tells by the time of its last change whether a source file is still the same.
CHANGED_NS = 1_790_000_000 * 10**9

RECIPE = (
    "--recipe", "mixed-3-6", "--group-size", "32", "--shard-size", "100KB",
    "--rule", "*.layers.1.feed_forward.experts.down_proj=8:32",
    "--rule", "*.layers.2.self_attn.*=16",
)  # fmt: skip

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)

GREEDY = ("--max-tokens", "12", "--temperature", "0")
ASKED = (*GREEDY, "--logprobs", "4", "--json")
# Name → arguments of `ask`; the paths are below this folder.
QUESTIONS = {
    "model": ("What is this?", "--image", "wide.png"),
    "document": ("Who needs more milk?", "--cache", "document.safetensors"),
    "document_small": ("Who needs more milk?", "--cache", "document_small.safetensors"),
    "document_8bit": ("Who needs more milk?", "--cache", "document_8bit.safetensors"),
    "conversation": ("And then?", "--cache", "conversation.safetensors"),
}
SESSION_QUESTION = "And then?"


def config() -> dict:
    sizes = {
        "vocab_size": 1019,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 32,
    }
    return tiny.config("scout", **sizes) | {"image_token_index": 1018}


def write_source(folder: Path, side_files: Path = HERE / "model") -> Path:
    """The checkpoint: bfloat16, two shards, with the tokenizer and template of the model folder."""
    tiny.write_checkpoint(folder, config(), tiny.tensors(config()), "BF16", shards=2)
    for name in SIDE_FILES:
        shutil.copy(side_files / name, folder)
    for file in folder.iterdir():
        os.utime(file, ns=(CHANGED_NS, CHANGED_NS))
    return folder
