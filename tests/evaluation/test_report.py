import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image

from moss.errors import EvaluationError
from moss.evaluation.metrics.wer import word_errors
from moss.evaluation.report_charts import Chart, Series, render_chart
from moss.evaluation.report_clips import Clip, audio_uri, render_clips, spectrogram, spectrogram_uri
from moss.evaluation.report_text import render_edits
from moss.evaluation.run import evaluate_generations
from moss.evaluation.training_curves import read_metrics, training_charts
from tests.evaluation.fakes import fake_backends, generation_folder, write_rows
from tests.evaluation.signals import voice

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a test asks about."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def content(uri, kind):
    prefix = f"data:{kind};base64,"
    assert uri.startswith(prefix)
    return base64.b64decode(uri[len(prefix) :])


def metrics_csv(folder, codebooks=3):
    rows = ["step,key,value"]
    for step in range(0, 900):
        rows.append(f"{step},train/loss,{5 - step / 300}")
        rows.append(f"{step},perf/positions_per_s,100.0")
        if step % 100 == 99:
            rows.append(f"{step},val/loss,{5.1 - step / 300}")
            rows += [f"{step},val/loss/codebook_{k:02d},{4 + k - step / 300}" for k in range(codebooks)]
    (folder / "metrics.csv").write_text("\n".join([*rows, "900,train/lo"]))
    return folder


@pytest.fixture
def page(tmp_path):
    """A report of four utterances whose texts and failures try to break out of the page."""
    backends = fake_backends()
    rows = generation_folder(tmp_path / "g", backends)
    rows[2]["text"] = '<script>alert("1")</script> & more'
    rows[1] |= {"wav": None, "error": "<img src=x onerror=alert(2)>"}
    rows[0]["request_id"] = 'a"b<c>'
    write_rows(tmp_path / "g", rows)
    summary = evaluate_generations(
        tmp_path / "g", tmp_path / "out", training_run=metrics_csv(tmp_path), backends=backends
    )
    return summary, Page((tmp_path / "out/report.html").read_text())


def test_page_is_whole_and_loads_nothing_from_outside(page):
    _, html = page
    for tag, attributes in html.tags:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    policy = [
        meta["content"] for meta in html.attributes("meta") if "content" in meta and "default-src" in meta["content"]
    ]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"
    ]
    assert [tag for tag, _ in html.tags].count("script") == 1


def test_page_shows_scores_failures_and_provenance(page):
    summary, html = page
    for row in summary.rows:
        assert row.label in html.text
    assert "n 1 / 2" in html.text
    assert "<img src=x onerror=alert(2)>" in html.text
    assert '<script>alert("1")</script> & more' in html.text
    assert "fake-asr 1" in html.text
    assert "Git commit" in html.text


def test_anchors_lead_somewhere_and_ids_are_unique(page):
    _, html = page
    identifiers = [attributes["id"] for _, attributes in html.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {a["href"][1:] for a in html.attributes("a")}
    assert targets == {"content", "summary", "training", "utterances", "provenance"}
    assert targets <= set(identifiers)


def test_worst_utterances_come_first(page):
    _, html = page
    heads = [html.text.index(name) for name in ("utt1", "utt2")]
    assert heads == sorted(heads)
    # The failed one, then the one whose words the recogniser has wrong, then the rest.
    articles = html.text[html.text.index("Utterances, worst first") :]
    assert articles.index("utt1") < articles.index("utt2") < articles.index("utt3")


def test_players_and_spectrograms_are_inside_and_labelled(page):
    _, html = page
    players, images = html.attributes("audio"), html.attributes("img")
    # Voice reference, ground truth, reconstruction and generated of four utterances, one of which was not generated.
    assert len(players) == len(images) == 15
    for player in players:
        samples, rate_hz = soundfile.read(io.BytesIO(content(player["src"], "audio/flac")))
        assert (rate_hz, samples.ndim) == (16_000, 1)
        assert player["aria-label"]
    for image in images:
        assert Image.open(io.BytesIO(content(image["src"], "image/png"))).size == (320, 96)
        assert re.fullmatch(r"Spectrogram of .+, \d\.\d\d s, 0 to 8 kHz", image["alt"])


def test_audio_is_capped_and_the_page_says_so(tmp_path):
    from moss.config.evaluation import EvalConfig, ReportConfig
    from moss.evaluation.run import evaluate

    backends = fake_backends()
    generation_folder(tmp_path / "g", backends)
    config = EvalConfig(output=tmp_path / "o", generations=tmp_path / "g", report=ReportConfig(audio_utterances=1))
    evaluate(config, backends=backends)
    html = Page((tmp_path / "o/report.html").read_text())
    assert len(html.attributes("audio")) == 4
    assert "Only the first 1 have players" in html.text
    assert html.text.count("heard:") == 12


def test_clip_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    html = render_clips([Clip(label="a<b", path=tmp_path / "broken.wav")])
    assert "a&lt;b" in html
    assert "corrupt or unknown audio" in html
    assert "<audio" not in html


def test_audio_is_lossless_16_bit():
    wave = voice(0.5)
    samples, _ = soundfile.read(io.BytesIO(content(audio_uri(wave, 16_000), "audio/flac")), dtype="float32")
    np.testing.assert_allclose(samples, wave, atol=1 / 32768)


def test_spectrogram_shows_a_tone_where_it_is():
    times = np.arange(16_000) / 16_000
    levels = spectrogram(np.sin(2 * np.pi * 2000 * times), 16_000, columns=50)
    assert levels.shape[1] == 50
    assert levels.argmax(axis=0)[5:-5].tolist() == [round(2000 / 8000 * (levels.shape[0] - 1))] * 40
    assert 0.0 <= levels.min() <= levels.max() == 1.0
    assert not spectrogram(np.zeros(100), 16_000, columns=8).any()
    image = Image.open(io.BytesIO(content(spectrogram_uri(voice(0.01), 48_000), "image/png")))
    assert image.size == (320, 96)


def test_edits_are_marked_and_escaped():
    html = render_edits(word_errors("say <b> now please", "say <i> now well <u>", "en").edits)
    assert "<b>" not in html
    html = render_edits(word_errors("one two three four", "one too three", "en").edits)
    assert html == 'one <span class="substituted"><del>two</del> <ins>too</ins></span> three <del>four</del>'
    assert render_edits(word_errors("one", "one two", "en").edits) == "one <ins>two</ins>"


def chart(*series, **options):
    return Chart(title="Loss <1>", x_label="step", y_label="loss", series=series, **options)


@pytest.mark.parametrize("count", [1, 2, 40, 5000])
def test_chart_draws_every_line_inside_its_frame(count):
    line = Series(name="a&b", x=range(count), y=[1 / (i + 1) for i in range(count)])
    html = render_chart(chart(line, Series(name="flat", x=[0, count], y=[0.5, 0.5])))
    Page(html)
    assert "Loss &lt;1&gt;" in html
    assert "a&amp;b" in html
    points = [
        tuple(map(float, point.split(",")))
        for found in re.findall(r'points="([^"]+)"', html)
        for point in found.split()
    ]
    assert len(points) <= 402
    assert all(0 <= x <= 640 and 0 <= y <= 300 for x, y in points)
    assert ("each point is the mean of 13 values" in html) == (count == 5000)


def test_chart_is_described_for_those_who_cannot_see_it():
    html = render_chart(chart(Series(name="train", x=[0, 10], y=[4.0, 2.0]), ordered=True))
    assert 'role="img" aria-label="Loss &lt;1&gt;. loss over step: train from 4 to 2."' in html
    assert "<td>0: 4, 10: 2</td>" in html


def test_interval_band():
    html = render_chart(chart(Series(name="s", x=[1, 2], y=[1, 2], low=[0.5, 1.5], high=[1.5, 2.5])))
    assert html.count("<polygon") == 1


def test_training_charts(tmp_path):
    charts = training_charts(metrics_csv(tmp_path, codebooks=3))
    assert [c.title for c in charts] == ["Loss", "Validation loss per codebook"]
    assert [line.name for line in charts[0].series] == ["train/loss", "val/loss"]
    assert [line.name for line in charts[1].series] == ["codebook 00", "codebook 01", "codebook 02"]
    assert len(charts[0].series[0].x) == 900
    assert "perf/positions_per_s" not in read_metrics(tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch,loss\n1,2\n", "expected step,key,value"),
        ("", "expected step,key,value"),
        ("step,key,value\n1,train/loss,abc\n2,train/loss,1.0\n", r"metrics\.csv:2: .* is not step,key,value"),
        ("step,key,value\n1,perf/x,3\n", "no curve to draw"),
        ("step,key,value\n1,train/loss,nan\n", "no curve to draw"),
    ],
)
def test_training_file_that_cannot_be_drawn(tmp_path, content, message):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(EvaluationError, match=message):
        training_charts(tmp_path)
