"""The model card: front matter that the hub reads, commands that run, duties of the licence."""

from dataclasses import replace

import pytest
import yaml

from mlx_llama4.convert.card import LANGUAGES, NOTICE, Conversion, model_card

MADE = Conversion(
    name="Llama-4-Scout-17B-16E-Instruct-4bit",
    source="meta-llama/Llama-4-Scout-17B-16E-Instruct",
    recipe="4 bits",
    stored_as={"routed experts": "4 bits, groups of 64", "router": "bfloat16"},
    is_quantized=True,
    has_vision=True,
)


def front_matter(card: str) -> dict:
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def test_front_matter() -> None:
    found = front_matter(model_card(MADE))
    assert found == {
        "license": "other",
        "license_name": "llama4",
        "license_link": found["license_link"],
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text",
        "base_model": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "base_model_relation": "quantized",
        "tags": ["mlx", "llama4", "llama", "meta", "facebook"],
        "language": list(LANGUAGES),
    }
    assert found["license_link"].startswith("https://") and len(LANGUAGES) == 12
    text = front_matter(model_card(replace(MADE, has_vision=False, is_quantized=False)))
    assert text["pipeline_tag"] == "text-generation"
    assert "base_model_relation" not in text


@pytest.mark.parametrize("source", ["scout", "/home/me/scout", "a: b/c\nlicense: mit", "../x/y"])
def test_sources_that_are_no_repository(source: str) -> None:
    """A path says nothing to others, and must not break the front matter."""
    found = front_matter(model_card(replace(MADE, source=source)))
    assert "base_model" not in found and found["license"] == "other"


def test_body() -> None:
    card = model_card(MADE, "me/Llama-4-Scout-4bit")
    assert "| routed experts | 4 bits, groups of 64 |" in card
    assert "| router | bfloat16 |" in card
    for command in ("mlx-llama4 chat", "mlx_lm.generate", "python -m mlx_vlm.generate"):
        assert f"{command} --model me/Llama-4-Scout-4bit" in card
    assert "--model Llama-4-Scout-17B-16E-Instruct-4bit" in model_card(MADE)


def test_duties() -> None:
    card = model_card(MADE)
    for duty in ("**Built with Llama**", "begins with “Llama”", "NOTICE", "Acceptable Use Policy"):
        assert duty in card
    assert "700 million" in card and "European Union" in card
    text = model_card(replace(MADE, has_vision=False))
    assert "European Union" not in text and "mlx_vlm" not in text and "--image" not in text
    # Word for word, as section 1.b.iii of the licence has it.
    assert NOTICE.strip() == (
        "Llama 4 is licensed under the Llama 4 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
