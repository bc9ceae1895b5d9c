"""Files in the layout of Hugging Face's transformers: their features against the architecture written out here."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.parts import instantiate
from rela_cli.errors import ConfigError, MissingError
from rela_cli.priors.checkpoint import Checkpoint
from rela_cli.priors.clip import resized
from rela_cli.priors.loading import State, WeightsFile, fill_network
from rela_cli.priors.timm import translation
from rela_cli.weights.locate import file_in, locate, located
from tests.factories import config

WIDTH, LAYERS, HEADS, PATCH, SIDE = 32, 2, 2, 8, 32
SMALL = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
GRID = (SIDE // PATCH) ** 2


def layer_names(family: str) -> dict[str, str]:
    """What stands in one layer, by what it does here."""
    if family in ("vit", "dinov2", "registers"):
        attention = {x: f"attention.attention.{name}" for x, name in zip("qkv", ("query", "key", "value"), strict=True)}
        names = {**attention, "out": "attention.output.dense"}
        if family == "vit":
            rest = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
        else:
            rest = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    else:
        names = {**{x: f"self_attn.{x}_proj" for x in "qkv"}, "out": "self_attn.out_proj"}
        rest = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    return {**names, **dict(zip(("norm1", "norm2", "fc1", "fc2"), rest, strict=True))}


def made(family: str, before: str = "", seed: int = 0) -> State:
    """Weights of a small network under transformers' names, as `save_pretrained` writes them."""
    draw = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=draw)

    def linear(name: str, wide: int, narrow: int) -> State:
        return {f"{name}.weight": some(wide, narrow), f"{name}.bias": some(wide)}

    def norm(name: str) -> State:
        return {f"{name}.weight": 1 + some(WIDTH), f"{name}.bias": some(WIDTH)}

    patches = some(WIDTH, 3, PATCH, PATCH)
    if family in ("vit", "dinov2", "registers"):
        state = {
            "embeddings.cls_token": some(1, 1, WIDTH),
            "embeddings.position_embeddings": some(1, 1 + GRID, WIDTH),
            "embeddings.patch_embeddings.projection.weight": patches,
            "embeddings.patch_embeddings.projection.bias": some(WIDTH),
            **norm("layernorm"),
        }
        state |= {} if family == "vit" else {"embeddings.mask_token": some(1, WIDTH)}
        state |= {"embeddings.register_tokens": some(1, 4, WIDTH)} if family == "registers" else {}
        stack = "encoder.layer"
    else:
        state = {"embeddings.patch_embedding.weight": patches, **norm("post_layernorm")}
        state["embeddings.position_embedding.weight"] = some(GRID + (family == "clip"), WIDTH)
        stack = "encoder.layers"
        if family == "clip":
            state |= {"embeddings.class_embedding": some(WIDTH), **norm("pre_layrnorm")}
        else:
            state |= {"embeddings.patch_embedding.bias": some(WIDTH), "head.probe": some(1, 1, WIDTH)}
            state |= {"head.attention.in_proj_weight": some(3 * WIDTH, WIDTH)}
            state |= {"head.attention.in_proj_bias": some(3 * WIDTH), **norm("head.layernorm")}
            state |= linear("head.attention.out_proj", WIDTH, WIDTH)
            state |= {**linear("head.mlp.fc1", 4 * WIDTH, WIDTH), **linear("head.mlp.fc2", WIDTH, 4 * WIDTH)}
    for i in range(LAYERS):
        names = {what: f"{stack}.{i}.{name}" for what, name in layer_names(family).items()}
        for what in ("q", "k", "v", "out"):
            state |= linear(names[what], WIDTH, WIDTH)
        state |= {**norm(names["norm1"]), **norm(names["norm2"])}
        state |= {**linear(names["fc1"], 4 * WIDTH, WIDTH), **linear(names["fc2"], WIDTH, 4 * WIDTH)}
        if family in ("dinov2", "registers"):
            state |= {f"{stack}.{i}.layer_scale{j}.lambda1": 1 + some(WIDTH) for j in (1, 2)}
    state = {f"{before}{key}": value for key, value in state.items()}
    if family == "clip":
        state["visual_projection.weight"] = some(24, WIDTH)
    return state


EPSILON = {"vit": 1e-12, "dinov2": 1e-6, "registers": 1e-6, "clip": 1e-5, "siglip": 1e-6}
ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("vit", "dinov2", "registers"), F.gelu),
    "clip": lambda x: x * torch.sigmoid(1.702 * x),
    "siglip": partial(F.gelu, approximate="tanh"),
}


def expected(family: str, state: State, images: Tensor) -> Tensor:
    """The architecture, from the papers, on transformers' names: (B, 3, 32, 32) -> (B, D), in float64."""
    w = {key: value.double() for key, value in state.items()}
    act, x = ACTIVATION[family], images.double()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        deviation = (x.var(-1, unbiased=False, keepdim=True) + EPSILON[family]).sqrt()
        return (x - x.mean(-1, keepdim=True)) / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    convolution = next(
        key for key in w if key.endswith(("projection.weight", "patch_embedding.weight")) and "emb" in key
    )
    tokens = F.conv2d(x, w[convolution], w.get(convolution.replace("weight", "bias")), stride=PATCH)
    tokens = tokens.flatten(2).transpose(1, 2)
    positions = next(w[key] for key in w if "position" in key)
    first = w.get("embeddings.cls_token", w.get("embeddings.class_embedding"))
    if first is not None:
        tokens = torch.cat((first.reshape(1, 1, WIDTH).expand(len(x), -1, -1), tokens), 1)
    tokens = tokens + positions
    if family == "registers":
        registers = w["embeddings.register_tokens"].expand(len(x), -1, -1)
        tokens = torch.cat((tokens[:, :1], registers, tokens[:, 1:]), 1)
    if family == "clip":
        tokens = norm("pre_layrnorm", tokens)
    for i in range(LAYERS):
        stack = "encoder.layer" if family in ("vit", "dinov2", "registers") else "encoder.layers"
        n = {what: f"{stack}.{i}.{name}" for what, name in layer_names(family).items()}
        one, two = (w.get(f"{stack}.{i}.layer_scale{j}.lambda1", torch.ones(())) for j in (1, 2))
        y = norm(n["norm1"], tokens)
        tokens = tokens + one * linear(n["out"], attention(*(linear(n[what], y) for what in "qkv")))
        tokens = tokens + two * linear(n["fc2"], act(linear(n["fc1"], norm(n["norm2"], tokens))))
    if family != "siglip":
        features = norm("post_layernorm" if family == "clip" else "layernorm", tokens[:, 0])
        return features @ w["visual_projection.weight"].T if family == "clip" else features
    tokens = norm("post_layernorm", tokens)
    weights, biases = (w[f"head.attention.in_proj_{end}"].chunk(3) for end in ("weight", "bias"))
    probe = w["head.probe"].expand(len(x), -1, -1)
    q, k, v = (t @ a.T + b for t, a, b in zip((probe, tokens, tokens), weights, biases, strict=True))
    pooled = linear("head.attention.out_proj", attention(q, k, v))
    pooled = pooled + linear("head.mlp.fc2", act(linear("head.mlp.fc1", norm("head.layernorm", pooled))))
    return pooled[:, 0]


def timm_network(**options: object) -> nn.Module:
    return VisionTransformer(**{**SMALL, "num_classes": 0, **options})


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": timm_network,
    "dinov2": partial(timm_network, init_values=1e-5),
    "registers": partial(timm_network, init_values=1e-5, reg_tokens=4, no_embed_class=True),
    "siglip": partial(timm_network, class_token=False, global_pool="map"),
}


def clip_tower() -> nn.Module:
    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
    text = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}
    return open_clip.model.CLIP(24, vision, text, quick_gelu=True)


def written(tmp_path: Path, state: State, **said: object) -> Path:
    """model.safetensors, and config.json where something is said."""
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    if said:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", **said}))
    return tmp_path / "model.safetensors"


IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("before", ["", "backbone.model."])
@pytest.mark.parametrize("family", ["vit", "dinov2", "registers", "siglip"])
def test_timm_gives_the_features_of_the_architecture(tmp_path: Path, family: str, before: str) -> None:
    head = {"classifier.weight": torch.zeros(2, WIDTH), "text_model.embeddings.token_embedding.weight": torch.zeros(2)}
    pooler = {f"{before}pooler.dense.weight": torch.zeros(WIDTH, WIDTH)}
    path = written(tmp_path, made(family, before) | head | pooler)
    network = NETWORKS[family]()
    fill_network(network, WeightsFile(str(path)), translation(network))
    with torch.no_grad():
        found = network.eval()(IMAGES)
    assert (found - expected(family, made(family), IMAGES)).abs().max() < 1e-5


def test_open_clip_gives_the_features_of_clip(tmp_path: Path) -> None:
    path = written(tmp_path, made("clip", "vision_model."), hidden_act="quick_gelu", num_attention_heads=HEADS)
    clip = clip_tower()
    fill_network(clip.visual, WeightsFile(str(path)), lambda state: resized(state, clip))
    with torch.no_grad():
        found = clip.visual.eval()(IMAGES)
    assert (found - expected("clip", made("clip"), IMAGES)).abs().max() < 1e-5


def test_a_folder_of_transformers_is_a_prior(tmp_path: Path) -> None:
    """prior.weights=FOLDER: from config.json to features, with a model of timm's by its name."""
    network = timm.create_model("test_vit", num_classes=0).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    back = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    back |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    state = {}
    for key, value in network.state_dict().items():
        for ours, theirs in back.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        key = key.replace("blocks.", "encoder.layer.").replace(
            "patch_embed.proj", "embeddings.patch_embeddings.projection"
        )
        key = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}.get(key, key)
        key = key.replace("norm.", "layernorm.") if key.startswith("norm.") else key
        if "attn.qkv" in key:
            names = [key.replace("attn.qkv", f"attention.attention.{name}") for name in ("query", "key", "value")]
            state |= dict(zip(names, value.chunk(3), strict=True))
        else:
            state[key] = value
    written(tmp_path, {f"vit.{key}": value.clone() for key, value in state.items()}, num_attention_heads=2)
    prior = config("prior=timm", "prior.model=test_vit", f"prior.weights={tmp_path}").prior
    assert locate(prior) == tmp_path / "model.safetensors"
    made_prior = instantiate(located(prior)).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(made_prior(images), network(made_prior.preprocess(images)), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "network", "said", "message"),
    [
        ("vit", lambda: timm_network(num_heads=4), {"num_attention_heads": 2}, r"num_attention_heads=2.*network has 4"),
        ("vit", timm_network, {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ("dinov2", NETWORKS["dinov2"], {"hidden_act": "silu"}, "hidden_act=silu"),
        (
            "dinov2",
            partial(timm.create_model, "test_resnet"),
            {},
            "of dinov2, width 32.*prior.model=vit_SIZE_patch8_dino",
        ),
        ("vit", lambda: clip_tower().visual, {}, "of vit.*this prior's network is another one; say prior=timm"),
        (
            "vit",
            partial(timm_network, depth=3),
            {},
            "missing: blocks.2.norm1.weight.*is a file of transformers, of vit",
        ),
        ("beit", timm_network, {}, "an architecture that has no table here.*prior=onnx"),
    ],
)
def test_what_does_not_fit_says_so(
    tmp_path: Path, family: str, network: Callable[[], nn.Module], said: dict[str, object], message: str
) -> None:
    state = made("vit" if family == "beit" else family)
    state |= {"encoder.layer.0.lambda_1": torch.ones(WIDTH)} if family == "beit" else {}
    path = written(tmp_path, state, **said)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        fill_network(asked := network(), WeightsFile(str(path)), translation(asked))


def test_a_prior_of_another_kind_names_the_right_one(tmp_path: Path) -> None:
    path = str(written(tmp_path, made("clip", "vision_model.") | {"embeddings.x": torch.zeros(1)}))
    with pytest.raises(ConfigError, match=r"of clip, width 32.*prior.model=resnet20 is another network"):
        Checkpoint("resnet20", path, "cifar", 32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ConfigError, match=r"unexpected: embeddings\.x"):
        fill_network(clip_tower().visual, WeightsFile(path))
    lonely = {key: value for key, value in made("clip").items() if "projection" not in key}
    with pytest.raises(ConfigError, match=r"(?s)missing: proj.*CLIPVisionModelWithProjection has it"):
        fill_network(clip_tower().visual, WeightsFile(str(written(tmp_path, lonely))))


def test_one_key_makes_no_prefix(tmp_path: Path) -> None:
    """`embeddings.cls_token` of an unknown network is not where a timm network stands."""
    state = {f"embeddings.{key}": value for key, value in {"cls_token": torch.zeros(1, 1, WIDTH)}.items()}
    path = written(tmp_path, state | {f"layers.{i}.weight": torch.zeros(1) for i in range(200)})
    with pytest.raises(ConfigError, match=r"(?s)missing: cls_token.*unexpected: embeddings.cls_token.*201 in all"):
        fill_network(timm_network(), WeightsFile(str(path)))


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert file_in(tmp_path) == tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert file_in(tmp_path) == tmp_path / "model.safetensors"
    (tmp_path / "split").mkdir()
    with pytest.raises(MissingError, match=r"is a folder without model\.safetensors"):
        file_in(tmp_path / "split")
    (tmp_path / "split" / "model.safetensors.index.json").write_text("{}")
    assert file_in(tmp_path / "split").name == "model.safetensors.index.json", "an index is as good as one file"
