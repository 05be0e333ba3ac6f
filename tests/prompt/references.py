"""Processors with our chat template and with the reference's."""

from transformers.models.llama4 import processing_llama4

from mlx_llama4.config import load_config
from mlx_llama4.prompt.chat_template import ChatTemplate
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE
from tests.golden import pictures

REFERENCE_TEMPLATE = processing_llama4.chat_template
FOLDER = pictures.TOKENIZER_FOLDER


def processor_with(template: str) -> Processor:
    demo = Processor.load(FOLDER, load_config(FOLDER))
    tokenizer = demo.tokenizer
    variables = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>"}
    chat = ChatTemplate(template, list(tokenizer.special_ids), variables)
    return Processor(tokenizer, chat, demo.tiler, demo.tokens_per_tile)


OURS, REFERENCE = processor_with(DEFAULT_TEMPLATE), processor_with(REFERENCE_TEMPLATE)
SPECIALS = sorted(OURS.tokenizer.special_ids)
# What could be taken for a mark, an escape, or a place for given ids.
MARKS = (
    "\ufdd0\ufdd1",
    "\ufdd0\ufdd2",
    "\ufdd0\ufdd30\ufdd4",
    "\ufdd0",
    "\ufdd4",
    "\\ufdd0\\ufdd1",
)
