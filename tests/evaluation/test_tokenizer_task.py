import pytest
import torch

from moss.config.evaluation import BenchmarkName, EvalConfig, Metric
from moss.data.files import sha256_file
from moss.data.manifest import Utterance, write_manifest
from moss.errors import ConfigError, EvaluationError
from moss.evaluation.run import evaluate
from moss.evaluation.summary import read_summary
from moss.evaluation.tasks.tokenizer import ORIGINAL, check_counts, choose_utterances, default_counts
from moss.spec import TokenizerSpec
from tests.evaluation.fakes import TEXTS, fake_backends, write_voice

SPEC = TokenizerSpec(sampling_rate_hz=16_000, samples_per_frame=1280, num_codebooks=3, codebook_size=256)


class GainTokenizer:
    """Every codebook refines the samples of a frame; more codebooks, less error. Counts what it encodes."""

    spec = SPEC
    fingerprint = "0123456789abcdef"

    def __init__(self):
        self.encoded = 0
        self._memory: dict[int, torch.Tensor] = {}

    def encode(self, waves, num_codebooks=None):
        self.encoded += len(waves)
        codes = []
        for wave in waves:
            self._memory[len(self._memory)] = wave
            frames = SPEC.num_frames(wave.shape[0])
            codes.append(torch.full((frames, num_codebooks or SPEC.num_codebooks), len(self._memory) - 1))
        return codes

    def decode(self, codes, num_samples=None):
        decoded = []
        for item, length in zip(codes, num_samples, strict=True):
            wave = self._memory[int(item[0, 0])][:length]
            noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(0))
            decoded.append(wave + noise * 0.05 / 4 ** item.shape[1])
        return decoded


def manifest(folder, count=3, **changes):
    utterances = []
    for i in range(count):
        path = write_voice(folder / f"clips/{i}.wav", i)
        values = {"id": f"u{i}", "audio": str(path), "text": TEXTS[i], "language": "en", "split": "heldout"}
        utterances.append(Utterance(**(values | changes)))
    write_manifest(folder / "utterances.jsonl", utterances)
    return folder / "utterances.jsonl"


def config(folder, **changes):
    values = {"output": folder / "out", "benchmark": BenchmarkName.TOKENIZER, "manifest": folder / "utterances.jsonl"}
    return EvalConfig(**(values | changes))


def test_quality_rises_with_the_codebooks(tmp_path):
    manifest(tmp_path)
    summary = evaluate(config(tmp_path), backends=fake_backends(), tokenizer=GainTokenizer())
    assert [row.label for row in summary.rows] == [
        ORIGINAL,
        "1 codebook (100 bit/s)",
        "2 codebooks (200 bit/s)",
        "3 codebooks (300 bit/s)",
    ]
    for metric in (Metric.PESQ_NB_16K, Metric.PESQ_WB, Metric.STOI, Metric.ESTOI):
        means = [row.scores[metric].mean for row in summary.rows[1:]]
        assert means == sorted(means)
        assert means[0] < means[-1]
    assert list(summary.rows[0].scores) == [Metric.WER]
    assert summary.provenance["settings"]["tokenizer fingerprint"] == GainTokenizer.fingerprint
    assert read_summary(tmp_path / "out/summary.json") == summary
    page = (tmp_path / "out/report.html").read_text()
    assert "Quality over codebooks" in page
    assert page.count("<svg") == 5


def test_second_run_encodes_and_scores_nothing(tmp_path):
    manifest(tmp_path)
    first = evaluate(config(tmp_path), backends=fake_backends(), tokenizer=GainTokenizer())
    backends, tokenizer = fake_backends(), GainTokenizer()
    scores = sha256_file(tmp_path / "out/scores.parquet")
    second = evaluate(config(tmp_path), backends=backends, tokenizer=tokenizer)
    assert (tokenizer.encoded, backends.recogniser.calls) == (0, 0)
    assert second.rows == first.rows
    assert sha256_file(tmp_path / "out/scores.parquet") == scores


def test_changed_clip_is_encoded_again(tmp_path):
    manifest(tmp_path)
    evaluate(config(tmp_path), backends=fake_backends(), tokenizer=GainTokenizer())
    write_voice(tmp_path / "clips/1.wav", 7)
    tokenizer = GainTokenizer()
    evaluate(config(tmp_path), backends=fake_backends(), tokenizer=tokenizer)
    assert tokenizer.encoded == 1


def test_clip_that_cannot_be_read_counts_at_the_floor(tmp_path):
    manifest(tmp_path)
    (tmp_path / "clips/1.wav").write_bytes(b"RIFFnothing")
    summary = evaluate(config(tmp_path, codebooks=[3]), backends=fake_backends(), tokenizer=GainTokenizer())
    score = summary.rows[1].scores[Metric.STOI]
    assert (score.n_scored, score.n_expected) == (2, 3)
    assert score.mean == pytest.approx(score.mean_scored * 2 / 3)
    assert any("corrupt or unknown audio" in note for note in summary.notes)


def test_languages_the_recogniser_does_not_know_have_no_wer(tmp_path):
    manifest(tmp_path, language="fr")
    summary = evaluate(config(tmp_path, codebooks=[1]), backends=fake_backends(), tokenizer=GainTokenizer())
    assert [row.label for row in summary.rows] == ["1 codebook (100 bit/s)"]
    assert Metric.WER not in summary.rows[0].scores
    assert any("3 clips (fr) have no WER" in note for note in summary.notes)


def test_counts():
    assert default_counts(16) == [1, 2, 4, 8, 16]
    assert default_counts(12) == [1, 2, 4, 8, 12]
    assert default_counts(1) == [1]
    assert check_counts([3, 1, 3], SPEC) == [1, 3]
    with pytest.raises(EvaluationError, match=r"codebooks=\[4, 9\]: this tokenizer has 1 to 3"):
        check_counts([4, 1, 9], SPEC)


def test_choice_of_utterances(tmp_path):
    path = manifest(tmp_path, count=5)
    everything = choose_utterances(path, "heldout", None, 0)
    drawn = choose_utterances(path, "heldout", 2, 0)
    assert len(everything) == 5
    assert len(drawn) == 2
    assert drawn == choose_utterances(path, "", 2, 0)
    assert [u.id for u in drawn] == sorted(u.id for u in drawn)
    assert {tuple(u.id for u in choose_utterances(path, "", 2, seed)) for seed in range(8)} != {
        tuple(u.id for u in drawn)
    }
    with pytest.raises(EvaluationError, match=r"none of 5 utterances has split 'train', found heldout; set split="):
        choose_utterances(path, "train", None, 0)


def test_task_needs_a_manifest_and_a_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match="manifest: benchmark=tokenizer needs it"):
        evaluate(config(tmp_path, manifest=None), backends=fake_backends(), tokenizer=GainTokenizer())
    with pytest.raises(ConfigError, match="tokenizer: benchmark=tokenizer needs it"):
        evaluate(config(tmp_path), backends=fake_backends())
