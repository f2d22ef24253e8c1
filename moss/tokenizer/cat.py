"""The Cat audio tokenizer: the trainable network, and the tokenizer that users of its codes see.

Codes are (batch, frames, codebooks), where the published code has (codebooks, batch, frames).
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

from moss.config.generation import Compatibility
from moss.config.tokenizer import BatchPolicy, CatConfig, CatStage, ComputeDtype, Part, PatchStage, TransformerStage
from moss.errors import ConfigError
from moss.tokenizer import fingerprints, interface
from moss.tokenizer.buckets import buckets, padded
from moss.tokenizer.hf_map import load_state, match_keys, read_weights
from moss.tokenizer.quantizer import FoldedQuantizer, QuantizerOutput, ResidualQuantizer
from moss.tokenizer.stream_state import new_stream
from moss.tokenizer.streaming import DecoderStream, EncoderStream
from moss.tokenizer.transformer import Patch, StageState, Transformer

log = logging.getLogger(__name__)

PASS_S = 60.0
"""Audio of one forward pass at most, all items of a bucket and their padding together. Longer items go through in
pieces that continue each other, which gives the same codes, in memory that does not grow with their length."""


class CatModel(nn.Module):
    """Encoder, quantizer and decoder, trainable end to end; state-dict names are the published ones.

    Waveforms (B, N) of a stereo tokenizer are interleaved sample by sample: N counts both channels.
    """

    encoder: nn.ModuleList | None
    decoder: nn.ModuleList | None

    def __init__(self, config: CatConfig) -> None:
        """Random weights that keep the scale of their input, normal codebooks, LayerScale as configured.

        The half that `config.part` leaves out is None and has no place in the state dict.
        """
        super().__init__()
        self.config = config
        rate_hz = config.positions_per_s
        self.encoder = self.decoder = None
        if config.part is not Part.decoder:
            self.encoder = _build_stack(config.encoder, rate_hz, unfold=False)
        self.quantizer = ResidualQuantizer(config.quantizer)
        if config.part is not Part.encoder:
            self.decoder = _build_stack(config.decoder_stages(), rate_hz / self.frame_size, unfold=True)
        self.apply(_init_weights)

    @property
    def frame_size(self) -> int:
        """Samples of a frame in the interleaved stream."""
        return self.config.samples_per_frame * self.config.num_audio_channels

    def encode_hidden(self, wave_BN: Tensor, stream: list[StageState] | None = None) -> Tensor:
        """Waveforms (B, N) to encoder output (B, T, D), zero-padded to whole frames.

        With a `stream` from `new_stream(self.encoder)` the samples continue it; N must then be whole frames.
        """
        assert self.encoder is not None, "the encoder was left out"
        short = -wave_BN.shape[1] % self.frame_size
        assert stream is None or short == 0, "a streamed chunk is whole frames"
        return _run(self.encoder, F.pad(wave_BN, (0, short))[:, :, None], stream)

    def decode_hidden(self, quantized_BTD: Tensor, stream: list[StageState] | None = None) -> Tensor:
        """Quantizer output (B, T, D) to waveforms (B, T * frame_size)."""
        assert self.decoder is not None, "the decoder was left out"
        return _run(self.decoder, quantized_BTD, stream)[:, :, 0]

    def forward(self, wave_BN: Tensor, active_B: Tensor | None = None) -> tuple[Tensor, QuantizerOutput]:
        """Reconstruct waveforms (B, N) through the first `active_B` codebooks of each item.

        Returns:
            The reconstruction (B, N) and the quantizer's output, losses included.
        """
        output = self.quantizer(self.encode_hidden(wave_BN), active_B)
        return self.decode_hidden(output.quantized_BTD)[:, : wave_BN.shape[1]], output


class CatTokenizer:
    """A Cat network behind the `StreamingTokenizer` interface: checked codes, true lengths, no gradients.

    The weights are only read, so that any number of threads may use one tokenizer.
    """

    def __init__(self, model: CatModel, weights: Path | None = None) -> None:
        """Take over `model` and put it into evaluation mode; weights must not change afterwards.

        Args:
            model: On the device where it is to run.
            weights: Where they were read from. Half a model looks there for the other half's share of the fingerprint.
        """
        self.model = model.eval()
        self._weights = weights
        self._folded: FoldedQuantizer = model.quantizer.fold()
        self.spec = model.config.spec()
        self.device = next(model.parameters()).device
        self.dtype = _dtype_on(self.device, model.config.compute_dtype)
        self._frames_per_pass = max(1, int(PASS_S * self.spec.frames_per_s))

    @classmethod
    def load(cls, config: CatConfig, weights: Path, device: str | torch.device = "cpu") -> "CatTokenizer":
        """Build the tokenizer of a safetensors file or a published checkpoint folder.

        With `config.part` only that half is kept; the file may hold both or just that one.

        Raises:
            CheckpointError: Files or keys are missing, unknown or of another shape; all are listed.
        """
        with torch.device("meta"):
            model = CatModel(config)
        state = read_weights(weights)
        # Before gigabytes are asked for: the file may be another network's.
        match_keys(state.shapes, config, str(weights), model.state_dict().keys())
        model = model.to_empty(device=device)
        load_state(model, state, str(weights))
        return cls(model, weights)

    @property
    def encoder(self) -> nn.ModuleList:
        """The encoder's stages.

        Raises:
            ConfigError: Only the decoder was loaded.
        """
        if self.model.encoder is None:
            raise ConfigError(
                "tokenizer.part: decoder cannot encode; load the tokenizer with part=full or part=encoder"
            )
        return self.model.encoder

    @property
    def decoder(self) -> nn.ModuleList:
        """The decoder's stages.

        Raises:
            ConfigError: Only the encoder was loaded.
        """
        if self.model.decoder is None:
            raise ConfigError(
                "tokenizer.part: encoder cannot decode; load the tokenizer with part=full or part=decoder"
            )
        return self.model.decoder

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the geometry, the weights, the arithmetic and the batch policy.

        Half a model has the fingerprint of the whole one where the file that it was read from holds the other half;
        otherwise it stands for its own half and the quantizer only. The arithmetic is that of the encoder; a decoder
        alone makes no codes and names the one that it was configured with, whatever device it runs on.
        """
        return fingerprints.of_model(self.model, self._weights, self.dtype)

    @functools.cached_property
    def stream_identity(self) -> int:
        """A number that differs for other settings or another quantizer; cheap, unlike `fingerprint`."""
        return fingerprints.stream_identity(self.model, self.dtype)

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        """See `AudioTokenizer.encode`; a stereo tokenizer takes (2, samples), and (samples,) for both channels.

        Raises:
            ConfigError: Only the decoder was loaded.
            DataError: As in the interface.
        """
        _ = self.encoder
        count = interface.check_num_codebooks(num_codebooks, self.spec)
        interface.check_waves(waves, self.spec.num_audio_channels)
        codes = [torch.zeros(0)] * len(waves)
        frames = [self.spec.num_frames(wave.shape[-1]) for wave in waves]
        for bucket in self._buckets(frames):
            samples = padded([self.on_all_channels(waves[i]).to("cpu", torch.float32) for i in bucket], -1, 0)
            for i, item in zip(bucket, self.encode_chunk(samples, count), strict=True):
                codes[i] = item[: frames[i]]
        return codes

    @torch.no_grad()
    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        """See `AudioTokenizer.decode`.

        Raises:
            ConfigError: Only the encoder was loaded.
            DataError: As in the interface.
        """
        _ = self.decoder
        interface.check_codes(codes, num_samples, self.spec)
        frames = [item.shape[0] for item in codes]
        samples = [count * self.spec.samples_per_frame for count in frames] if num_samples is None else num_samples
        waves = [self.silence(0)] * len(codes)
        for bucket in self._buckets(frames):
            items = [codes[i].to("cpu", torch.int64) for i in bucket]
            items = [self._all_codebooks(item) for item in items] if len(items) > 1 else items
            for i, wave in zip(bucket, self.decode_chunk(padded(items, 0, self.spec.pad_code)), strict=True):
                waves[i] = wave[..., : samples[i]]
        return waves

    def encoder_stream(
        self, num_codebooks: int | None = None, *, compatibility: Compatibility = Compatibility.none
    ) -> EncoderStream:
        """A new stream of samples to codes; `Compatibility.reference` reproduces the published ring cache.

        Raises:
            ConfigError: Only the decoder was loaded.
            DataError: `num_codebooks` is out of range.
        """
        return EncoderStream(self, num_codebooks, compatibility)

    def decoder_stream(self, *, compatibility: Compatibility = Compatibility.none) -> DecoderStream:
        """A new stream of codes to samples; `Compatibility.reference` reproduces the published ring cache.

        Raises:
            ConfigError: Only the encoder was loaded.
        """
        return DecoderStream(self, compatibility)

    @torch.no_grad()
    def encode_chunk(self, samples: Tensor, num_codebooks: int, stages: list[StageState] | None = None) -> Tensor:
        """Codes (B, T, num_codebooks) on the CPU of unchecked samples (B, N), or (B, 2, N) for a stereo tokenizer.

        With `stages` from `new_stream` the samples, then whole frames, continue those streams. Long ones run in
        several passes.
        """
        pieces = samples.split(self.spec.samples_per_frame * max(1, self._frames_per_pass // len(samples)), -1)
        if stages is None and len(pieces) > 1:
            stages = new_stream(self.encoder)
        return torch.cat([self._encode_piece(piece, num_codebooks, stages) for piece in pieces], 1)

    @torch.no_grad()
    def decode_chunk(self, codes_BTK: Tensor, stages: list[StageState] | None = None) -> Tensor:
        """Samples (B, N), or (B, 2, N) of a stereo tokenizer, float32 on the CPU, of unchecked codes.

        With `stages` from `new_stream` the codes continue those streams. Long ones run in several passes.
        """
        pieces = codes_BTK.split(max(1, self._frames_per_pass // len(codes_BTK)), 1)
        if stages is None and len(pieces) > 1:
            stages = new_stream(self.decoder)
        return torch.cat([self._decode_piece(piece, stages) for piece in pieces], -1)

    def on_all_channels(self, samples: Tensor) -> Tensor:
        """Samples (n,) of a stereo tokenizer as (2, n); others as they are."""
        channels = self.spec.num_audio_channels
        return samples.expand(channels, -1) if channels > 1 and samples.dim() == 1 else samples

    def silence(self, num_samples: int) -> Tensor:
        """Zeros (num_samples,), or (2, num_samples) for a stereo tokenizer."""
        channels = self.spec.num_audio_channels
        return torch.zeros(num_samples) if channels == 1 else torch.zeros(channels, num_samples)

    def _encode_piece(self, samples: Tensor, num_codebooks: int, stages: list[StageState] | None) -> Tensor:
        samples = samples.to(self.device, torch.float32)
        samples = F.pad(samples, (0, -samples.shape[-1] % self.spec.samples_per_frame))
        if samples.dim() == 3:
            samples = samples.transpose(1, 2).flatten(1)
        with self._arithmetic(self.dtype):
            hidden = self.model.encode_hidden(samples, stages)
        with self._arithmetic(torch.float32):
            return self._folded.encode(hidden, num_codebooks).cpu()

    def _decode_piece(self, codes_BTK: Tensor, stages: list[StageState] | None) -> Tensor:
        with self._arithmetic(torch.float32):
            hidden = self._folded.decode(codes_BTK.to(self.device, torch.int64))
        with self._arithmetic(self.dtype):
            wave = self.model.decode_hidden(hidden, stages).float().cpu()
        channels = self.spec.num_audio_channels
        return wave if channels == 1 else wave.unflatten(1, (-1, channels)).transpose(1, 2).contiguous()

    def _arithmetic(self, dtype: torch.dtype) -> torch.autocast:
        """The transformers' arithmetic, whatever the caller's own autocast is."""
        if dtype is torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=dtype)

    def _buckets(self, frames: Sequence[int]) -> list[list[int]]:
        if self.model.config.batch_policy is BatchPolicy.single:
            return [[i] for i, count in enumerate(frames) if count]
        return buckets(frames, self._frames_per_pass)

    def _all_codebooks(self, codes: Tensor) -> Tensor:
        return F.pad(codes, (0, self.spec.num_codebooks - codes.shape[1]), value=self.spec.pad_code)


def _dtype_on(device: torch.device, wanted: ComputeDtype) -> torch.dtype:
    if device.type != "cuda" and wanted is not ComputeDtype.fp32:
        log.warning("tokenizer.compute_dtype: %s is for CUDA; on %s the tokenizer runs in fp32", wanted, device.type)
        return torch.float32
    return fingerprints.DTYPES[wanted]


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
