"""Make the reference values that the tests compare with. Run by hand:

    python -m tests.golden.make_goldens [logits|images|templates|MODEL …]

where MODEL is a name in cases.py, for the logits of that model alone,
in an environment with the `reference` extra and torchvision (see tests/golden/README.md). Logits
come from transformers in float32 with eager attention, ids and pixels from its Llama4Processor.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests import tiny
from tests.golden import cases, pictures

HERE = Path(__file__).parent


def reference_model(folder: Path) -> torch.nn.Module:
    """transformers' model of a checkpoint; complains of every key that does not fit."""
    import transformers

    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {name: value for name, value in info.items() if value}
    assert not problems, problems
    return model.eval()


def text_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    return model(input_ids=torch.tensor(ids)).logits[0].numpy()


def decode_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Logits of the tokens that come one by one after the first PREFILLED."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config())
    arguments = {"past_key_values": cache, "use_cache": True}
    model(input_ids=torch.tensor(ids[:, : cases.PREFILLED]), **arguments)
    steps = [
        model(input_ids=torch.tensor(ids[:, index : index + 1]), **arguments).logits[0].numpy()
        for index in range(cases.PREFILLED, ids.shape[1])
    ]
    return np.concatenate(steps)


def greedy_tokens(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """A greedy continuation, recomputed from the start for each token: no cache to trust."""
    for _ in range(cases.GREEDY_TOKENS):
        token = text_logits(model, ids)[-1].argmax()
        ids = np.append(ids, [[token]], axis=1)
    return ids[0, -cases.GREEDY_TOKENS :]


def make_logits(*names: str) -> None:
    for name in names or cases.MODELS:
        case = cases.MODELS[name]
        arrays: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory() as folder:
            weights = case.weights()
            model = reference_model(tiny.write_checkpoint(Path(folder), case.config, weights))
        arrays["weights"] = np.array(tiny.fingerprint(weights))
        for length in case.texts:
            arrays[f"text {length}"] = text_logits(model, cases.text_ids(length))
        if case.decode:
            arrays["decode"] = decode_logits(model, cases.text_ids(150))
            arrays["greedy"] = greedy_tokens(model, cases.text_ids(cases.GREEDY_PROMPT))
        for image_case, grids in case.images.items():
            ids = torch.tensor(tiny.image_ids(grids))
            pixels = torch.tensor(tiny.pixels(grids))
            arrays[image_case] = model(input_ids=ids, pixel_values=pixels).logits[0].numpy()
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        logits = arrays[f"text {case.texts[-1]}"]
        print(f"{name}: logit std {logits.std():.2f}, {', '.join(arrays)}")


def make_pixel_table() -> np.ndarray:
    """What the reference makes of each byte value: float32 [256, 3], for two sets of constants."""
    from transformers import Llama4ImageProcessor

    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1).repeat(3, 1, 1)
    tables = []
    for mean, std in pictures.NORMALISATIONS:
        processor = Llama4ImageProcessor()
        values = processor.rescale_and_normalize(levels, True, 1 / 255, True, mean, std)
        tables.append(values[:, :, 0].T.float().numpy())
    return np.stack(tables)


def make_images() -> None:
    """Grids, ids and pixels of pictures of many sizes, at the releases' tile size and ours."""
    from transformers import AutoTokenizer, Llama4ImageProcessor, Llama4Processor
    from transformers.models.llama4 import image_processing_llama4 as reference

    tokenizer = AutoTokenizer.from_pretrained(pictures.TOKENIZER_FOLDER)
    entries, arrays = {}, {"table": make_pixel_table()}
    for side in pictures.TILE_SIDES:
        image_processor = Llama4ImageProcessor(
            size={"height": side, "width": side}, max_patches=pictures.MAX_TILES
        )
        processor = Llama4Processor(image_processor, tokenizer)
        for width, height in pictures.SIZES:
            image = pictures.draw(width, height)
            output = processor(
                text=pictures.TEXT, images=[image], add_special_tokens=False, return_tensors="pt"
            )
            tiles = output["pixel_values"].float().numpy()
            _, grid = pictures.split(image_processor, image)
            canvas = (grid[0] * side, grid[1] * side)
            bound = tuple(
                min(max(size, side), limit)
                for size, limit in zip((height, width), canvas, strict=True)
            )
            resized = reference.get_max_res_without_distortion((height, width), bound)
            entries[f"{side} {width}x{height}"] = {
                "grid": grid,
                "resized": [max(size, 1) for size in resized],
                "ids": len(output["input_ids"][0]),
                "ids_sha256": pictures.digest(output["input_ids"][0].numpy()),
            }
            stored = pictures.sample(tiles, side)
            arrays[f"{side} {width}x{height}"] = pictures.to_bytes(stored, arrays["table"][0])
    np.savez_compressed(HERE / "pictures.npz", **arrays)
    (HERE / "pictures.json").write_text(json.dumps(entries, indent=1) + "\n")
    print(f"{len(entries)} pictures")


def make_templates() -> None:
    """Ids of conversations by transformers' own template and processor."""
    from transformers import AutoTokenizer, Llama4ImageProcessor, Llama4Processor

    tokenizer = AutoTokenizer.from_pretrained(pictures.TOKENIZER_FOLDER)
    image_processor = Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    processor = Llama4Processor(image_processor, tokenizer)
    result = {}
    for name, (messages, sizes) in pictures.CONVERSATIONS.items():
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = [pictures.draw(width, height) for width, height in sizes] or None
        output = processor(text=text, images=images, add_special_tokens=False)
        result[name] = np.array(output["input_ids"]).reshape(-1).tolist()
    (HERE / "templates.json").write_text(json.dumps(result) + "\n")
    print(f"{len(result)} conversations")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    makers = {"logits": make_logits, "images": make_images, "templates": make_templates}
    for name in sys.argv[1:] or makers:
        makers[name]() if name in makers else make_logits(name)
