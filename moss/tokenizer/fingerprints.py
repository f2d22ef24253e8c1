"""What tells one Cat tokenizer from another: everything that its codes depend on, as one number."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moss.config.schema import to_plain
from moss.config.tokenizer import CatConfig, ComputeDtype, Part
from moss.config.tokenizer_inventory import state_shapes
from moss.tokenizer import interface
from moss.tokenizer.hf_map import StoredState, canonical_key, read_weights

if TYPE_CHECKING:
    from moss.tokenizer.cat import CatModel

DTYPES = {ComputeDtype.fp32: torch.float32, ComputeDtype.bf16: torch.bfloat16, ComputeDtype.fp16: torch.float16}
_SETTINGS = ("kind", "sampling_rate_hz", "samples_per_frame", "encoder", "decoder", "quantizer")


def of_model(model: "CatModel", weights: Path | None, dtype: torch.dtype) -> str:
    """16 hex digits over the geometry, the weights, the arithmetic and the batch policy.

    Half a model has the fingerprint of the whole one where `weights` holds the other half too; otherwise it stands for
    its own half and the quantizer only. The arithmetic is that of the encoder: a decoder alone makes no codes, and
    names the one that it was configured with, whatever device it runs on.

    Args:
        model: The network, or half of it.
        weights: Where it was read from, if from anywhere.
        dtype: In which its transformers compute.

    Raises:
        CheckpointError: The other half is to be read from `weights`, which is gone.
    """
    config = model.config
    state = WholeState(model, None if config.part is Part.full or weights is None else read_weights(weights))
    kind = "cat" if len(state) == len(state_shapes(config)) else f"cat {config.part}"
    encoding = DTYPES[config.compute_dtype] if config.part is Part.decoder else dtype
    return interface.fingerprint(
        f"{kind} {_geometry(config)}",
        state,
        dtype=str(encoding).removeprefix("torch."),
        batch_policy=config.batch_policy.value,
    )


def stream_identity(model: "CatModel", dtype: torch.dtype) -> int:
    """A number that differs for other settings, another quantizer or other arithmetic; cheap, unlike a fingerprint."""
    name = f"stream {_geometry(model.config)}"
    return int(interface.fingerprint(name, model.quantizer.state_dict(), dtype=str(dtype), batch_policy="")[:15], 16)


class WholeState(Mapping[str, Tensor]):
    """The tensors of a model, and of the half that it leaves out, read one at a time from where its weights came."""

    def __init__(self, model: "CatModel", stored: StoredState | None) -> None:
        """Without the other half where `stored` is null or does not hold all of it."""
        self._state = model.state_dict()
        self._stored = stored
        self._dtype = model.quantizer.input_proj.bias.dtype
        wanted = state_shapes(model.config).keys() - self._state.keys()
        names = ((canonical_key(key), key) for key in stored or ())
        places = {name: key for name, key in names if name in wanted}
        self._places = places if len(places) == len(wanted) else {}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in the model's dtype."""
        if name in self._state:
            own: Tensor = self._state[name]
            return own
        assert self._stored is not None
        return self._stored[self._places[name]].to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        """Canonical names."""
        yield from self._state
        yield from self._places

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._state) + len(self._places)


def _geometry(config: CatConfig) -> dict[str, object]:
    """The settings that make the network what it is; fingerprints from before stereo do not spell out mono."""
    names = _SETTINGS if config.num_audio_channels == 1 else (*_SETTINGS, "num_audio_channels")
    settings = to_plain(config)
    if config.decoder == replace(config, decoder=None).decoder_stages():
        # A config.json spells the decoder out, where our settings leave it to be the mirrored encoder.
        settings["decoder"] = None
    return {name: settings[name] for name in names}
