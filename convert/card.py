"""Writes README.md and NOTICE of a converted folder, as the hub and Meta's licence ask for them.

The facts about the licence are from the Llama 4 Community License Agreement of 5 April 2025 and its
Acceptable Use Policy, in meta-llama/llama-models under models/llama4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_llama4.hub.repository import is_repository_name

# The licence prescribes this text, and a text file for it.
NOTICE_NAME = "NOTICE"
NOTICE = (
    "Llama 4 is licensed under the Llama 4 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
)
LICENSE_URL = "https://github.com/meta-llama/llama-models/blob/main/models/llama4/LICENSE"
POLICY_URL = "https://www.llama.com/llama4/use-policy"
# The languages that Meta supports; the models were trained on more.
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "id", "it", "pt", "th", "tl", "vi")


@dataclass(frozen=True)
class Conversion:
    """What a card says of how its folder was made."""

    name: str  # of the model
    source: str  # a repository of the hub, or wherever else the weights came from
    recipe: str  # in words
    stored_as: Mapping[str, str]  # "routed experts" → "4 bits, groups of 64"
    is_quantized: bool  # is any part packed?
    has_vision: bool


def model_card(made: Conversion, repository: str | None = None) -> str:
    """The text of README.md. repository: where the folder will be found, if not by its path."""
    model = repository or made.name
    sections = [
        _front_matter(made),
        f"# {made.name}\n\n**Built with Llama**\n",
        _origin(made),
        _usage(model, made.has_vision),
        _licence(made.has_vision),
    ]
    return "\n".join(sections)


def _front_matter(made: Conversion) -> str:
    lines = [
        "license: other",
        "license_name: llama4",
        f"license_link: {LICENSE_URL}",
        "library_name: mlx",
        f"pipeline_tag: {'image-text-to-text' if made.has_vision else 'text-generation'}",
    ]
    if is_repository_name(made.source):
        lines.append(f"base_model: {made.source}")
        if made.is_quantized:
            lines.append("base_model_relation: quantized")
    lines += ["tags:", *(f"- {tag}" for tag in ("mlx", "llama4", "llama", "meta", "facebook"))]
    lines += ["language:", *(f"- {language}" for language in LANGUAGES)]
    return "\n".join(["---", *lines, "---", ""])


def _origin(made: Conversion) -> str:
    source = made.source
    if is_repository_name(source):
        source = f"[{source}](https://huggingface.co/{source})"
    images = "" if made.has_vision else " It takes text only: the vision tower is not in it."
    rows = [f"| {part} | {stored} |" for part, stored in made.stored_as.items()]
    return "\n".join(
        [
            f"Converted from {source} to MLX, with mlx-llama4; recipe: {made.recipe}.{images}",
            "",
            "| part | stored as |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _usage(model: str, has_vision: bool) -> str:
    image = " --image photo.jpg" if has_vision else ""
    commands = [
        f'mlx-llama4 ask "What is this?" --model {model}{image}',
        f"mlx-llama4 chat --model {model}",
        f'mlx_lm.generate --model {model} --prompt "Hello"     # text only',
    ]
    if has_vision:
        commands.append(
            f'python -m mlx_vlm.generate --model {model}{image} --prompt "What is this?"'
        )
    return "\n".join(["## Use", "", "```", *commands, "```", ""])


def _licence(has_vision: bool) -> str:
    """The main duties of the licence in our words; only its own words are binding."""
    duties = [
        "Whoever passes these weights on, or a product or service with them, gives a copy of the "
        f"licence along, keeps the `{NOTICE_NAME}` file, and shows “Built with Llama” where it is "
        "seen.",
        "A model made or improved with these weights or their output has a name that begins with "
        "“Llama” when it is distributed.",
        f"Use must be lawful and keep to the [Acceptable Use Policy]({POLICY_URL}).",
        "Companies whose products had more than 700 million monthly active users in the month "
        "before Llama 4's release (5 April 2025) need a licence from Meta first.",
    ]
    if has_vision:
        duties.append(
            "The rights in these multimodal models are not granted to people domiciled in the "
            "European Union, nor to companies with their principal place of business there. Users "
            "of a finished product that contains them are not affected."
        )
    return "\n".join(
        [
            "## Licence",
            "",
            f"[Llama 4 Community License]({LICENSE_URL}), copyright Meta Platforms, Inc. Read it; "
            "in short:",
            "",
            *(f"- {duty}" for duty in duties),
            "",
        ]
    )
