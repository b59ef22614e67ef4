"""Frozen encoders: the knobs that are refused, the weights that are found, what they see."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load, load_file, save, save_file

from hdsweep.method import Data, Item, MethodError
from tests.lending import Lent
from trainables import dinomaly
from trainables.encoders import EncoderParams, default_layers, patch_of, pretext
from trainables.encoders.backbone import FrozenViT, build, create, network
from trainables.encoders.images import normalised, resized
from trainables.encoders.pretext import alter

TINY: dict[str, Any] = {
    "encoder": "vit_tiny_patch16_224",
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "resize": [16, 12],
    "crop": None,
}
RESIDUAL: dict[str, Any] = {"encoder": "test_resnet", "resize": [64, 48], "crop": None}


def maps(count: int = 24) -> Data:
    """Maps with a fixed pattern, their test items out of reach."""
    rng = np.random.default_rng(0)
    pattern = rng.random((1, 16, 12), dtype=np.float32)

    def read(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert not item.name.startswith("test"), "a test item was read"
        noise = np.random.default_rng(int(item.name)).normal(1, 0.1, pattern.shape)
        return (pattern * noise).astype(np.float32)

    train = tuple(Item(str(n), "A", is_anomaly=False, path=Path()) for n in range(count))
    test = (Item("test", "A", is_anomaly=True, path=Path()),)
    return Data(train=train, test=test, groups=("A",), read=read)


def encoder(home: Path, layers: tuple[int, ...] | None = None, **knobs: object) -> FrozenViT:
    return build(EncoderParams.model_validate({**TINY, **knobs}), layers, maps(), Lent(home))


def weights_of(vit: FrozenViT) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in vit.vit.state_dict().items()}


def residual(home: Path, **knobs: object) -> Any:
    params = EncoderParams.model_validate({**RESIDUAL, **knobs})
    return network(params, maps(), Lent(home))


# --- Knobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [448, 448.0, "448", "448x448", [448, 448]])
def test_a_size_has_one_identity_however_it_is_written(size: object) -> None:
    assert EncoderParams.model_validate({"resize": size}).resize == (448, 448)


def test_height_comes_first_in_a_size() -> None:
    assert EncoderParams.model_validate({**TINY, "weights": "random"}).resize == (16, 12)
    assert EncoderParams.model_validate({"resize": "448x420"}).resize == (448, 420)


def test_no_crop_and_a_crop_to_the_whole_image_are_one_encoder() -> None:
    whole = EncoderParams.model_validate({"resize": 392, "crop": None})
    assert whole == EncoderParams.model_validate({"resize": 392, "crop": 392})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"crop": 390}, "height 390 is not a multiple of the patch size 14; use 378 or 392"),
        ({"crop": "392x10"}, "width 10 is not a multiple of the patch size 14; use 14"),
        ({"resize": 224}, "crop 392x392 is larger than resize 224x224"),
        ({"resize": "big"}, "a size is 448 or 64x96"),
        ({"resize": True}, "resize"),
        (
            {"weights": "pretraned"},
            "did you mean 'pretrained'\\? A file is named as in ./weights.pth",
        ),
        ({"weights": True}, "unknown source of weights"),
        ({"weights": "~nobody-of-that-name/w.pth"}, "cannot be read: Could not determine home"),
        ({"weights": "x" * 5000 + "/w.pth"}, "cannot be read: File name too long"),
        ({"crop": [32]}, "a size is 448 or 64x96"),
        ({"weights": "no/such.safetensors"}, "no such file"),
        ({"pretext_steps": 10}, "do not use pretext_steps"),
        ({"depth": 4}, "pretrained weights fit the published shape only; remove depth"),
        ({"weights": "random", "embed_dim": 30, "num_heads": 4}, "30 is not a multiple of num_he"),
        (
            {"encoder": "resnet18", "depth": 4, "num_heads": 2},
            r"'resnet18' is not a vision transformer \(vit_...\), .* remove depth, num_heads",
        ),
        (
            {"encoder": "seresnextaa101d_32x8d", "crop": "384x225"},
            "not a multiple of the stride of seresnextaa101d_32x8d, 32; use 224 or 256",
        ),
    ],
)
def test_knobs_that_cannot_work_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EncoderParams.model_validate(knobs)


def test_a_residual_network_sees_images_of_any_size() -> None:
    assert EncoderParams.model_validate({"encoder": "resnet18", "crop": "31x95"}).crop == (31, 95)


def test_a_patch_is_as_large_as_the_encoders_name_says() -> None:
    """Of every transformer of timm: planning counts patches by it."""
    for name in timm.list_models("vit_*", module="vision_transformer"):
        with torch.device("meta"):
            vit = timm.create_model(name, num_classes=0, depth=1)
        assert tuple(vit.patch_embed.patch_size) == (patch_of(name, None),) * 2, name


def test_dinomaly_refuses_an_encoder_without_blocks() -> None:
    with pytest.raises(ValidationError, match="blocks of a vision transformer; name one of timm's"):
        dinomaly.Params.model_validate({"encoder": "resnet50"})


def test_a_weight_file_is_named_by_its_content(tmp_path: Path) -> None:
    def identity(name: str, content: bytes) -> object:
        (tmp_path / name).write_bytes(content)
        params = EncoderParams.model_validate({"weights": str(tmp_path / name)})
        return params.identity()["weights"]

    first = identity("a.safetensors", b"1")
    assert first == identity("b.safetensors", b"1")
    assert first != identity("c.safetensors", b"2")
    assert str(first).startswith("sha256:")
    assert EncoderParams(weights="random").identity()["weights"] == "random"


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, (2, 3, 4, 5, 6, 7, 8, 9)),  # ViT-S and ViT-B, as published
        (24, (4, 6, 8, 10, 12, 14, 16, 18)),  # ViT-L, as published
        (6, (1, 2, 3, 4)),
        (2, (0, 1)),
    ],
)
def test_layers_by_default_are_the_published_ones(depth: int, layers: tuple[int, ...]) -> None:
    assert default_layers(depth) == layers


@pytest.mark.parametrize("depth", range(2, 65))
def test_layers_by_default_are_an_even_number_of_blocks(depth: int) -> None:
    layers = default_layers(depth)
    assert 2 <= len(layers) <= 8
    assert len(layers) % 2 == 0
    assert layers[-1] < depth


# --- Building -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225", "nor a residual network of timm .* did you mean 'vit_tiny"),
        ("wide_resnet50_3", "neither a vision transformer .* did you mean 'wide_resnet50_2'"),
        ("resnet18", "'resnet18' is not a vision transformer; name one"),
    ],
)
def test_an_encoder_without_blocks_to_hand_out_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        build(
            EncoderParams(encoder=name, weights="random", resize=224, crop=224),
            None,
            maps(),
            Lent(tmp_path),
        )


def test_a_layer_beyond_the_last_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="3 blocks, 0 to 2; layer 3"):
        encoder(tmp_path, (2, 3), weights="random")


def test_stopping_after_the_last_layer_changes_no_bit(tmp_path: Path) -> None:
    vit = encoder(tmp_path, (0, 1), weights="random")
    images = torch.rand(2, 3, 16, 12)
    whole = vit.vit.forward_intermediates(
        images, indices=[0, 1], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    for found, (patches, prefix) in zip(vit(images).values(), whole, strict=True):
        assert torch.equal(found, torch.cat([prefix, patches], dim=1))


def test_blocks_after_the_last_layer_are_not_computed(tmp_path: Path) -> None:
    vit = encoder(tmp_path, (0, 1), weights="random")
    computed: list[int] = []
    for n, block in enumerate(vit.vit.blocks):
        block.register_forward_hook(lambda *_, n=n: computed.append(n))
    vit(torch.rand(2, 3, 16, 12))
    assert computed == [0, 1]


def test_an_encoder_never_learns(tmp_path: Path) -> None:
    vit = encoder(tmp_path, weights="random").train()
    assert not vit.vit.training
    assert not any(p.requires_grad for p in vit.parameters())
    assert not any(t.requires_grad for t in vit(torch.rand(1, 3, 16, 12)).values())


def test_random_weights_are_the_same_for_every_replicate(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = weights_of(encoder(tmp_path, weights="random"))
    torch.manual_seed(2)
    second = weights_of(encoder(tmp_path, weights="random"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_file_of_weights_is_read_back(tmp_path: Path) -> None:
    made = encoder(tmp_path, weights="random")
    save_file({k: v + 1 for k, v in weights_of(made).items()}, tmp_path / "w.safetensors")
    found = weights_of(encoder(tmp_path, weights=str(tmp_path / "w.safetensors")))
    assert all(torch.equal(value + 1, found[key]) for key, value in weights_of(made).items())


def test_positions_are_resampled_as_anomalib_does(tmp_path: Path) -> None:
    params = EncoderParams(encoder="vit_tiny_patch16_224", weights="random", resize=112, crop=112)
    native = timm.create_model(params.encoder, num_classes=0, dynamic_img_size=True).eval()
    save_file(native.state_dict(), tmp_path / "w.safetensors")
    file = params.model_copy(update={"weights": tmp_path / "w.safetensors"})
    vit = build(file, (1,), maps(), Lent(tmp_path))
    grid = native.pos_embed[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(grid, size=(7, 7), mode="bicubic", antialias=False)
    expected = small.permute(0, 2, 3, 1).reshape(1, 49, -1)
    assert torch.equal(vit.vit.pos_embed[:, 1:], expected)
    assert torch.equal(vit.vit.pos_embed[:, :1], native.pos_embed[:, :1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a file of weights"),
        ({"other": torch.zeros(1)}, "do not fit encoder '{}': lacks"),
    ],
)
@pytest.mark.parametrize("made", [encoder, residual])
def test_a_file_of_other_content_is_refused(
    tmp_path: Path, content: dict[str, torch.Tensor] | None, message: str, made: Any
) -> None:
    path = tmp_path / "w.safetensors"
    if content is None:
        path.write_bytes(b"nothing")
    else:
        save_file(content, path)
    name = (TINY if made is encoder else RESIDUAL)["encoder"]
    with pytest.raises(MethodError, match=message.format(name)):
        made(tmp_path, weights=str(path))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    save_file(weights_of(encoder(tmp_path, weights="random")), tmp_path / "w.safetensors")
    with pytest.raises(MethodError, match="another shape"):
        encoder(tmp_path, weights=str(tmp_path / "w.safetensors"), embed_dim=32)


def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    """Their first blocks would fit, and the rest be left out without a word."""
    save_file(weights_of(encoder(tmp_path, weights="random")), tmp_path / "w.safetensors")
    with pytest.raises(MethodError, match=r"has blocks\.2\.\S+ besides .* depth and num_heads"):
        encoder(tmp_path, weights=str(tmp_path / "w.safetensors"), depth=2)
    deeper = residual(tmp_path, encoder="resnet34", weights="random")
    save_file(deeper.state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(MethodError, match=r"has layer1\.2\.\S+ besides .* encoder they are of$"):
        residual(tmp_path, encoder="resnet18", weights=str(tmp_path / "r.safetensors"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "model.safetensors"])
def test_weights_of_a_residual_network_are_read_without_its_classifier(
    tmp_path: Path, name: str
) -> None:
    """As published they have one; files of old versions of torch do not count batches."""
    with torch.random.fork_rng():
        published = timm.create_model(RESIDUAL["encoder"], pretrained=False).state_dict()
    assert "fc.weight" in published
    written = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    if name.endswith("pth"):
        torch.save({"state_dict": written}, tmp_path / name)
    else:
        save_file(written, tmp_path / name)
    file = tmp_path if name.startswith("model") else tmp_path / name  # a folder stands for its file
    found = residual(tmp_path, weights=str(file)).state_dict()
    assert not any(key.startswith("fc.") for key in found)
    assert all(torch.equal(value, published[key]) for key, value in found.items())


def test_a_residual_network_is_frozen_and_the_same_for_every_replicate(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = residual(tmp_path, weights="random")
    torch.manual_seed(2)
    second = residual(tmp_path, weights="random")
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    found = second.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in first.state_dict().items())


def test_a_folder_stands_for_the_file_of_weights_in_it(tmp_path: Path) -> None:
    made = encoder(tmp_path, weights="random")
    save_file(weights_of(made), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    params = EncoderParams.model_validate({**TINY, "weights": str(tmp_path)})
    assert params.weights == tmp_path / "model.safetensors"
    found = weights_of(build(params, None, maps(), Lent(tmp_path)))
    assert all(torch.equal(value, found[key]) for key, value in weights_of(made).items())


def test_a_folder_without_one_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="holds no file of weights; name one file"):
        EncoderParams.model_validate({"weights": str(tmp_path)})
    for name in ("a.safetensors", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ValidationError, match=r"holds a\.safetensors, b\.pth; name one file"):
        EncoderParams.model_validate({"weights": str(tmp_path)})


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_weights_saved_by_torch_are_read_without_unpickling_code(
    tmp_path: Path, wrapper: str | None
) -> None:
    weights = weights_of(encoder(tmp_path, weights="random"))
    torch.save(weights if wrapper is None else {wrapper: weights}, tmp_path / "w.pth")
    found = weights_of(encoder(tmp_path, weights=str(tmp_path / "w.pth")))
    assert all(torch.equal(value, found[key]) for key, value in weights.items())


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("made", [encoder, residual])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, made: Any) -> None:
    torch.save({"x": Bomb(tmp_path / "boom")}, tmp_path / "w.pth")
    with pytest.raises(MethodError, match="not a file of weights"):
        made(tmp_path, weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "boom").exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(MethodError, match="something else than tensors by name"):
        encoder(tmp_path, weights=str(tmp_path / "w.pth"))


# --- Weights that timm publishes ------------------------------------------------------------------


SCRIPT = """
import json, sys, time, types
from hdsweep.errors import HdsweepError
from trainables.encoders import EncoderParams
params = EncoderParams(encoder=sys.argv[1], resize=224, crop=224)
import timm
started = time.monotonic()
try:
    print(json.dumps(params.identity()["weights"]))
    if "build" in sys.argv:
        from trainables.encoders.backbone import network
        net = network(params, None, types.SimpleNamespace(device="cpu"))
        print(json.dumps(float(sum(v.double().sum() for v in net.state_dict().values()))))
except HdsweepError as error:
    print(f"{time.monotonic() - started:.3f} {error}")
"""


def published(home: Path, *arguments: str, **variables: str) -> list[str]:
    """Lines that SCRIPT prints of an encoder, in a process whose hub cache is below ``home``."""
    hidden = {"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**environment, "HF_HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


class Hub(BaseHTTPRequestHandler):
    """Serves one file for every address as a model hub does."""

    content = b""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("ETag", '"0123"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server that publishes an encoder with random weights under every name."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        weights = timm.create_model(request.param, pretrained=False).state_dict()
    Hub.content, Hub.asked = save(weights), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hub"),
    [("vit_tiny_patch16_224",) * 2, ("test_resnet.r160_in1k", "test_resnet")],
    indirect=["hub"],
)
def test_published_weights_are_named_by_their_content_before_and_after_download(
    tmp_path: Path, name: str, hub: str
) -> None:
    digest = hashlib.sha256(Hub.content).hexdigest()
    variables = {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    (before,) = published(tmp_path, name, **variables)
    assert json.loads(before) == f"sha256:{digest}"
    assert "GET" not in {r.split()[0] for r in Hub.asked if r.endswith("model.safetensors")}
    built = published(tmp_path, name, "build", **variables)
    sent = {k: v.double().sum() for k, v in load(Hub.content).items()}
    without_head = sum(v for k, v in sent.items() if not k.startswith(("head.", "fc.")))
    assert json.loads(built[1]) == pytest.approx(float(without_head), abs=1e-6)
    after = published(tmp_path, name, "build", HF_HUB_OFFLINE="1")
    assert after == built
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Hub.content)
    assert EncoderParams(weights=copy).identity()["weights"] == json.loads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),  # discard: nobody listens
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ],
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "wide_resnet50_2"])
def test_pretrained_weights_without_a_network_are_refused_at_once(
    tmp_path: Path, name: str, variables: dict[str, str], reason: str
) -> None:
    (line,) = published(tmp_path, name, **variables)
    took_s, message = line.split(" ", 1)
    assert float(took_s) < 5
    assert reason in message
    assert "set 'weights' to that file's or folder's path, or to 'random', or 'pretext'" in message


def test_without_looking_up_weights_the_name_stands_for_them() -> None:
    assert EncoderParams().identity(resolve=False)["weights"] == "pretrained"


@pytest.mark.parametrize(
    ("name", "tag"),
    [("vit_tiny_patch16_224", "augreg_in21k_ft_in1"), ("wide_resnet50_2", "racm_in1")],
)
def test_a_misspelt_tag_of_published_weights_is_refused(name: str, tag: str) -> None:
    params = EncoderParams(encoder=f"{name}.{tag}", resize=224, crop=224)
    with pytest.raises(MethodError, match=rf"no weights '{tag}' of {name}; did you mean '{tag}k'"):
        params.identity()


def test_an_encoder_without_published_weights_is_refused() -> None:
    params = EncoderParams(encoder="vit_tiny_patch16_225", resize=225, crop=224)
    with pytest.raises(MethodError, match="did you mean 'vit_tiny"):
        params.identity()


def test_positions_of_another_grid_of_as_many_patches_are_resampled(tmp_path: Path) -> None:
    """14 x 14 published positions are no 7 x 28 grid, though they are as many."""
    native = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(native.state_dict(), tmp_path / "w.safetensors")
    knobs = {"encoder": "vit_tiny_patch16_224", "resize": [112, 448], "crop": None}
    params = EncoderParams.model_validate({**knobs, "weights": tmp_path / "w.safetensors"})
    vit = build(params, (1,), maps(), Lent(tmp_path))
    assert vit.vit.pos_embed.shape == native.pos_embed.shape
    assert not torch.allclose(vit.vit.pos_embed, native.pos_embed)
    rows = vit.vit.pos_embed[0, 1:].reshape(7, 28, -1)
    before = native.pos_embed[0, 1:].reshape(14, 14, -1)
    assert torch.cosine_similarity(rows.mean(1)[0], before[:2].mean((0, 1)), 0) > 0.9


# --- The pretext ----------------------------------------------------------------------------------


def test_the_pretext_is_trained_once_and_on_training_items_only(tmp_path: Path) -> None:
    context = Lent(tmp_path)
    params = EncoderParams.model_validate({**TINY, "weights": "pretext", "pretext_steps": 3})
    torch.manual_seed(7)
    first = build(params, None, maps(), context)
    after_training = torch.get_rng_state()
    torch.manual_seed(7)
    second = build(params, None, maps(), context)
    assert len(context.built) == 1
    assert "seed" in context.made[0].inputs
    assert torch.equal(after_training, torch.get_rng_state())
    found = weights_of(second)
    assert all(torch.equal(value, found[key]) for key, value in weights_of(first).items())


def test_the_pretext_reads_images_of_different_sizes_and_knows_their_order(tmp_path: Path) -> None:
    data = maps()

    def read(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
        return data.read(item)[:, : 16 - int(item.name) % 2]

    mixed = Data(data.train, data.test, data.groups, read)
    params = EncoderParams.model_validate({**TINY, "weights": "pretext", "pretext_steps": 3})
    context = Lent(tmp_path)
    build(params, None, mixed, context)
    turned = Data(data.train[::-1], data.test, data.groups, read)
    build(params, None, turned, context)
    assert len(context.built) == 2


def test_positions_after_the_pretext_stay_where_they_were_learned(tmp_path: Path) -> None:
    """7 x 28 patches are as many as the published 14 x 14, and are not resampled from there."""
    knobs = {"encoder": "vit_tiny_patch16_224", "embed_dim": 16, "depth": 2, "num_heads": 2}
    sizes = {"resize": [112, 448], "crop": None, "weights": "pretext", "pretext_steps": 1}
    vit = build(EncoderParams.model_validate({**knobs, **sizes}), (0, 1), maps(), Lent(tmp_path))
    (kept,) = tmp_path.rglob("model.safetensors")
    assert torch.equal(load_file(kept)["pos_embed"], vit.vit.pos_embed)


def test_the_pretext_starts_from_the_encoders_own_seed(tmp_path: Path) -> None:
    """Nothing is drawn before it, or every store would hold another encoder under the same name."""
    params = EncoderParams.model_validate({**TINY, "weights": "pretext", "pretext_steps": 3})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = pretext.train(create(params), params, maps(), seed=0, context=Lent(tmp_path))
    found = weights_of(build(params, None, maps(), Lent(tmp_path)))
    assert all(torch.equal(value, found[key]) for key, value in expected.state_dict().items())


def test_the_pretext_is_a_function_of_its_inputs(tmp_path: Path) -> None:
    knobs = {"weights": "pretext", "pretext_steps": 3}
    first = weights_of(encoder(tmp_path / "1", **knobs))
    torch.manual_seed(99)
    second = weights_of(encoder(tmp_path / "2", **knobs))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_pretext_of_a_residual_network_is_trained_once_and_then_evaluates(
    tmp_path: Path,
) -> None:
    knobs = {"weights": "pretext", "pretext_steps": 3}
    context = Lent(tmp_path / "1")
    params = EncoderParams.model_validate({**RESIDUAL, **knobs})
    torch.manual_seed(7)
    first = network(params, maps(), context)
    after_training = torch.get_rng_state()
    torch.manual_seed(7)
    second = network(params, maps(), context)
    assert torch.equal(after_training, torch.get_rng_state())
    assert context.built == ["encoder"]
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    elsewhere = residual(tmp_path / "2", **knobs)
    for found in (second.state_dict(), elsewhere.state_dict()):
        assert all(torch.equal(value, found[key]) for key, value in first.state_dict().items())


def test_statistics_after_the_pretext_are_those_of_the_data(tmp_path: Path) -> None:
    """In each stage, though few steps were trained; 5 % for batches that are drawn of 24 maps."""
    net = residual(tmp_path, weights="pretext", pretext_steps=3)
    params = EncoderParams.model_validate({**RESIDUAL, "weights": "random"})
    data = maps()
    images = [resized(torch.from_numpy(data.read(item))[None], params) for item in data.train]
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    entered: dict[Any, torch.Tensor] = {}
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, given: entered.update({m: given[0].detach()}))
    net(normalised(torch.cat(images)))
    for norm in norms:
        mean, deviation = entered[norm].mean((0, 2, 3)), entered[norm].std((0, 2, 3))
        assert ((norm.running_mean - mean).abs() < 0.05 * deviation.max()).all()
        torch.testing.assert_close(norm.running_var.sqrt(), deviation, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("size", [[12, 16], [33, 47], [95, 31]])
def test_the_pretext_asks_a_residual_network_about_maps_of_any_size(
    tmp_path: Path, size: list[int]
) -> None:
    residual(tmp_path, weights="pretext", pretext_steps=1, resize=size)


def test_alterations_are_told_as_they_are() -> None:
    images = torch.rand(16, 1, 16, 12) + 0.1
    altered, log_gain = alter(images, np.random.default_rng(0))
    torch.testing.assert_close((altered / images).log(), log_gain, rtol=0, atol=1e-5)
    assert (log_gain > 0).any()
    assert (log_gain < 0).any()
    assert (log_gain == 0).any()


@pytest.mark.parametrize(
    "knobs", [TINY, pytest.param({**RESIDUAL, "resize": [32, 24]}, marks=pytest.mark.slow)]
)
def test_the_pretext_learns_to_find_alterations(tmp_path: Path, knobs: dict[str, Any]) -> None:
    """Its loss must fall below that of always answering 0, on maps it was not trained on."""
    knobs = {**knobs, "weights": "pretext", "pretext_steps": 150}
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    context = Lent(tmp_path)
    context.log = logging.Logger("pretext")
    context.log.addHandler(Listener())
    network(EncoderParams.model_validate(knobs), maps(200), context)
    assert float(messages[-1].split("explains ")[1].split()[0]) > 0.2


# --- What an encoder sees -------------------------------------------------------------------------


def test_one_channel_is_seen_as_three_in_imagenets_unit() -> None:
    images = torch.full((1, 1, 4, 4), 0.5)
    seen = normalised(images)
    assert seen.shape == (1, 3, 4, 4)
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)


def test_two_channels_are_refused() -> None:
    with pytest.raises(MethodError, match="2 channels"):
        normalised(torch.zeros(1, 2, 4, 4))


def test_values_above_one_are_not_clipped() -> None:
    params = EncoderParams.model_validate({**TINY, "weights": "random"})
    assert resized(torch.full((1, 1, 31, 95), 1.7), params).max() == pytest.approx(1.7)


def test_the_crop_is_taken_from_the_centre() -> None:
    params = EncoderParams(encoder="vit_b", weights="random", resize=(8, 8), crop=(4, 2))
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(resized(image, params), image[..., 2:6, 3:5])


def test_the_knobs_need_no_torch() -> None:
    code = "import sys, trainables.encoders; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
