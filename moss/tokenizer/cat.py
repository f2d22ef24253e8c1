"""The Cat audio tokenizer: the trainable network, and the tokenizer that users of its codes see.

Only this module knows the public axis order (codebooks, batch, frames); all others use (batch, frames, codebooks).
Source: MOSS-Audio-Tokenizer modeling_moss_audio_tokenizer.py @56df9ee. Deviations: a partial last frame counts
(the published code floors), decoded audio is trimmed to the true length, codes are checked, the pad code is silent.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moss.config.schema import to_plain
from moss.config.tokenizer import CatConfig, CatStage, PatchStage, TransformerStage
from moss.tokenizer import interface
from moss.tokenizer.hf_map import load_state, read_weights
from moss.tokenizer.quantizer import FoldedQuantizer, QuantizerOutput, ResidualQuantizer
from moss.tokenizer.transformer import Patch, StageState, Transformer

log = logging.getLogger(__name__)

BATCH_POLICY = "single"
"""Items are encoded one at a time: padding and batch size can then not change a code, on any device."""


def codes_from_public(codes_KBT: Tensor) -> Tensor:
    """Published order (codebooks, batch, frames) to (batch, frames, codebooks)."""
    return codes_KBT.permute(1, 2, 0)


def codes_to_public(codes_BTK: Tensor) -> Tensor:
    """(batch, frames, codebooks) to the published order (codebooks, batch, frames)."""
    return codes_BTK.permute(2, 0, 1)


class CatModel(nn.Module):
    """Encoder, quantizer and decoder, trainable end to end; state-dict names are the published ones."""

    def __init__(self, config: CatConfig) -> None:
        """Random weights that keep the scale of their input, normal codebooks, LayerScale as configured."""
        super().__init__()
        self.config = config
        rate_hz = float(config.sampling_rate_hz)
        self.encoder = _build_stack(config.encoder, rate_hz, unfold=False)
        self.quantizer = ResidualQuantizer(config.quantizer)
        self.decoder = _build_stack(config.decoder_stages(), rate_hz / config.samples_per_frame, unfold=True)
        self.apply(_init_weights)

    def encode_hidden(self, wave_BN: Tensor, stream: list[StageState] | None = None) -> Tensor:
        """Waveforms (B, N) to encoder output (B, T, D), zero-padded to whole frames.

        With a `stream` from `new_stream(self.encoder)` the samples continue it; N must then be whole frames.
        """
        short = -wave_BN.shape[1] % self.config.samples_per_frame
        assert stream is None or short == 0, "a streamed chunk is whole frames"
        return _run(self.encoder, F.pad(wave_BN, (0, short))[:, :, None], stream)

    def decode_hidden(self, quantized_BTD: Tensor, stream: list[StageState] | None = None) -> Tensor:
        """Quantizer output (B, T, D) to waveforms (B, T * samples_per_frame)."""
        return _run(self.decoder, quantized_BTD, stream)[:, :, 0]

    def forward(self, wave_BN: Tensor, active_B: Tensor | None = None) -> tuple[Tensor, QuantizerOutput]:
        """Reconstruct waveforms (B, N) through the first `active_B` codebooks of each item.

        Returns:
            The reconstruction (B, N) and the quantizer's output, losses included.
        """
        output = self.quantizer(self.encode_hidden(wave_BN), active_B)
        return self.decode_hidden(output.quantized_BTD)[:, : wave_BN.shape[1]], output


class CatTokenizer:
    """A Cat network behind the `AudioTokenizer` interface: checked codes, true lengths, no gradients."""

    def __init__(self, model: CatModel) -> None:
        """Take over `model` and put it into evaluation mode; weights must not change afterwards."""
        self.model = model.eval()
        self._folded: FoldedQuantizer = model.quantizer.fold()
        self.spec = model.config.spec()

    @classmethod
    def load(cls, config: CatConfig, weights: Path, device: str | torch.device = "cpu") -> "CatTokenizer":
        """Build the tokenizer of a safetensors file or a published checkpoint folder.

        Raises:
            CheckpointError: Files or keys are missing, unknown or of another shape; all are listed.
        """
        with torch.device("meta"):
            model = CatModel(config)
        model = model.to_empty(device=device)
        load_state(model, read_weights(weights), str(weights))
        return cls(model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the geometry, the weights, the arithmetic and the batch policy."""
        geometry = {key: value for key, value in to_plain(self.model.config).items() if key != "weights"}
        state = self.model.state_dict().items()
        return interface.fingerprint(f"cat {geometry}", state, dtype="float32", batch_policy=BATCH_POLICY)

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        """See `AudioTokenizer.encode`."""
        count = interface.check_num_codebooks(num_codebooks, self.spec)
        interface.check_waves(waves)
        return [self._folded.encode(self.model.encode_hidden(self._put(wave)), count)[0].cpu() for wave in waves]

    @torch.no_grad()
    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        """See `AudioTokenizer.decode`."""
        interface.check_codes(codes, num_samples, self.spec)
        waves = []
        for i, item in enumerate(codes):
            samples = item.shape[0] * self.spec.samples_per_frame if num_samples is None else num_samples[i]
            if item.shape[0] == 0:
                waves.append(torch.zeros(0))
                continue
            hidden = self._folded.decode(item.long().to(self._device)[None])
            waves.append(self.model.decode_hidden(hidden)[0, :samples].cpu())
        return waves

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _put(self, wave: Tensor) -> Tensor:
        return wave.to(self._device, torch.float32)[None]


def new_stream(stack: nn.ModuleList) -> list[StageState]:
    """Fresh state for one stream through an encoder or decoder."""
    return [StageState() for _ in stack]


def _run(stack: nn.ModuleList, x_BPD: Tensor, stream: list[StageState] | None) -> Tensor:
    for i, stage in enumerate(stack):
        x_BPD = stage(x_BPD, None if stream is None else stream[i])
    return x_BPD


def _build_stack(stages: list[CatStage], rate_hz: float, *, unfold: bool) -> nn.ModuleList:
    modules: list[nn.Module] = []
    for stage in stages:
        if isinstance(stage, PatchStage):
            modules.append(Patch(stage.patch_size, unfold=unfold))
            rate_hz = rate_hz * stage.patch_size if unfold else rate_hz / stage.patch_size
        elif isinstance(stage, TransformerStage):
            modules.append(Transformer(stage, rate_hz))
    return nn.ModuleList(modules)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        # A fixed 0.02 shrinks the signal through the chain of narrow projections until every mel band of the output
        # lies below the loss' floor, and the reconstruction gradient is exactly zero: codes then collapse.
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
