import sys
from pathlib import Path

import pytest
import torch

from moss.config.evaluation import Baseline, BenchmarkName, DatasetKind, EvalConfig
from moss.config.tokenizer import MelRvqConfig
from moss.errors import CheckpointError, ConfigError, EvaluationError
from moss.evaluation.systems import CodecSystem, TokenizerSystem, build_systems, choose_counts
from moss.spec import TokenizerSpec
from tests.evaluation.systems import SPEC, GainTokenizer, HalfCodec, StereoTokenizer

WAVE = torch.sin(torch.arange(4000) / 20)


def config(**changes):
    return EvalConfig(**({"output": "o", "benchmark": BenchmarkName.TOKENIZER, "codebooks": [16]} | changes))


def spec(num_codebooks):
    return TokenizerSpec(
        sampling_rate_hz=16_000, samples_per_frame=1280, num_codebooks=num_codebooks, codebook_size=1024
    )


def test_counts():
    assert choose_counts([], spec(32)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert choose_counts([], spec(10)) == [1, 2, 3, 4, 6, 8, 10]
    assert choose_counts([], spec(1)) == [1]
    assert choose_counts([8, 1, 40, 8], spec(16)) == [1, 8]
    with pytest.raises(EvaluationError, match=r"codebooks=\[4, 9\]: this tokenizer has 1 to 3 codebooks"):
        choose_counts([4, 9], SPEC)


def test_tokenizer_encodes_once_and_its_encoding_is_in_the_time_of_every_row():
    tokenizer = GainTokenizer()
    system = TokenizerSystem("gain", tokenizer)
    made = list(system.rebuild(WAVE, system.variants))
    assert tokenizer.encoded == 1
    assert [variant.num_codebooks for variant, _ in made] == [1, 2, 3]
    assert [variant.bits_per_s for variant, _ in made] == [100, 200, 300]
    assert all(rebuilt.wave.shape == WAVE.shape and rebuilt.processing_s > 0 for _, rebuilt in made)
    assert (made[2][1].wave - WAVE).abs().mean() < (made[0][1].wave - WAVE).abs().mean()


def test_two_channels_become_their_mean():
    mono, stereo = TokenizerSystem("m", GainTokenizer(), [1]), TokenizerSystem("s", StereoTokenizer(), [1])
    (_, expected), (_, found) = (next(system.rebuild(WAVE, system.variants)) for system in (mono, stereo))
    torch.testing.assert_close(found.wave, expected.wave)


def test_settings_that_change_the_sound_change_the_revision():
    plain, other = (TokenizerSystem("g", GainTokenizer(), settings=text) for text in ("iterations 32", "iterations 1"))
    assert plain.revision != other.revision
    assert plain.revision.startswith(GainTokenizer().fingerprint)


def test_codecs_are_settings_of_one_family():
    system = CodecSystem("Half rate", [HalfCodec(), HalfCodec(1200.0)])
    assert (system.folder, system.sampling_rate_hz) == ("half-rate", 8000)
    (_, rebuilt), _ = system.rebuild(WAVE, system.variants)
    torch.testing.assert_close(rebuilt.wave, 0.5 * WAVE)
    newer = CodecSystem("Half rate", [HalfCodec(version="2"), HalfCodec(1200.0)])
    pairs = list(zip(system.variants, newer.variants, strict=True))
    assert [one.folder == other.folder for one, other in pairs] == [False, True]


def test_systems_of_the_default_settings():
    systems, notes = build_systems(config(codebooks=[]))
    assert [system.family for system in systems] == ["cat_embedded", "mel_rvq", "Opus", "Codec 2", "mel + Griffin-Lim"]
    assert notes == []
    assert [variant.num_codebooks for variant in systems[0].variants] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert [variant.num_codebooks for variant in systems[1].variants] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert [variant.bits_per_s for variant in systems[2].variants] == [6000, 8000, 12000]
    assert systems[4].variants[0].bits_per_s is None


def test_the_group_comes_first_and_the_same_tokenizer_is_scored_once():
    other = MelRvqConfig(griffin_lim_iterations=2)
    systems, _ = build_systems(config(tokenizer=other, tokenizers=["mel_rvq", "mel_rvq"], baselines=[]))
    assert len(systems) == 2
    assert [system.family for system in systems] == ["mel_rvq", f"mel_rvq {systems[0].revision[:6]}"]
    systems, _ = build_systems(config(tokenizer=MelRvqConfig(), tokenizers=["mel_rvq"], baselines=[]))
    assert [system.family for system in systems] == ["mel_rvq"]


def test_names_stay_apart_where_codes_are_equal(tmp_path):
    for folder, iterations in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mel_rvq.yaml").write_text(f"kind: mel_rvq\ngriffin_lim_iterations: {iterations}\n")
    files = [str(tmp_path / folder / "mel_rvq.yaml") for folder in ("a", "b")]
    systems, _ = build_systems(config(tokenizers=["mel_rvq", *files], baselines=[]))
    revision = systems[2].revision
    assert [system.family for system in systems] == ["mel_rvq", f"mel_rvq {revision[:6]}", f"mel_rvq {revision}"]


@pytest.mark.parametrize("device", ["gpu", "hpu", "meta", "cpu:x"])
def test_a_device_that_cannot_compute(device):
    with pytest.raises(EvaluationError, match=rf"device={device}: cannot be used: .+"):
        build_systems(config(device=device))


def test_yaml_file_and_what_does_not_exist(tmp_path):
    (tmp_path / "quick.yaml").write_text("kind: mel_rvq\ngriffin_lim_iterations: 1\n")
    systems, _ = build_systems(config(tokenizers=[str(tmp_path / "quick.yaml")], baselines=[]))
    assert [system.family for system in systems] == ["quick"]
    with pytest.raises(ConfigError, match="no tokenizer 'mel_rqv'"):
        build_systems(config(tokenizers=["mel_rqv"]))
    with pytest.raises(CheckpointError, match="no tokenizer's checkpoint"):
        build_systems(config(tokenizers=[str(tmp_path)]))


NO_CODEC2 = (
    "Codec 2 is not in the table: Codec 2 needs pycodec2, which is not installed; run `pip install 'moss[eval]'` or "
    "leave the Codec 2 baseline out."
)


def test_baseline_that_is_not_installed_is_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    systems, notes = build_systems(config(tokenizers=["mel_rvq"], baselines=[Baseline.CODEC2]))
    assert [system.family for system in systems] == ["mel_rvq"]
    assert notes == [NO_CODEC2]
    with pytest.raises(EvaluationError, match="nothing to score: Codec 2 is not in the table"):
        build_systems(config(tokenizers=[], baselines=[Baseline.CODEC2]))


def test_settings_of_baselines_that_do_not_exist_are_errors_and_no_missing_baseline():
    wrong = config(opus_bits_per_s=[5000, 12_000, 300_000], codec2_modes=["2400", "999"])
    assert wrong.validate() == [
        "opus_bits_per_s: 5000 is outside 6000 to 256000 bits per second",
        "opus_bits_per_s: 300000 is outside 6000 to 256000 bits per second",
        "codec2_modes: '999' is none of 3200, 2400, 1600, 1400, 1300, 1200, 700C",
    ]
    empty = config(opus_bits_per_s=[], codec2_modes=[]).validate()
    assert empty == [
        f"{name}: names no setting; name one, or leave '{baseline}' out of baselines"
        for name, baseline in (("opus_bits_per_s", "opus"), ("codec2_modes", "codec2"))
    ]
    assert config().validate() == []
    again = config(baselines=["opus", "opus"], opus_bits_per_s=[6000, 6000], codec2_modes=["1200", "700C", "1200"])
    assert again.validate() == [
        "baselines: 'opus' is listed twice; list it once",
        "opus_bits_per_s: 6000 is listed twice; list it once",
        "codec2_modes: '1200' is listed twice; list it once",
    ]


def test_sources_of_clips_that_contradict_each_other():
    both = config(dataset=DatasetKind.FOLDER, data_dir=Path("x"), manifest=Path("y")).validate()
    assert both == ["manifest: is another source of clips than dataset; set one of them"]
