"""Tokens: encoded once, from the same pixels on every way, found again by what names them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hdsweep.method import Data, Item, MethodError, load_dataset
from tests.lending import Lent
from trainables.data.synthetic import hdmap as synthetic
from trainables.encoders import EncoderParams
from trainables.encoders.images import CHUNK, mask_on_grid, resized
from trainables.encoders.tokens import Stored, Tokens

TINY: dict[str, Any] = {
    "encoder": "vit_tiny_patch16_224",
    "weights": "random",
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
    "resize": [16, 24],
    "crop": [16, 20],
}
PARAMS = EncoderParams.model_validate(TINY)
HDMAP = load_dataset("hdmap")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("maps")
    made = synthetic.Params(preset="quickstart", train=20, good=9, fault=9)
    assert HDMAP.generator is not None
    HDMAP.generator.write(made, home)
    return home


def load(root: Path, *domains: str) -> Data:
    return HDMAP.load(HDMAP.params(root=root, domains=domains or ("A", "B", "C", "D")))


def tokens(data: Data, store: Path, keep: Stored | None = "float32", **knobs: Any) -> Tokens:
    params = EncoderParams.model_validate({**TINY, **knobs})
    return Tokens(params, (0, 1, 2, 3), data, Lent(store), keep)


def entering(made: Tokens, split: Any, items: Sequence[Item]) -> Iterator[torch.Tensor]:
    """Pixels that the encoder was given, image by image, when these items were asked for."""
    seen: list[torch.Tensor] = []
    hook = made._encoder.vit.patch_embed.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].clone())
    )
    made.of(split, items)
    hook.remove()
    yield from torch.cat(seen)


# --- One way for pixels ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, "float32"])
def test_one_domain_and_all_domains_give_the_encoder_the_same_pixels(
    root: Path, tmp_path: Path, keep: Stored | None
) -> None:
    """Bit for bit, for training and for test maps, with the stage and without it."""
    whole, alone = load(root), load(root, "C")
    for split in ("train", "test"):
        of_c = [item for item in getattr(whole, split) if item.group == "C"]
        assert [i.name for i in of_c] == [i.name for i in getattr(alone, split)]
        everything = list(
            entering(tokens(whole, tmp_path / f"w{split}", keep), split, getattr(whole, split))
        )
        only_c = list(
            entering(tokens(alone, tmp_path / f"c{split}", keep), split, getattr(alone, split))
        )
        start = [item.group for item in getattr(whole, split)].index("C")
        assert len(only_c) == len(of_c)
        for mine, other in zip(only_c, everything[start:], strict=False):
            assert torch.equal(mine, other)


def test_a_map_is_seen_alike_in_training_and_in_testing(root: Path, tmp_path: Path) -> None:
    data = load(root, "B")
    same = Data(data.train, data.train, data.groups, data.read)
    made = tokens(same, tmp_path, None)
    trained = list(entering(made, "train", same.train))
    tested = list(entering(tokens(same, tmp_path, None), "test", same.test))
    assert all(map(torch.equal, trained, tested))


def test_a_map_is_seen_as_one_image_is(root: Path, tmp_path: Path) -> None:
    """Batches, threads and the stage's chunks leave each image to itself."""
    data = load(root, "A")
    chunks = list(tokens(data, tmp_path).images(data.train))
    assert [len(chunk) for chunk in chunks] == [20]
    for item, image in zip(data.train, chunks[0], strict=True):
        alone = resized(torch.from_numpy(data.read(item))[None], PARAMS)[0]
        assert torch.equal(image, alone)


# --- The stage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "tolerance"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
def test_kept_tokens_are_those_of_the_encoder_to_the_types_precision(
    root: Path, tmp_path: Path, keep: Stored, tolerance: float
) -> None:
    """The relative error of the type; float32 differs by the batch an image is in."""
    data = load(root)
    kept = tokens(data, tmp_path, keep).of("test", data.test[5:40])
    made = tokens(data, tmp_path, None).of("test", data.test[5:40])
    assert kept.dtype == torch.float32
    assert kept.shape == (35, 2, 1 + 4 * 5, 16)
    torch.testing.assert_close(kept, made, rtol=tolerance, atol=tolerance)


def test_group_means_are_the_means_of_layers(root: Path, tmp_path: Path) -> None:
    data = load(root, "A")
    made = tokens(data, tmp_path, None)
    images = next(made.images(data.train[:3]))
    from trainables.encoders.images import normalised

    layers = list(made._encoder(normalised(torch.stack(images))).values())
    expected = torch.stack([(layers[0] + layers[1]) / 2, (layers[2] + layers[3]) / 2], dim=1)
    torch.testing.assert_close(made.encode(images), expected)


def test_who_finds_the_stage_builds_no_encoder(root: Path, tmp_path: Path) -> None:
    data = load(root)
    first, second = (tokens(data, tmp_path) for _ in range(2))
    shape = first.shape
    assert "_encoder" in vars(first)
    first.prepare("test", "train")
    assert "_encoder" not in vars(first)  # nor is its memory held once all is encoded
    first.of("train", data.train[:2])
    first.of("test", data.test[:2])
    assert len(first._context.built) == 2
    assert second.shape == shape
    second.of("test", data.test)
    assert "_encoder" not in vars(second)
    second.of("train", data.train)
    assert len(second._context.built) == 0


@pytest.mark.parametrize(
    "other",
    [{"resize": [20, 24]}, {"crop": [12, 20]}, {"embed_dim": 8}, {"num_heads": 4}, {"depth": 5}],
)
def test_what_the_tokens_depend_on_names_them(
    root: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    data = load(root, "A")
    tokens(data, tmp_path).of("test", data.test[:1])
    changed = tokens(data, tmp_path, **other)
    changed.of("test", data.test[:1])
    assert len(changed._context.built) == 1


def test_other_items_types_and_splits_are_other_tokens(root: Path, tmp_path: Path) -> None:
    whole = load(root, "A")
    fewer = Data(whole.train[:9], whole.test, whole.groups, whole.read)
    for data, keep in ((whole, "float32"), (fewer, "float32"), (whole, "float16")):
        made = tokens(data, tmp_path, keep)  # type: ignore[arg-type]
        made.of("train", data.train[:1])
        assert len(made._context.built) == 1


def test_a_disk_that_cannot_hold_the_tokens_is_said_before_encoding(
    root: Path, tmp_path: Path
) -> None:
    """300,000 images of 8.4 MB each: more than any disk that runs this test."""
    path = load(root, "A").train[0].path
    items = tuple(Item(str(n), "A", is_anomaly=False, path=path) for n in range(300_000))
    data = Data(items, items, ("A",), HDMAP.load(HDMAP.params(root=root)).read)
    made = tokens(data, tmp_path, resize=512, crop=512, embed_dim=64)
    with pytest.raises(
        OSError, match=r"2,516,736 MB of tokens do not fit into .* set the knob tokens"
    ):
        made.of("train", items[:1])
    assert not list(tmp_path.glob("stages/tokens/*/tokens.npy"))


@pytest.mark.parametrize("damage", ["cut", "empty", "no shape"])
def test_damaged_tokens_name_the_folder_to_remove(root: Path, tmp_path: Path, damage: str) -> None:
    data = load(root, "A")
    tokens(data, tmp_path).of("test", data.test[:1])
    (kept,) = tmp_path.glob("stages/tokens/*/tokens.npy")
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-100])
    elif damage == "empty":
        kept.write_bytes(b"")
    else:
        (kept.parent / "shape.json").unlink()
    with pytest.raises(MethodError, match=f"^{kept.parent}: .* damaged .*; remove the folder"):
        tokens(data, tmp_path).of("test", data.test[:1])


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e5, "does not fit into float16; set the knob tokens to 'bfloat16' or 'float32'"),
        (np.inf, "is NaN or infinite; check this image and the encoder's weights"),
    ],
)
def test_output_that_cannot_be_kept_names_the_image(
    root: Path, tmp_path: Path, scale: float, message: str
) -> None:
    """The third of the maps is blown up; patches enter the residual stream as they are."""
    data = load(root, "A")

    def read(item: Item) -> Any:
        return data.read(item) * (scale if item == data.train[2] else 1)

    made = tokens(Data(data.train, data.test, ("A",), read), tmp_path, "float16")
    with pytest.raises(MethodError, match=rf"^{data.train[2].name}: the encoder's .*{message}"):
        made.of("train", data.train[:1])
    assert not list(tmp_path.glob("stages/tokens/*/tokens.npy"))


MEMORY = """
import sys, logging, resource
from pathlib import Path
import torch
torch.set_num_threads(1)
from hdsweep.method import Data, Item, load_dataset
sys.path.insert(0, sys.argv[3])
from tests.lending import Lent
from tests.test_tokens import TINY, EncoderParams, Tokens
data = load_dataset("hdmap").load(load_dataset("hdmap").params(root=sys.argv[1], domains=["A"]))
read = data.read
items = tuple(Item(str(n), "A", False, data.train[n % 20].path) for n in range(int(sys.argv[4])))
params = EncoderParams.model_validate({**TINY, "embed_dim": 64, "resize": 64, "crop": 64})
data = Data(items, items, ("A",), read)
made = Tokens(params, (0, 1), data, Lent(Path(sys.argv[2])), "float16")
warm = made.encode(next(made.images(items[:32])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made._stage("train", "float16")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_building_takes_bounded_memory(root: Path, tmp_path: Path) -> None:
    """3000 images of 257 tokens are 197 MB in half precision; twice 32 images are in flight."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, root, tmp_path, str(Path(__file__).parent.parent), "3000"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    (file,) = tmp_path.glob("stages/tokens/*/tokens.npy")
    assert file.stat().st_size > 190e6
    assert int(done.stdout) * 1024 < 90e6


def test_the_stage_says_what_it_was_made_from(root: Path, tmp_path: Path) -> None:
    data = load(root, "A")
    tokens(data, tmp_path).of("test", data.test[:1])
    (note,) = tmp_path.glob("stages/tokens/*/stage.json")
    told = json.loads(note.read_text())["inputs"]
    assert told["encoder"] == "vit_tiny_patch16_224"
    assert (told["resize"], told["crop"], told["type"]) == ([16, 24], [16, 20], "float32")
    assert note.stat().st_mode & 0o044 == 0o044  # colleagues read a store too


def test_reading_stops_at_a_damaged_image(root: Path, tmp_path: Path) -> None:
    """It is named, nothing half-built stays, and the next attempt starts anew."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    data = load(copy, "A")
    victim = data.train[7].path
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    made = tokens(data, tmp_path / "store")
    with pytest.raises(Exception, match=victim.name):
        made.of("train", data.train[:1])
    assert not list((tmp_path / "store").glob("stages/tokens/*/tokens.npy"))
    victim.write_bytes(whole)
    assert made.of("train", data.train[:1]).shape[0] == 1


# --- Masks ----------------------------------------------------------------------------------------


def test_a_mask_is_cropped_and_resized_as_its_image() -> None:
    """A square in the image's middle stays in the map's middle; what the crop cuts is gone."""
    params = EncoderParams.model_validate({**TINY, "resize": [32, 32], "crop": [16, 16]})
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[24:40, 24:40] = True
    found = mask_on_grid(mask, params, (256, 256))
    assert found[64:192, 64:192].mean() > 0.99
    assert found.mean() == pytest.approx(0.25, abs=0.01)
    mask[:] = False
    mask[:10, :10] = True
    assert not mask_on_grid(mask, params, (256, 256)).any()


def test_images_are_encoded_in_chunks_of_a_constant_size() -> None:
    assert CHUNK == 32  # tokens of another chunk differ in their last bits: raise VERSION too
