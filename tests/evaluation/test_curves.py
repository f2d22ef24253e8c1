import io

import pytest
from PIL import Image

from moss.config.evaluation import Metric
from moss.evaluation.aggregate import Score
from moss.evaluation.curves import PUBLISHED_NAME, bitrate_charts, write_curves
from moss.evaluation.published import published_tokenizers
from moss.evaluation.report_charts import render_chart
from moss.evaluation.summary import SummaryRow

LABELS = {Metric.PESQ_WB: "PESQ-WB", Metric.WER: "WER", Metric.SIM: "SIM (fake)", Metric.RTF: "RTF"}


def row(label, family, bits_per_s, value, metrics=tuple(LABELS)):
    made = Score(mean=value, low=value - 0.1, high=value + 0.1, n_scored=3, n_expected=3)
    scores = dict.fromkeys(metrics, made)
    return SummaryRow(label=label, system=label, group="", scores=scores, bits_per_s=bits_per_s, family=family)


ROWS = [
    row("original", "", None, 0.1, (Metric.WER,)),
    row("ours, 8", "ours", 1000.0, 0.8),
    row("ours, 1", "ours", 125.0, 0.4),
    row("Opus 6", "Opus", 6000.0, 0.7),
    row("bound", "bound", None, 0.9),
]


@pytest.fixture
def charts():
    return bitrate_charts(ROWS, LABELS, published_tokenizers())


def test_published_rows_are_those_of_the_table():
    published = published_tokenizers()
    assert len(published.rows) == 27
    assert {"DAC", "Encodec", "Mimi", "MOSS-Audio-Tokenizer"} < {row.model for row in published.rows}
    (mimi,) = [row for row in published.rows if row.model == "Mimi" and row.num_codebooks == 8]
    assert (mimi.bits_per_s, mimi.stoi, mimi.pesq_nb_16k, mimi.pesq_wb, mimi.sim_wavlm) == (1100, 0.91, 2.8, 2.25, 0.74)
    assert mimi.label == "Mimi (8 codebooks)"
    assert (mimi.value(Metric.PESQ_WB), mimi.value(Metric.SIM), mimi.value(Metric.WER)) == (2.25, None, None)
    assert "self-reported" in published.mark


def test_one_chart_for_each_metric_and_one_of_the_published_similarity(charts):
    assert [chart.title for chart in charts] == [
        "PESQ-WB",
        "WER (%)",
        "SIM (fake)",
        "RTF",
        "SIM (WavLM), published only",
    ]
    assert all(chart.log_x for chart in charts)


def test_curves_ascend_in_bit_rate_and_what_has_none_is_a_level(charts):
    ours, opus, bound, published = charts[0].series
    assert (ours.name, list(ours.x), list(ours.y)) == ("ours", [125, 1000], [0.4, 0.8])
    assert list(ours.low) == pytest.approx([0.3, 0.7])
    assert (opus.name, list(opus.x)) == ("Opus", [6000])
    assert (bound.name, bound.level, list(bound.x), list(bound.y)) == ("bound", True, [125, 6000], [0.9, 0.9])
    assert (published.name, published.hollow, len(published.x)) == (PUBLISHED_NAME, True, 27)
    assert "higher is better" in charts[0].note
    assert "not comparable point by point" in charts[0].note


def test_similarities_of_two_encoders_never_share_an_axis(charts):
    own, theirs = charts[2], charts[4]
    assert [line.name for line in own.series] == ["ours", "Opus", "bound"]
    assert [line.name for line in theirs.series] == [PUBLISHED_NAME]
    assert "not to be compared with SIM (fake)" in theirs.note
    assert theirs.y_label == "SIM (WavLM)"


def test_rates_are_drawn_in_percent_with_the_original_as_level(charts):
    assert [line.name for line in charts[1].series] == ["ours", "Opus", "original", "bound"]
    assert list(charts[1].series[0].y) == pytest.approx([40, 80])
    assert charts[1].note == "lower is better"


def test_no_chart_without_a_curve():
    assert bitrate_charts([ROWS[0], ROWS[4]], LABELS, published_tokenizers()) == []


def test_chart_in_the_report(charts):
    drawn = render_chart(charts[0])
    assert drawn.count("<circle") == 3 + 27
    assert drawn.count("fill:none;stroke:var(--muted)") == 27
    assert "<title>Mimi (8 codebooks): 2.25 at 1100</title>" in drawn
    assert drawn.count("stroke-dasharray") == 1
    assert '<span class="swatch hollow"' in drawn
    # On a logarithmic axis 125, 1000 and 8000 would be equally far apart.
    assert ">200</text>" in drawn
    assert ">5000</text>" in drawn
    assert "<th scope=row>DAC (8 codebooks)</th><td>6000: 3.41</td>" in drawn
    assert "<th scope=row>bound</th><td>0.9</td>" in drawn


def test_picture(charts, tmp_path):
    write_curves(tmp_path / "curves.png", charts, published_tokenizers())
    content = (tmp_path / "curves.png").read_bytes()
    image = Image.open(io.BytesIO(content))
    assert image.width > 1000
    assert image.height > 600
    assert len(image.convert("RGB").getcolors(1 << 20)) > 50
