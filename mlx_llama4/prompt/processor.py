"""Messages with images → a prompt: token ids with slots for image features, and tiles.

A message is a dict with a role and a content: a string, or a list of parts
{"type": "text", "text": …} and {"type": "image", "image": path, URL, bytes, PIL image or one that
`tile` gave}. OpenAI's and transformers' ways of naming a picture are taken, too.
An assistant's message may have `token_ids`, which replace its content, and `tool_calls`
[{"name": …, "arguments": {…}}], which follow the content unless there are `token_ids`. The results
of the tools are messages of the role ipython, one for each call, in order.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_llama4.config import Config, GenerationConfig, load_generation_config
from mlx_llama4.errors import ConfigError, PromptError
from mlx_llama4.files.json_file import read_json
from mlx_llama4.least_recently_used import LeastRecentlyUsed
from mlx_llama4.prompt.chat_template import ChatTemplate, GivenIds, PlainText
from mlx_llama4.prompt.checks import check_message
from mlx_llama4.prompt.fetch import Fetching
from mlx_llama4.prompt.image import (
    ImageTiler,
    PromptImage,
    RememberedImage,
    TiledImage,
)
from mlx_llama4.prompt.messages import image_parts, joined_texts, with_image_parts
from mlx_llama4.prompt.picture_file import PICTURE_BYTES, ImageSource
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.template_source import load_chat_template
from mlx_llama4.prompt.tokenizer import Tokenizer

Message = Mapping[str, Any]

# The tokens that end a turn in Llama 4, whatever generation_config.json says or leaves out.
END_TOKENS = ("<|eot|>", "<|eom|>", "<|end_of_text|>")
NO_DEFAULTS = GenerationConfig(())
KNOWN_CHARACTERS = 16 * 2**20  # of texts whose ids are remembered
LETTER = "x"  # begins a token of its own after white space or a picture


class Processor:
    """Encodes messages with images into prompts. Without a tiler it takes no images."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        tiler: ImageTiler | None = None,
        tokens_per_tile: int = 0,
        defaults: GenerationConfig = NO_DEFAULTS,
    ):
        """defaults: the model's own generation settings, with more tokens that end an answer."""
        self.tokenizer = tokenizer
        self.template = template
        self.tiler = tiler
        self.tokens_per_tile = tokens_per_tile
        self.defaults = defaults
        self.fetching = Fetching()  # of pictures given as URLs
        self.picture_bytes = PICTURE_BYTES  # of memory for decoding a picture
        special_ids = tokenizer.special_ids
        self.end_tokens = frozenset(defaults.eos_token_ids) | {
            special_ids[name] for name in END_TOKENS if name in special_ids
        }
        self._known: LeastRecentlyUsed[str, np.ndarray] = LeastRecentlyUsed(KNOWN_CHARACTERS)

    @classmethod
    def load(
        cls, folder: Path, config: Config, defaults: GenerationConfig | None = None
    ) -> "Processor":
        """Load a folder's processor. defaults: its generation_config.json, if already read."""
        tokenizer = Tokenizer.load(folder)
        path = folder / "tokenizer_config.json"
        tokenizer_config = read_json(path) if path.is_file() else {}
        variables = _token_variables(tokenizer_config)
        tokenizer.special_id(variables["bos_token"])
        names = list(tokenizer.special_ids)
        template = ChatTemplate(load_chat_template(folder, tokenizer_config), names, variables)
        if defaults is None:
            defaults = load_generation_config(folder)
        if config.vision is None:
            return cls(tokenizer, template, defaults=defaults)
        if tokenizer.special_id("<|patch|>") != config.image_token_id:
            raise ConfigError(
                f"config.json's image_token_index {config.image_token_id} is not the tokenizer's "
                f"<|patch|>, {tokenizer.special_id('<|patch|>')}; the files do not belong together"
            )
        tiler = ImageTiler.load(folder, config.vision.image_size)
        return cls(tokenizer, template, tiler, config.vision.tokens_per_tile, defaults)

    def __repr__(self) -> str:
        pictures = "text only" if self.tiler is None else f"tiles of {self.tiler.tile_size} pixels"
        return f"Processor({self.tokenizer.vocab_size:,} tokens, {pictures})"

    def with_template(self, template: ChatTemplate) -> "Processor":
        """Return a copy with another template."""
        changed = copy.copy(self)
        changed.template = template
        return changed

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text, perhaps only part of a character."""
        return self.tokenizer.token_bytes(token)

    def encode(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """Encode a conversation.

        tools: definitions, each {"type": "function", "function": {"name": …, …}}. Raises
        PromptError for messages or tools that the model cannot take, ImageError for bad pictures.
        """
        messages = [with_image_parts(message) for message in messages]
        for message in messages:
            check_message(message)
        images = [self.tile(part["image"]) for part in image_parts(messages)]
        pieces = self.template.render(messages, add_generation_prompt, tools)
        waiting = iter(images)
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, PlainText):
                ids += self._text_ids(piece.text)
            elif isinstance(piece, GivenIds):
                ids += piece.ids
            elif piece.name == "<|image|>":
                ids += self._image_ids(waiting)
            else:
                ids.append(self.tokenizer.special_id(piece.name))
        if left := len(list(waiting)):
            raise PromptError(f"the chat template left out {left} of {len(images)} images")
        return Prompt(np.array(ids, np.int32), tuple(images))

    def _text_ids(self, text: str) -> list[int]:
        """Tokenise a text, remembering results: each turn encodes the whole conversation again."""
        known = self._known.get(text)
        if known is None:
            known = np.array(self.tokenizer.encode(text), np.int32)
            self._known.put(text, known, len(text))
        return known.tolist()

    def encode_open(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Prompt:
        """Encode the prompt up to the point where the last message's text could continue.

        The last message's content is a list of parts. Templates may trim white space at the end of
        a text, so a letter is added there, and its token is removed again.
        """
        *before, last = messages
        end = {"type": "text", "text": LETTER}
        going_on = dict(last) | {"content": [*last["content"], end]}
        messages = [*before, *joined_texts([going_on])]
        prompt = self.encode(messages, add_generation_prompt=False, tools=tools)
        ends = np.flatnonzero(prompt.ids == self.tokenizer.special_id("<|eot|>"))
        if not len(ends):
            raise PromptError("this checkpoint's chat template does not end turns with <|eot|>")
        length = ends[-1] - len(self.tokenizer.encode(LETTER))
        return Prompt(prompt.ids[:length], prompt.images)

    def tile(self, image: ImageSource | PromptImage) -> PromptImage:
        """Read and tile a picture. Raises ImageError or, without a vision tower, PromptError."""
        if self.tiler is None:
            raise PromptError("this checkpoint has no vision tower; it cannot take images")
        if isinstance(image, TiledImage | RememberedImage):
            return image
        return self.tiler.tile(image, self.fetching, self.picture_bytes)

    def image_tokens(self, image: PromptImage) -> int:
        """How many tokens a picture takes in a prompt."""
        return len(self._image_ids(iter([image])))

    def _image_ids(self, waiting: Iterator[PromptImage]) -> list[int]:
        """<|image_start|>, the tiles of each row with an x separator between and a y separator
        after, then <|image|> and the global or only tile, <|image_end|>.
        """
        image = next(waiting, None)
        if image is None:
            raise PromptError("the chat template asks for more images than the messages have")
        special = self.tokenizer.special_id
        tile = [special("<|patch|>")] * self.tokens_per_tile
        ids = [special("<|image_start|>")]
        rows, columns = image.grid
        if rows * columns > 1:
            separated = [*tile, special("<|tile_x_separator|>")] * columns
            ids += [*separated[:-1], special("<|tile_y_separator|>")] * rows
        return [*ids, special("<|image|>"), *tile, special("<|image_end|>")]


def _token_variables(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that tokenizer_config.json names for chat templates: bos_token, eos_token, …"""
    variables = {"bos_token": "<|begin_of_text|>"}
    for key, token in tokenizer_config.items():
        if key.endswith("_token"):
            if isinstance(token, Mapping):  # a serialised AddedToken
                token = token.get("content")
            if isinstance(token, str):
                variables[key] = token
    return variables
