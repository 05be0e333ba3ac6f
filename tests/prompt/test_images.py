"""Pictures → tiles and ids, against the reference's processor at 44 sizes and two tile sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_llama4.config import ConfigError, load_config
from mlx_llama4.prompt.image import ImageTiler, best_grid, pixel_table
from mlx_llama4.prompt.picture_file import open_image
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests.golden import pictures

GOLDEN = Path(__file__).parents[1] / "golden"
ENTRIES = json.loads((GOLDEN / "pictures.json").read_text())
# Pillow's bilinear filter against torchvision's: at most one level of a byte, and rounding.
LARGEST, MEAN = 0.02, 0.002


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "pictures.npz") as file:
        return dict(file)


def tiler(side: int) -> ImageTiler:
    return ImageTiler(side, pictures.MAX_TILES, pixel_table(1 / 255, [0.5] * 3, [0.5] * 3))


def size_of(name: str) -> tuple[int, int, int]:
    side, size = name.split()
    width, height = size.split("x")
    return int(side), int(width), int(height)


@pytest.fixture(scope="module")
def processors() -> dict[int, Processor]:
    """The demo's processor, cutting tiles of 336 and of 56 pixels."""
    config = load_config(pictures.TOKENIZER_FOLDER)
    demo = Processor.load(pictures.TOKENIZER_FOLDER, config)
    return {
        side: Processor(demo.tokenizer, demo.template, tiler(side), tokens)
        for side, tokens in ((336, 144), (56, 4))
    }


def test_enough_sizes() -> None:
    assert len(pictures.SIZES) >= 40
    assert {(1, 1), (5000, 300)} <= set(pictures.SIZES)


@pytest.mark.parametrize("name", ENTRIES)
def test_grid_and_ids(processors: dict[int, Processor], name: str) -> None:
    side, width, height = size_of(name)
    processor, entry = processors[side], ENTRIES[name]
    assert list(best_grid(width, height, side, pictures.MAX_TILES)) == entry["grid"]
    image = pictures.draw(width, height)
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    prompt = processor.encode([{"role": "user", "content": parts}], add_generation_prompt=False)
    assert len(prompt.ids) == entry["ids"]
    assert pictures.digest(prompt.ids) == entry["ids_sha256"]


@pytest.mark.parametrize("name", ENTRIES)
def test_pixels_are_near_the_reference_s(arrays: dict[str, np.ndarray], name: str) -> None:
    side, width, height = size_of(name)
    ours = pictures.sample(tiler(side).tile(pictures.draw(width, height)).pixel_values(), side)
    reference = arrays["table"][0][arrays[name], 0]
    difference = np.abs(ours - reference)
    assert ours.shape == reference.shape
    assert difference.max() <= LARGEST
    assert difference.mean() <= MEAN


def test_few_pixels_differ_from_the_reference_s(arrays: dict[str, np.ndarray]) -> None:
    """0.96 % of the samples; 1.32 % if Pillow 13 chooses which pass comes first."""
    different = total = 0
    for name in (name for name in ENTRIES if name.startswith("56 ")):
        side, width, height = size_of(name)
        ours = pictures.sample(tiler(side).tile(pictures.draw(width, height)).pixel_values(), side)
        different += int((ours != arrays["table"][0][arrays[name], 0]).sum())
        total += ours.size
    assert different <= 0.01 * total


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("56 ")])
def test_pixels_are_pillow_s_resize_in_the_reference_s_arithmetic(
    arrays: dict[str, np.ndarray], name: str
) -> None:
    """Canvas, padding, order of tiles and bfloat16 steps, put together in another way."""
    side, width, height = size_of(name)
    image, (rows, columns) = pictures.draw(width, height), ENTRIES[name]["grid"]
    canvas = np.zeros((rows * side, columns * side, 3), np.uint8)
    new_height, new_width = ENTRIES[name]["resized"]
    canvas[:new_height, :new_width] = resized(image, new_width, new_height)
    tiles = [
        canvas[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(resized(image, side, side))
    expected = arrays["table"][0][np.stack(tiles), 0].transpose(0, 3, 1, 2)
    ours = tiler(side).tile(image).pixel_values()
    assert ours.dtype == np.float32
    assert np.array_equal(ours, expected)


def resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Rows first, as torchvision does; from 13.0 on, Pillow begins with columns at times."""
    rows = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return np.asarray(rows.resize((width, height), Image.Resampling.BILINEAR))


def test_pixel_table_is_the_reference_s(arrays: dict[str, np.ndarray]) -> None:
    for (mean, std), reference in zip(pictures.NORMALISATIONS, arrays["table"], strict=True):
        assert np.array_equal(pixel_table(1 / 255, mean, std), reference)


def test_tiles_are_row_major_and_the_whole_image_comes_last() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (90, 90, 90)]
    image = Image.new("RGB", (168, 112))
    for index, colour in enumerate(colours):
        image.paste(colour, (index % 3 * 56, index // 3 * 56, index % 3 * 56 + 56, 112))
    tiled = tiler(56).tile(image)
    assert tiled.grid == (2, 3)
    assert [tuple(tile[:, 20, 20]) for tile in tiled.tiles[:6]] == colours
    assert np.array_equal(tiled.tiles[6].transpose(1, 2, 0), resized(image, 56, 56))


def test_a_single_tile_has_no_global_tile() -> None:
    assert len(tiler(56).tile(Image.new("RGB", (30, 40))).tiles) == 1


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 16))
def test_grid_never_exceeds_the_limit_nor_wastes_a_row(
    width: int, height: int, max_tiles: int
) -> None:
    rows, columns = best_grid(width, height, 336, max_tiles)
    assert 1 <= rows * columns <= max_tiles
    # No row or column of tiles is there that the picture, scaled to fit, does not reach.
    scale = min(rows * 336 / height, columns * 336 / width)
    assert height * scale > (rows - 1) * 336 - 1
    assert width * scale > (columns - 1) * 336 - 1


def test_digest_tells_images_apart() -> None:
    one, same = (tiler(56).tile(pictures.draw(100, 80)) for _ in range(2))
    other = tiler(56).tile(pictures.draw(80, 100))
    assert one.digest == same.digest != other.digest


def test_settings_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": {"height": 56, "width": 56}, "max_patches": 3}))
    loaded = ImageTiler.load(tmp_path, 56)
    assert loaded.max_tiles == 3
    with pytest.raises(ConfigError, match="image_size 336"):
        ImageTiler.load(tmp_path, 336)
    for damaged in ({"size": "big"}, {"image_mean": [0.5, 0.5]}, {"image_std": ["a", 1, 1]}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ConfigError):
            ImageTiler.load(tmp_path, 56)
    path.write_text(json.dumps({"resample": 3}))
    with pytest.raises(ConfigError, match="bilinear"):
        ImageTiler.load(tmp_path, 56)
    path.unlink()
    assert ImageTiler.load(tmp_path, 336).max_tiles == 16
    new = {"image_processor": {"max_patches": 5, "size": {"height": 56, "width": 56}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(new))
    assert ImageTiler.load(tmp_path, 56).max_tiles == 5
    (tmp_path / "processor_config.json").write_text('{"image_processor": 5}')
    with pytest.raises(ConfigError, match="damaged"):
        ImageTiler.load(tmp_path, 56)


def test_the_demo_s_tokenizer_is_what_the_ids_were_made_with() -> None:
    assert Tokenizer.load(pictures.TOKENIZER_FOLDER).special_id("<|patch|>") == 1018
    assert open_image(pictures.draw(3, 3)).size == (3, 3)
