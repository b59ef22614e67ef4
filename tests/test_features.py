"""Patch features: as published, encoded once, bounded in memory, found again by what names them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from hdsweep.method import Data, Item, MethodError
from tests.lending import Lent
from trainables.encoders.backbone import create
from trainables.encoders.features import FrozenMaps, PatchFeatures, joined
from trainables.encoders.images import CHUNK, normalised
from trainables.encoders.patches import PatchParams
from trainables.encoders.stages import features_stage, items_of

RESIDUAL: dict[str, Any] = {
    "encoder": "test_resnet",
    "weights": "random",
    "resize": [64, 48],
    "crop": None,
    "pretrain_embed_dimension": 32,
    "target_embed_dimension": 24,
    "features": "float32",
}
VIT: dict[str, Any] = {
    **RESIDUAL,
    "encoder": "vit_tiny_patch16_224",
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
}
WHOLE: dict[str, Any] = {"pretrain_embed_dimension": None, "target_embed_dimension": None}


def pictures(train: int = 6, test: int = 4) -> Data:
    """Colour noise of two groups in turn; group C has test items only."""

    def read(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
        seed = sum(item.name.encode())
        return np.random.default_rng(seed).random((3, 40, 56), dtype=np.float32)

    def items(split: str, count: int, groups: str) -> tuple[Item, ...]:
        names = ((f"{split}/{n}", groups[n % len(groups)]) for n in range(count))
        return tuple(Item(name, group, split == "test", Path()) for name, group in names)

    return Data(items("train", train, "AB"), items("test", test, "ABC"), ("A", "B", "C"), read)


def features(store: Path, data: Data | None = None, **knobs: Any) -> PatchFeatures:
    params = PatchParams.model_validate({**RESIDUAL, **knobs})
    return PatchFeatures(params, data or pictures(), Lent(store))


def built(made: PatchFeatures) -> list[str]:
    assert isinstance(made._context, Lent)
    return made._context.built


def randomised(net: Any) -> Any:
    """With all weights and statistics drawn: some of a new network's are zero and hide others."""
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith(("running_var", "norm.weight")):
                value.uniform_(0.5, 1.5, generator=drawn)
            elif value.is_floating_point():
                value.normal_(0, 0.05, generator=drawn)
    return net.eval()


# --- Knobs ----------------------------------------------------------------------------------------


def test_no_crop_and_a_crop_to_the_whole_image_are_one_trial() -> None:
    whole = PatchParams.model_validate({"resize": 224, "crop": None})
    assert whole == PatchParams.model_validate({"resize": 224, "crop": 224})
    assert (PatchParams().resize, PatchParams().crop) == ((256, 256), (224, 224))
    schema = PatchParams.model_json_schema()["properties"]["crop"]
    assert {"type": "null"} in schema["anyOf"]
    assert schema["default"] == [224, 224]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"resize": 200}, "crop 224x224 is larger than resize 200x200"),
        ({"depth": 4, "weights": "random"}, "'wide_resnet50_2' is not a vision transformer"),
        ({"encoder": "vit_base_patch14_reg4_dinov2", "crop": 225}, "225 is not a multiple of the"),
        ({"layers": "low"}, "layers"),
        ({"target_embed_dimension": 0}, "target_embed_dimension"),
        ({"features": "bfloat16"}, "features"),
    ],
)
def test_knobs_that_cannot_work_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PatchParams.model_validate(knobs)


# --- The definition -------------------------------------------------------------------------------


def grid_and_maps(encoder: str, crop: list[int], layers: str) -> tuple[Any, Any]:
    """The grid that planning tells, and that of the first map which the network gives."""
    knobs = {"encoder": encoder, "weights": "random", "resize": crop, "crop": None}
    params = PatchParams.model_validate({**knobs, "layers": layers})
    with torch.device("meta"):
        maps = FrozenMaps(create(params), params.quarters)
        found = maps(torch.empty(1, 3, *crop))
    for one, width in zip(found, maps.channels, strict=True):
        assert one.shape[1] == width
    return params.grid(), tuple(found[0].shape[-2:])


@pytest.mark.parametrize("layers", ["mid", "high"])
@pytest.mark.parametrize("crop", [[31, 95], [33, 47], [65, 224], [224, 224], [257, 97]])
@pytest.mark.parametrize("encoder", ["resnet18", "wide_resnet50_2", "resnet26t", "resnetblur18"])
def test_the_grid_is_the_networks_whatever_the_size(
    encoder: str, crop: list[int], layers: str
) -> None:
    told, found = grid_and_maps(encoder, crop, layers)
    assert told == found


@pytest.mark.slow
@pytest.mark.parametrize("encoder", timm.list_models(module="resnet"))
def test_the_grid_of_every_residual_network_is_told(encoder: str) -> None:
    told, found = grid_and_maps(encoder, [96, 160], "mid")
    assert told == found == (12, 20)
    if "netaa" in encoder or "nextaa" in encoder:  # averages that drop an odd row
        with pytest.raises(ValidationError, match="65 is not a multiple of the stride of"):
            grid_and_maps(encoder, [65, 98], "mid")
    else:
        told, found = grid_and_maps(encoder, [65, 98], "mid")
        assert told == found == (9, 13)


@pytest.mark.parametrize("crop", [[224, 224], [28, 70]])
@pytest.mark.parametrize("encoder", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_the_grid_of_a_transformer_is_its_patches(encoder: str, crop: list[int]) -> None:
    told, found = grid_and_maps(encoder, crop, "high")
    assert told == found == (crop[0] // 14, crop[1] // 14)


@pytest.mark.parametrize(("layers", "stages"), [("mid", (2, 3)), ("high", (3, 4))])
def test_a_residual_networks_maps_are_those_of_timm_and_no_stage_beyond_is_kept(
    layers: str, stages: tuple[int, int]
) -> None:
    params = PatchParams.model_validate({**RESIDUAL, "layers": layers})
    net = randomised(create(params))
    theirs = timm.create_model(params.encoder, features_only=True, out_indices=stages).eval()
    theirs.load_state_dict({key: net.state_dict()[key] for key in theirs.state_dict()})
    maps = FrozenMaps(net, params.quarters).train()
    images = torch.rand(2, 3, 64, 48)
    assert all(map(torch.equal, maps(images), theirs(images)))
    assert set(maps._net.state_dict()) == set(theirs.state_dict())
    assert not any(p.requires_grad for p in maps.parameters())


@pytest.mark.parametrize(
    ("depth", "layers", "blocks"),
    [(4, "mid", (1, 2)), (4, "high", (2, 3)), (12, "mid", (5, 8)), (2, "mid", (0, 0))],
)
def test_a_transformers_maps_are_normalised_blocks_without_prefix(
    depth: int, layers: str, blocks: tuple[int, int]
) -> None:
    params = PatchParams.model_validate({**VIT, "depth": depth, "layers": layers})
    vit = randomised(create(params))
    images = torch.rand(2, 3, 64, 48)
    stream: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda *a: stream.append(a[2])) for b in vit.blocks]
    vit(images)
    for hook in hooks:
        hook.remove()
    maps = FrozenMaps(vit, params.quarters)
    for found, block in zip(maps(images), blocks, strict=True):
        expected = vit.norm(stream[block])[:, 1:].mT.reshape(2, 16, 8, 6)
        assert torch.equal(found, expected)
    assert len(vit.blocks) == blocks[1] + 1


def adaptive(vector: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Bin i is the mean from floor(i n / size) to ceil((i + 1) n / size), as torch documents it."""
    n = len(vector)
    bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    return np.array([vector[start:stop].mean() for start, stop in bins])


@pytest.mark.parametrize(("each", "whole"), [(None, None), (5, None), (None, 7), (16, 9), (6, 20)])
def test_features_are_pooled_as_defined(each: int | None, whole: int | None) -> None:
    """Against a formula for each point; 1e-5 for sums of float32 in another order."""
    rng = np.random.default_rng(0)
    near, far = (rng.normal(size=(2, c, *s)) for c, s in ((6, (4, 6)), (8, (2, 3))))
    found = joined([torch.from_numpy(m.astype(np.float32)) for m in (near, far)], each, whole)

    def averaged(maps: Any) -> Any:
        """Mean of 3 x 3 points, zeros beyond the border, each vector pooled."""
        padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        mean = windows.mean((-1, -2))
        return np.apply_along_axis(adaptive, 1, mean, each) if each else mean

    def enlarged(maps: Any, size: tuple[int, int]) -> Any:
        """Bilinear between the centres of points, the border's beyond."""
        for axis, length in zip((2, 3), size, strict=True):
            n = maps.shape[axis]
            place = ((np.arange(length) + 0.5) * n / length - 0.5).clip(0, n - 1)
            low = np.floor(place).astype(int)
            high = np.minimum(low + 1, n - 1)
            share = (place - low).reshape([-1 if a == axis else 1 for a in range(4)])
            maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
        return maps

    vectors = np.concatenate([averaged(near), enlarged(averaged(far), (4, 6))], axis=1)
    if whole:
        vectors = np.apply_along_axis(adaptive, 1, vectors, whole)
    expected = vectors.reshape(2, vectors.shape[1], 24).transpose(0, 2, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "crop", "names"),
    [
        ("resnet18", [97, 64], {"mid": ("layer2", "layer3"), "high": ("layer3", "layer4")}),
        (
            "vit_tiny_patch16_224",
            [112, 96],
            {"mid": ("blocks.5", "blocks.8"), "high": ("blocks.8", "blocks.11")},
        ),
    ],
)
@pytest.mark.parametrize("layers", ["mid", "high"])
def test_without_pooling_features_are_those_of_anomalibs_patchcore(
    tmp_path: Path, encoder: str, crop: list[int], names: dict[str, tuple[str, ...]], layers: str
) -> None:
    """From the same weights, to 1e-5 of the largest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that timm has moved
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    weights = randomised(timm.create_model(encoder, num_classes=0)).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    knobs = {"encoder": encoder, "resize": crop, "layers": layers, "weights": file}
    made = features(tmp_path, **WHOLE, **knobs)
    model = PatchcoreModel(layers=names[layers], backbone=encoder, pre_trained=False).train()
    net = model.feature_extractor.feature_extractor
    own = net.state_dict()
    net.load_state_dict({key: weights.get(key, value) for key, value in own.items()})
    assert {key for key in own if key not in weights} <= {"head.weight", "head.bias"}

    images = next(made.images(pictures().train[:3]))
    expected = model(normalised(torch.stack(images)))
    found = made.encode(images)
    assert found.shape[1] == made.grid[0] * made.grid[1]
    assert (found.flatten(0, 1) - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- The stage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [RESIDUAL, VIT], ids=["residual", "transformer"])
def test_features_of_a_group_are_mapped_in_the_order_of_its_items(
    tmp_path: Path, knobs: dict[str, Any]
) -> None:
    data = pictures(train=2 * CHUNK + 5)
    made = features(tmp_path, data, **knobs)
    found = made.of("train", "B")
    items = items_of(data, "train", "B")
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert found.dtype == np.float32
    assert made.grid == (8, 6)
    assert made.dimension == 24
    assert found.shape == (len(items), 8 * 6, 24)
    assert made.of("train", "B") is found
    encoded = [made.encode(images) for images in made.images(items)]
    torch.testing.assert_close(torch.from_numpy(np.array(found)), torch.cat(encoded))
    alone = made.encode(next(made.images(items[7:8])))  # 1e-5: the bits depend on the batch
    np.testing.assert_allclose(found[7:8], alone, rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_three_digits(tmp_path: Path) -> None:
    exact = features(tmp_path).of("test", "A")
    made = features(tmp_path, features="float16")
    half = made.of("test", "A")
    assert half.dtype == np.float16
    assert len(built(made)) == 1
    np.testing.assert_allclose(half, exact, rtol=1e-3, atol=1e-6)


def test_who_finds_the_stage_builds_no_encoder(tmp_path: Path) -> None:
    wanted: Any = [("train", "A"), ("test", "A"), ("train", "B")]
    first, second = features(tmp_path), features(tmp_path)
    first.prepare(wanted)
    assert built(first) == ["features"] * 3
    assert "_network" not in vars(first)  # nor is its memory held once all is encoded
    second.prepare(wanted)
    for split, group in wanted:
        assert np.array_equal(first.of(split, group), second.of(split, group))
    assert (second.grid, second.dimension) == (first.grid, first.dimension) == ((8, 6), 24)
    assert built(second) == []
    assert "_network" not in vars(first)
    assert "_network" not in vars(second)


@pytest.mark.parametrize(
    ("knobs", "grid", "dimension"),
    [
        ({}, (8, 6), 24),
        ({"target_embed_dimension": None}, (8, 6), 2 * 32),
        ({**WHOLE, "layers": "high"}, (4, 3), 192 + 96),
        ({**VIT, **WHOLE}, (8, 6), 2 * 16),
    ],
)
def test_grid_and_dimension_are_told_before_anything_is_encoded(
    tmp_path: Path, knobs: dict[str, Any], grid: tuple[int, int], dimension: int
) -> None:
    made = features(tmp_path, **knobs)
    assert (made.grid, made.dimension) == (grid, dimension)
    assert made.encode([torch.rand(1, 64, 48)]).shape == (1, grid[0] * grid[1], dimension)
    assert built(made) == []


@pytest.mark.parametrize(
    "other",
    [
        {"resize": [72, 48]},
        {"layers": "high"},
        {"pretrain_embed_dimension": 16},
        {"target_embed_dimension": 16},
        {"encoder": "resnet10t"},
    ],
)
def test_what_the_features_depend_on_names_them(tmp_path: Path, other: dict[str, Any]) -> None:
    features(tmp_path).of("test", "A")
    changed = features(tmp_path, **other)
    changed.of("test", "A")
    assert len(built(changed)) == 1


def test_the_pretext_of_a_residual_network_is_shared_by_its_features(tmp_path: Path) -> None:
    knobs = {"weights": "pretext", "pretext_steps": 2}
    made = features(tmp_path, **knobs)
    made.prepare([("train", "A"), ("train", "B")])
    assert sorted(built(made)) == ["encoder", "features", "features"]
    other = features(tmp_path, **knobs, layers="high")
    other.of("train", "A")
    assert built(other) == ["features"]
    stage = features_stage(made._params, made._data, "train", "A")
    assert [need.name for need in stage.needs] == ["encoder"]


PROCESS = """
import sys, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_features import built, features, pictures
wanted = [(s, g) for s in ("train", "test") for g in "AB"]
made = features(Path(sys.argv[1]), pictures(400, 300))
print("ready", flush=True)
sys.stdin.readline()
made.prepare(wanted)
print(len(built(made)), sum(float(made.of(*w).sum(dtype="f8")) for w in wanted))
"""


@pytest.mark.slow
def test_processes_that_start_together_share_the_encoding(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    told = [one.communicate(timeout=240)[0].split() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum(int(count) for count, _ in told) == 4
    assert all(int(count) for count, _ in told)
    assert told[0][1] == told[1][1]


MEMORY = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_features import WHOLE, features, pictures
made = features(Path(sys.argv[1]), pictures(int(sys.argv[2])), **WHOLE, resize=128)
made.encode(next(made.images(made._data.train[:32])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made.prepare([("train", "A")])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_building_takes_bounded_memory(tmp_path: Path) -> None:
    """1000 images of 256 patches of 240 floats are 246 MB; a chunk of 32 is 8 MB, some of them."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    (file,) = tmp_path.glob("stages/features/*/features.npy")
    assert file.stat().st_size > 240e6
    assert int(done.stdout) * 1024 < 100e6


# --- What cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "group", "message"),
    [("train", "C", "'C' has no training images"), ("test", "D", "'D' has no test images")],
)
def test_a_group_without_images_is_named(
    tmp_path: Path, split: Any, group: str, message: str
) -> None:
    made = features(tmp_path)
    with pytest.raises(MethodError, match=message):
        made.of(split, group)
    with pytest.raises(MethodError, match=message):
        made.prepare([("train", "A"), (split, group)])
    assert built(made) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "no shape", "another shape"])
def test_damaged_features_name_the_folder_to_remove(tmp_path: Path, damage: str) -> None:
    features(tmp_path).of("test", "A")
    (kept,) = tmp_path.glob("stages/features/*/features.npy")
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-100])
    elif damage == "empty":
        kept.write_bytes(b"")
    elif damage == "no shape":
        (kept.parent / "shape.json").unlink()
    else:
        (kept.parent / "shape.json").write_text('{"rows": 8}')
    with pytest.raises(MethodError, match=f"^{kept.parent}: .* damaged .*; remove the folder"):
        features(tmp_path).of("test", "A")


def test_a_disk_that_cannot_hold_the_features_is_said_before_encoding(tmp_path: Path) -> None:
    """300,000 images of 16384 patches: more than any disk that runs this test."""
    items = tuple(Item(str(n), "A", is_anomaly=False, path=Path()) for n in range(300_000))

    def read(item: Item) -> Any:
        raise AssertionError("an image was read")

    made = features(tmp_path, Data(items, items, ("A",), read), resize=1024)
    with pytest.raises(
        OSError, match=r"471,859 MB of features do not fit into .* target_embed_dimension"
    ):
        made.of("train", "A")
    assert not list(tmp_path.glob("stages/features/*/features.npy"))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e7, "does not fit into float16; set the knob features to 'float32'"),
        (np.inf, "is NaN or infinite; check this image and the encoder's weights"),
    ],
)
def test_output_that_cannot_be_kept_names_the_image(
    tmp_path: Path, scale: float, message: str
) -> None:
    """The third image of group A is blown up; nothing in evaluation brings it back."""
    data = pictures()

    def read(item: Item) -> Any:
        return data.read(item) * (scale if item.name == "train/4" else 1)

    made = features(tmp_path, Data(data.train, data.test, data.groups, read), features="float16")
    with pytest.raises(MethodError, match=rf"^train/4: the encoder's .*{message}"):
        made.of("train", "A")
    assert not list(tmp_path.glob("stages/features/*/features.npy"))
    assert made.of("train", "B").shape[0] == 3


def test_an_unknown_encoder_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"'resnet_18' is neither .* did you mean 'resnet18'"):
        features(tmp_path, encoder="resnet_18").of("train", "A")


def test_the_knobs_and_the_names_of_stages_need_no_torch() -> None:
    modules = "trainables.encoders.patches, trainables.encoders.stages"
    code = f"import sys, {modules}; assert not {{'torch', 'timm'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
