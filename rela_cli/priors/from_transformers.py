"""Files of Hugging Face's transformers: their names of ViT, DINOv2, CLIP and SigLIP, as timm and open_clip have them.

The networks are the same, the names are not: transformers keeps query, key and value apart and says `encoder.layer.0`
where timm says `blocks.0`. Each family is a table from its names to timm's; OPEN_CLIP goes from timm's to open_clip's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rela_cli.errors import ConfigError
from rela_cli.priors.reading import State

TOKENS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.N.attention.attention.query": "blocks.N.attn.q",
    "encoder.layer.N.attention.attention.key": "blocks.N.attn.k",
    "encoder.layer.N.attention.attention.value": "blocks.N.attn.v",
    "encoder.layer.N.attention.output.dense": "blocks.N.attn.proj",
    "layernorm": "norm",
}
VIT = TOKENS | {
    "encoder.layer.N.layernorm_before": "blocks.N.norm1",
    "encoder.layer.N.layernorm_after": "blocks.N.norm2",
    "encoder.layer.N.intermediate.dense": "blocks.N.mlp.fc1",
    "encoder.layer.N.output.dense": "blocks.N.mlp.fc2",
}
DINOV2 = TOKENS | {
    "embeddings.mask_token": "mask_token",  # timm knows a file of DINOv2 by it, and what registers do to positions
    "embeddings.register_tokens": "register_tokens",
    "encoder.layer.N.norm1": "blocks.N.norm1",
    "encoder.layer.N.norm2": "blocks.N.norm2",
    "encoder.layer.N.layer_scale1.lambda1": "blocks.N.ls1.gamma",
    "encoder.layer.N.layer_scale2.lambda1": "blocks.N.ls2.gamma",
    "encoder.layer.N.mlp.fc1": "blocks.N.mlp.fc1",
    "encoder.layer.N.mlp.fc2": "blocks.N.mlp.fc2",
    "encoder.layer.N.mlp.weights_in": "blocks.N.mlp.w12",
    "encoder.layer.N.mlp.weights_out": "blocks.N.mlp.w3",
}
TOWER = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "encoder.layers.N.self_attn.q_proj": "blocks.N.attn.q",
    "encoder.layers.N.self_attn.k_proj": "blocks.N.attn.k",
    "encoder.layers.N.self_attn.v_proj": "blocks.N.attn.v",
    "encoder.layers.N.self_attn.out_proj": "blocks.N.attn.proj",
    "encoder.layers.N.layer_norm1": "blocks.N.norm1",
    "encoder.layers.N.layer_norm2": "blocks.N.norm2",
    "encoder.layers.N.mlp.fc1": "blocks.N.mlp.fc1",
    "encoder.layers.N.mlp.fc2": "blocks.N.mlp.fc2",
    "post_layernorm": "norm",
}
CLIP = TOWER | {
    "embeddings.class_embedding": "cls_token",
    "pre_layrnorm": "norm_pre",  # transformers' own spelling
    "visual_projection": "head",
}
SIGLIP = TOWER | {
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_weight": "attn_pool.in_proj.weight",
    "head.attention.in_proj_bias": "attn_pool.in_proj.bias",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
OPEN_CLIP = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj": "conv1",
    "norm_pre": "ln_pre",
    "norm": "ln_post",
    "head.weight": "proj",
    "blocks.N.norm1": "transformer.resblocks.N.ln_1",
    "blocks.N.norm2": "transformer.resblocks.N.ln_2",
    "blocks.N.attn.qkv.weight": "transformer.resblocks.N.attn.in_proj_weight",
    "blocks.N.attn.qkv.bias": "transformer.resblocks.N.attn.in_proj_bias",
    "blocks.N.attn.proj": "transformer.resblocks.N.attn.out_proj",
    "blocks.N.mlp.fc1": "transformer.resblocks.N.mlp.c_fc",
    "blocks.N.mlp.fc2": "transformer.resblocks.N.mlp.c_proj",
}
# Heads and text towers, which no image prior has a use for, and numbers that are no weights.
LEFT_OUT = re.compile(r"(.*\.)?(pooler|classifier|decoder|text_model|text_projection|logit_scale|logit_bias)(\..*)?")
POSITIONS = "embeddings.position_ids"
PROJECTION = "visual_projection.weight"  # stands beside the tower, not in it
PATCHES = re.compile(r"(?P<before>.*?)embeddings\.(patch_embeddings\.projection|patch_embedding)\.weight")
SIZE_OF_WIDTH = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge", 1536: "giant"}
CONFIG_NAMES = {"clip": {(768, 16): "clip_vitb16", (768, 32): "clip_vitb32", (1024, 14): "clip_vitl14"}}
CONFIG_NAMES["dinov2"] = {(384, 14): "dinov2_vits14", (768, 14): "dinov2_vitb14"}


@dataclass(frozen=True)
class Family:
    """An architecture as transformers has it: its names, and the arithmetic that no key shows."""

    name: str
    names: Mapping[str, str]
    epsilon: float  # of its layer norms
    activation: str | None  # as its config.json calls it; None where the prior's own keys choose it


VIT_FAMILY = Family("vit", VIT, 1e-12, "gelu")
DINOV2_FAMILY = Family("dinov2", DINOV2, 1e-6, "gelu")
CLIP_FAMILY = Family("clip", CLIP, 1e-5, None)
SIGLIP_FAMILY = Family("siglip", SIGLIP, 1e-6, "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Found:
    """A file of transformers: its family, and what stands before its `embeddings.`."""

    family: Family | None  # None for an architecture that has no table here
    before: str
    width: int
    patch: int
    projected: bool  # whether CLIP's projection is in it

    def __str__(self) -> str:
        kind = f"of {self.family.name}" if self.family else "of an architecture that has no table here"
        return f"a file of transformers, {kind}, width {self.width}, patches of {self.patch} px"

    @property
    def prior(self) -> str:
        """What to type for it."""
        if self.family is None:
            return "prior=exported or prior=onnx take a whole program of any architecture"
        size = SIZE_OF_WIDTH.get(self.width, "SIZE")
        model = {
            "vit": f"vit_{size}_patch{self.patch}_224",
            "dinov2": f"vit_{size}_patch{self.patch}_dinov2.lvd142m",
            "clip": f"vit_{size}_patch{self.patch}_clip_quickgelu_224.openai",
            "siglip": f"vit_{size}_patch{self.patch}_siglip_224.webli",
        }[self.family.name]
        if self.family is CLIP_FAMILY and not self.projected:
            lack = "it lacks CLIP's projection, CLIPVisionModelWithProjection has it"
            return f"{lack}: save that, or say prior=timm prior.model={model}"
        named = CONFIG_NAMES.get(self.family.name, {}).get((self.width, self.patch))
        return f"say prior={named}" if named else f"say prior=timm prior.model={model}, or the one of this size"


def recognise(state: State, path: Path, prefix: str | None = None) -> Found | None:
    """What transformers has saved in a file; None when the file is not its own.

    Raises:
        ConfigError: two networks in it, and no `prefix` to choose by.
    """
    places = [match for key in state if (match := PATCHES.fullmatch(key))]
    if prefix:
        places = [place for place in places if place["before"] == prefix]
    if len(places) > 1:
        names = ", ".join(place["before"] or '""' for place in places)
        raise ConfigError(f"{path} holds {len(places)} networks; say prior.prefix= one of {names}")
    if not places:
        return None
    before, weight = places[0]["before"], state[places[0].string]
    family, projected = family_of({key.removeprefix(before) for key in state}), any(PROJECTION in key for key in state)
    return Found(family, before, weight.shape[0], weight.shape[-1], projected)


def family_of(keys: set[str]) -> Family | None:
    """By the keys that one family alone has."""
    if "embeddings.class_embedding" in keys:
        return CLIP_FAMILY
    if "embeddings.position_embedding.weight" in keys and "head.probe" in keys:
        return SIGLIP_FAMILY
    layer = {key.removeprefix("encoder.layer.0.") for key in keys}
    if "layer_scale1.lambda1" in layer:
        return DINOV2_FAMILY
    plain = {"embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight"} <= keys
    return VIT_FAMILY if plain and "layernorm_before.weight" in layer and not is_relative(keys) else None


def is_relative(keys: set[str]) -> bool:
    """Whether it is one of ViT's relatives that compute something else: DeiT's second token, BEiT's and YOLOS' ways."""
    return any(re.search(r"distillation|relative_position|lambda_|detection_tokens|mid_position", key) for key in keys)


def translated(state: State, found: Found, network: nn.Module, path: Path) -> State:
    """Rename the tensors to the names of `network`. A tensor in no table keeps its name; loading reports it.

    Raises:
        ConfigError: the network is of another kind, with the prior to choose.
    """
    own = set(network.state_dict())
    is_clip, trunk = "positional_embedding" in own, "trunk." * ("trunk.patch_embed.proj.weight" in own)
    fits = is_clip if found.family is CLIP_FAMILY else False
    if found.family is None or not (fits or f"{trunk}blocks.0.attn.qkv.weight" in own):
        raise ConfigError(f"{path} is {found}: this prior's network is another one; {found.prior}")
    named = dict(renamed(state, found.before, found.family.names))
    named = shaped(joined_matrices(named))
    if is_clip:
        return as_open_clip(named)
    return {f"{trunk}{key}": value for key, value in named.items()}


def renamed(state: State, before: str, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Key by key, as a table has it."""
    for key, value in state.items():
        inner = PROJECTION if key.endswith(PROJECTION) else key.removeprefix(before)
        if known := by_table(inner, names):
            yield known, value
        elif not LEFT_OUT.fullmatch(key) and inner != POSITIONS:
            yield key, value


def by_table(key: str, names: Mapping[str, str]) -> str | None:
    """What a table makes of a key: `encoder.layer.3.norm1.bias` is looked up as `encoder.layer.N.norm1`."""
    number = re.search(r"\.(\d+)\.", key)
    general = key if number is None else f"{key[: number.start()]}.N.{key[number.end() :]}"
    stem, _, end = general.rpartition(".")
    found = names.get(general) or (f"{names[stem]}.{end}" if stem in names and end in ("weight", "bias") else None)
    return found.replace(".N.", f".{number[1]}.") if found and number else found


def joined_matrices(state: State) -> State:
    """Query, key and value as the one matrix that timm has; the pooling head's one matrix as timm's two."""
    out: State = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(.+\.attn)\.([qkv])\.(weight|bias)", key):
            parts = [state.get(f"{match[1]}.{letter}.{match[3]}") for letter in "qkv"]
            whole = [part for part in parts if part is not None]
            out |= {f"{match[1]}.qkv.{match[3]}": torch.cat(whole)} if len(whole) == 3 else {key: value}
        elif key.startswith("attn_pool.in_proj."):
            end, width = key.rpartition(".")[2], len(value) // 3
            out |= {f"attn_pool.q.{end}": value[:width], f"attn_pool.kv.{end}": value[width:]}
        else:
            out[key] = value
    return out


def shaped(state: State) -> State:
    """Tokens and positions with the leading ones that timm has."""
    for key in ("cls_token", "pos_embed"):
        if key in state:
            state[key] = state[key].reshape(1, -1, state[key].shape[-1])
    return state


def as_open_clip(state: State) -> State:
    """From timm's names and shapes to those of open_clip's own tower."""
    out = {by_table(key, OPEN_CLIP) or key: value for key, value in state.items()}
    flat = {"class_embedding": (-1,), "positional_embedding": (-1, out["class_embedding"].shape[-1])}
    out |= {key: out[key].reshape(shape) for key, shape in flat.items() if key in out}
    return out | ({"proj": out["proj"].T} if "proj" in out else {})


def settle(network: nn.Module, found: Found, path: Path) -> None:
    """Give the network the arithmetic of the family, which no key shows; config.json beside the file has its say.

    Raises:
        ConfigError: config.json wants other heads, another epsilon or another activation than this network has.
    """
    assert found.family is not None
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = found.family.epsilon
        if found.family is SIGLIP_FAMILY and hasattr(module, "act") and isinstance(module.act, nn.GELU):
            module.act = nn.GELU(approximate="tanh")
    said = config_beside(path)
    ours: dict[str, Any] = {"layer_norm_eps": found.family.epsilon, "num_attention_heads": heads(network)}
    ours["hidden_act"] = found.family.activation or activation(network)
    for key, value in ours.items():
        if value is not None and said.get(key, value) != value:
            raise ConfigError(
                f"{path.parent / 'config.json'} says {key}={said[key]}, and this network has {value}: "
                f"the weights would load, and the features would be wrong. {hint(key, found)}"
            )


def hint(key: str, found: Found) -> str:
    """The way out where config.json disagrees."""
    if key == "hidden_act" and found.family is CLIP_FAMILY:
        return "Say prior.quick_gelu=true for quick_gelu, false for gelu"
    return "prior=exported or prior=onnx take a whole program of any architecture"


def config_beside(path: Path) -> dict[str, Any]:
    """What config.json beside a file says of the image network; empty when there is none of transformers."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or "model_type" not in config:
        return {}
    vision = config.get("vision_config", config)
    return vision if isinstance(vision, dict) else {}


def heads(network: nn.Module) -> int | None:
    """Attention heads of a network's first block."""
    for module in network.modules():
        if isinstance(count := getattr(module, "num_heads", None), int):
            return count
    return None


def activation(network: nn.Module) -> str | None:
    """quick_gelu or gelu, as config.json calls the activation of an open_clip or timm network."""
    kinds = {type(module).__name__ for module in network.modules()}
    return "quick_gelu" if kinds & {"QuickGELU", "QuickGELUActivation"} else "gelu" if "GELU" in kinds else None
