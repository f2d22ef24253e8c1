import dataclasses
import re
import statistics

import pytest

from moss.config.evaluation import TOKENIZER_METRICS, BenchmarkName, BootstrapConfig, EvalConfig, Metric
from moss.data.files import sha256_file
from moss.data.manifest import read_manifest, write_manifest
from moss.evaluation.run import evaluate
from moss.evaluation.summary import read_summary
from moss.evaluation.systems import CodecSystem
from moss.evaluation.tasks.tokenizer import CHART_GROUP, ORIGINAL
from tests.evaluation.fakes import fake_backends, write_voice
from tests.evaluation.systems import GainTokenizer, HalfCodec, fake_systems, write_clips

FEW = [Metric.STOI, Metric.SIM, Metric.WER, Metric.RTF]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes longer than all the rest; test_curves.py looks at the picture."""
    monkeypatch.setattr("moss.evaluation.tasks.tokenizer.write_curves", lambda path, charts, published: path.touch())


def config(folder, **changes):
    values = {"output": folder / "out", "benchmark": BenchmarkName.TOKENIZER, "manifest": folder / "utterances.jsonl"}
    return EvalConfig(**(values | changes))


def score(folder, systems=None, backends=None, **changes):
    settings = config(folder, **({"metrics": FEW, "bootstrap": BootstrapConfig(resamples=200)} | changes))
    return evaluate(settings, backends=backends or fake_backends(), systems=systems or fake_systems())


def test_one_table_of_all_systems(tmp_path):
    write_clips(tmp_path)
    summary = score(tmp_path, fake_systems(codecs=[HalfCodec(), HalfCodec(1200.0)]), metrics=[])
    assert [row.label for row in summary.rows] == [
        ORIGINAL,
        "gain, 1 codebook",
        "gain, 2 codebooks",
        "gain, 3 codebooks",
        "Half 600",
        "Half 1200",
    ]
    assert [row.title for row in summary.rows[:2]] == [ORIGINAL, "gain, 1 codebook (100 bit/s)"]
    assert [row.bits_per_s for row in summary.rows] == [None, 100, 200, 300, 600, 1200]
    assert [row.family for row in summary.rows[1:]] == ["gain"] * 3 + ["Half"] * 2
    assert list(summary.rows[0].scores) == [Metric.WER]
    for row in summary.rows[1:]:
        assert [score.n_scored for score in row.scores.values()] == [3] * 10
    assert summary.protocol == "tokenizer-v2"
    assert summary.provenance["settings"]["gain"] == GainTokenizer().fingerprint
    assert summary.provenance["settings"]["Half"] == "half 1: 600.0; half 1: 1200.0"
    assert read_summary(tmp_path / "out/summary.json") == summary


def test_quality_rises_with_the_codebooks(tmp_path):
    write_clips(tmp_path)
    rows = score(tmp_path, metrics=[metric for metric in TOKENIZER_METRICS if metric is not Metric.WER]).rows
    for metric in (Metric.PESQ_NB_16K, Metric.PESQ_NB_8K, Metric.PESQ_WB, Metric.STOI, Metric.ESTOI, Metric.SIM):
        means = [row.scores[metric].mean for row in rows]
        assert means == sorted(means)
        assert means[0] < means[-1]
    for metric in (Metric.MEL_DISTANCE, Metric.STFT_DISTANCE):
        means = [row.scores[metric].mean for row in rows]
        assert means == sorted(means, reverse=True)
        assert means[0] > means[-1] > 0


def test_a_band_that_a_system_does_not_carry_counts_against_it(tmp_path):
    write_clips(tmp_path)
    narrow, wide = HalfCodec(), HalfCodec(900.0, sampling_rate_hz=16_000)
    systems = [CodecSystem("narrow", [narrow]), CodecSystem("wide", [wide])]
    found = [row.scores for row in score(tmp_path, systems, metrics=[Metric.STFT_DISTANCE, Metric.STOI]).rows]
    # Both do the same, but one hears 4 kHz of the 8 kHz that it is compared with.
    assert found[0][Metric.STFT_DISTANCE].mean > 1.2 * found[1][Metric.STFT_DISTANCE].mean


def test_all_files_are_there(tmp_path):
    write_clips(tmp_path)
    score(tmp_path, fake_systems(codecs=[HalfCodec()], codebooks=[3]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curves.png",
        "reconstructions",
        "report.html",
        "scores.jsonl",
        "scores.parquet",
        "summary.json",
        "table.md",
    ]
    page = (tmp_path / "out/report.html").read_text()
    assert CHART_GROUP in page
    # Four metrics, and the SIM of others in a chart of its own.
    assert page.count("<svg") == 5
    assert "SIM (WavLM), published only" in page
    assert "not comparable point by point" in page
    table = (tmp_path / "out/table.md").read_text()
    assert re.search(
        r"^\| gain, 3 codebooks \| 300 \| \d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\) \|.*\| 3 / 3 \|$", table, re.M
    )
    assert "- protocol: tokenizer-v2" in table
    assert "- gain: 0123456789abcdef" in table


def test_real_time_factor_is_seconds_over_seconds_and_kept(tmp_path):
    write_clips(tmp_path)
    summary = score(tmp_path)
    again = score(tmp_path)
    for row, repeated in zip(summary.rows[1:], again.rows[1:], strict=True):
        found = row.scores[Metric.RTF]
        assert 0 < found.mean < 5
        assert found.corpus == pytest.approx(found.mean)
        assert repeated.scores[Metric.RTF] == found


def test_second_run_makes_and_scores_nothing(tmp_path):
    write_clips(tmp_path)
    first = score(tmp_path, fake_systems(codecs=[HalfCodec()]))
    scores = sha256_file(tmp_path / "out/scores.parquet")
    backends, tokenizer, codec = fake_backends(), GainTokenizer(), HalfCodec()
    second = score(tmp_path, fake_systems(tokenizer, [codec]), backends)
    assert (tokenizer.encoded, codec.coded, backends.recogniser.calls, backends.speaker.calls) == (0, 0, 0, 0)
    assert second.rows == first.rows
    assert sha256_file(tmp_path / "out/scores.parquet") == scores


def test_changed_clip_is_made_again(tmp_path):
    write_clips(tmp_path)
    score(tmp_path, fake_systems(codecs=[HalfCodec()]))
    write_voice(tmp_path / "clips/1.wav", 7)
    tokenizer, codec = GainTokenizer(), HalfCodec()
    score(tmp_path, fake_systems(tokenizer, [codec]))
    # The clip, and the second of noise that comes first.
    assert (tokenizer.encoded, codec.coded) == (2, 2)


def test_other_weights_and_another_version_are_made_again(tmp_path):
    write_clips(tmp_path)
    score(tmp_path, fake_systems(codecs=[HalfCodec(), HalfCodec(1200.0)]))
    tokenizer, codecs = GainTokenizer("f" * 16), [HalfCodec(version="2"), HalfCodec(1200.0)]
    score(tmp_path, fake_systems(tokenizer, codecs))
    assert tokenizer.encoded == 4
    assert [codec.coded for codec in codecs] == [3, 1]


def test_clip_that_cannot_be_read_counts_in_every_system(tmp_path):
    write_clips(tmp_path)
    (tmp_path / "clips/1.wav").write_bytes(b"RIFFnothing")
    metrics = [*FEW, Metric.MEL_DISTANCE]
    summary = score(tmp_path, fake_systems(codecs=[HalfCodec()], codebooks=[3]), metrics=metrics)
    for row in summary.rows[1:]:
        stoi, rtf = row.scores[Metric.STOI], row.scores[Metric.RTF]
        assert (stoi.n_scored, stoi.n_expected) == (2, 3)
        assert stoi.mean == pytest.approx(stoi.mean_scored * 2 / 3)
        # Taking no time is no merit: what failed is not in the mean.
        assert (rtf.n_scored, rtf.n_expected, rtf.mean) == (2, 3, rtf.mean_scored)
        assert row.scores[Metric.MEL_DISTANCE].mean == pytest.approx(
            (12.0 + 2 * row.scores[Metric.MEL_DISTANCE].mean_scored) / 3
        )
    assert any("corrupt or unknown audio" in note for note in summary.notes)
    table = (tmp_path / "out/table.md").read_text()
    assert "†" in table
    assert "Not every clip could be scored" in table


def test_clip_that_one_system_refuses_counts_in_that_one(tmp_path):
    write_clips(tmp_path)
    write_voice(tmp_path / "clips/1.wav", 1, seconds=1.5)
    summary = score(tmp_path, fake_systems(codecs=[HalfCodec(refused=12_000)], codebooks=[3]))
    tokenizer, codec = summary.rows[1:]
    assert tokenizer.scores[Metric.STOI].n_scored == 3
    assert codec.scores[Metric.STOI].n_scored == 2
    assert "Half 600, u1, STOI: too odd a clip" in summary.notes


def test_texts_without_a_word_have_no_wer(tmp_path):
    path = write_clips(tmp_path)
    rows = read_manifest(path)
    write_manifest(path, [dataclasses.replace(rows[0], text="..."), *rows[1:]])
    summary = score(tmp_path, fake_systems(codebooks=[1]))
    assert [row.scores[Metric.WER].n_scored for row in summary.rows] == [2, 2]
    assert any("1 clips (language en) have no WER" in note for note in summary.notes)


def test_clips_without_wer(tmp_path):
    write_clips(tmp_path, language="fr")
    summary = score(tmp_path, fake_systems(codebooks=[1]))
    assert [row.label for row in summary.rows] == ["gain, 1 codebook"]
    assert Metric.WER not in summary.rows[0].scores
    assert any("3 clips (language fr) have no WER" in note for note in summary.notes)


def test_chosen_metrics_only(tmp_path):
    write_clips(tmp_path)
    summary = score(tmp_path, metrics=[Metric.STOI])
    assert list(summary.labels) == [Metric.STOI]
    assert not any("RTF" in note or "SIM" in note or "WER" in note for note in summary.notes)
    assert statistics.fmean(row.scores[Metric.STOI].mean for row in summary.rows) > 0.5


def test_players_of_half_and_all_codebooks_and_of_the_nearest_codec(tmp_path):
    write_clips(tmp_path, 1)
    score(tmp_path, fake_systems(codecs=[HalfCodec(350.0), HalfCodec(9000.0)]))
    page = (tmp_path / "out/report.html").read_text()
    players = re.findall(r'<audio controls preload="metadata" aria-label="([^"]+)"', page)
    assert players == [ORIGINAL, "gain, 2 codebooks", "gain, 3 codebooks", "Half 350"]
