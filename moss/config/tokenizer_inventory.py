"""Which tensors a Cat's checkpoint holds, without building one; and naming a checkpoint by what it holds.

Names are those of the 24 kHz checkpoint.
Source: the state dicts of MOSS-Audio-Tokenizer, MOSS-Audio-Tokenizer-v2 and MOSS-Audio-Tokenizer-Nano.
"""

import math
import re
from collections.abc import Mapping

from moss.config.tokenizer import CatConfig, QuantizerConfig, TransformerStage

Shapes = Mapping[str, tuple[int, ...]]

_PUBLISHED = {
    (1600, 1_774_566_400): ("the published 24 kHz mono tokenizer (v1)", "cat_full"),
    (2094, 2_123_701_248): ("the published 48 kHz stereo tokenizer (v2)", "cat_v2"),
    (374, 21_969_664): ("the published Nano tokenizer", "cat_nano"),
}
"""By number of tensors and of values: what it is, and the preset that describes it."""
_STAGE = re.compile(r"^(encoder|decoder)\.(\d+)\.")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def state_shapes(config: CatConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a whole Cat, both halves, whatever `config.part` says."""
    shapes: dict[str, tuple[int, ...]] = {}
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder_stages())):
        for i, stage in enumerate(stages):
            if isinstance(stage, TransformerStage):
                shapes |= {f"{side}.{i}.{name}": shape for name, shape in _stage_shapes(stage).items()}
    return shapes | {f"quantizer.{name}": shape for name, shape in _quantizer_shapes(config.quantizer).items()}


def preset_of(shapes: Shapes) -> str | None:
    """Name of the preset in configs/tokenizer/ for the tensors of a published checkpoint; None for others."""
    known = _PUBLISHED.get(_size(shapes))
    return None if known is None else known[1]


def structure(shapes: Shapes) -> tuple[object, ...]:
    """What tells two networks apart at a glance: blocks and widths of every stage, projections, codebooks.

    Robust against a few missing or unknown tensors; names may be of any published spelling.
    """
    blocks: dict[str, set[str]] = {}
    widths: dict[str, int] = {}
    has_equal_projection = False
    for name, shape in shapes.items():
        place = _STAGE.match(name)
        if place is None:
            continue
        layer = _LAYER.search(name)
        if layer is not None:
            blocks.setdefault(place[0], set()).add(layer[1])
        if name.endswith(".norm1.weight") and shape:
            widths[place[0]] = shape[0]
        elif name.endswith("put_proj.weight") and len(shape) == 2:
            has_equal_projection |= shape[0] == shape[1]
    # Numbers of modules are compared too: in Nano's decoder they are other ones than in the large ones'.
    stages = tuple(sorted((stem, len(found), widths.get(stem, 0)) for stem, found in blocks.items()))
    tables = [shape for name, shape in shapes.items() if name.endswith(".codebook.weight")]
    return stages, has_equal_projection, len(tables), tables[0] if tables else ()


def describe(shapes: Shapes) -> str:
    """A checkpoint in words: the published one that it is, or its sizes."""
    known = _PUBLISHED.get(_size(shapes))
    num_tensors, num_values = _size(shapes)
    if known is not None:
        return f"{known[0]}, {num_values:,} values"
    stages, has_equal_projection, num_codebooks, _ = structure(shapes)
    assert isinstance(stages, tuple)
    halves = []
    for side in ("encoder", "decoder"):
        found = [f"{layers}x{width}" for stem, layers, width in stages if stem.startswith(side)]
        halves.append(f"{side} {' '.join(found) or 'absent'}")
    form = "the v2 form (projections everywhere)" if has_equal_projection else "the v1 form"
    return (
        f"a Cat of {form} with {num_values:,} values in {num_tensors} tensors, {', '.join(halves)} (blocks x width), "
        f"{num_codebooks} codebooks"
    )


def _size(shapes: Shapes) -> tuple[int, int]:
    return len(shapes), sum(math.prod(shape) for shape in shapes.values())


def _stage_shapes(stage: TransformerStage) -> dict[str, tuple[int, ...]]:
    width, inner = stage.hidden_size, stage.intermediate_size
    block: dict[str, tuple[int, ...]] = {
        "self_attn.in_projs.0.weight": (3 * width, width),
        "self_attn.out_projs.0.weight": (width, width),
        "linear1.weight": (inner, width),
        "linear2.weight": (width, inner),
    }
    block |= {f"norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}
    block |= {f"layer_scale_{i}.scale": (width,) for i in (1, 2)}
    shapes: dict[str, tuple[int, ...]] = {}
    if stage.has_input_projection:
        shapes["input_proj.weight"] = (width, stage.input_size)
    if stage.has_output_projection:
        shapes["output_proj.weight"] = (stage.output_size, width)
    for layer in range(stage.num_layers):
        shapes |= {f"transformer.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _quantizer_shapes(config: QuantizerConfig) -> dict[str, tuple[int, ...]]:
    shapes = _weight_norm_shapes("input_proj", config.input_size, config.residual_size)
    shapes |= _weight_norm_shapes("output_proj", config.residual_size, config.output_size)
    for i in range(config.num_codebooks):
        stem = f"quantizers.{i}"
        shapes |= _weight_norm_shapes(f"{stem}.in_proj", config.residual_size, config.code_size)
        shapes |= _weight_norm_shapes(f"{stem}.out_proj", config.code_size, config.residual_size)
        shapes[f"{stem}.codebook.weight"] = (config.codebook_size, config.code_size)
    return shapes


def _weight_norm_shapes(stem: str, input_size: int, output_size: int) -> dict[str, tuple[int, ...]]:
    weight = f"{stem}.parametrizations.weight"
    return {
        f"{stem}.bias": (output_size,),
        f"{weight}.original0": (output_size, 1, 1),
        f"{weight}.original1": (output_size, input_size, 1),
    }
