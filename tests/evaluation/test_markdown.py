from moss.config.evaluation import Metric, MissingPolicy
from moss.evaluation.aggregate import Score
from moss.evaluation.markdown import render_markdown, write_markdown
from moss.evaluation.summary import Summary, SummaryRow

COMPLETE = Score(mean=0.5, low=0.25, high=0.75, n_scored=4, n_expected=4)
PARTIAL = Score(mean=0.125, low=0.1, high=0.2, n_scored=3, n_expected=4)
NONE = Score(mean=None, low=None, high=None, n_scored=0, n_expected=4)


def summary(*scores):
    rows = [
        SummaryRow(label=f"a|b {i}", system="s", group="", scores=by_metric, bits_per_s=1000.0 if i else None)
        for i, by_metric in enumerate(scores)
    ]
    return Summary(
        benchmark="tokenizers",
        protocol="p1",
        missing=MissingPolicy.COUNT_AS_ERROR,
        rows=rows,
        labels={Metric.STOI: "STOI", Metric.WER: "WER"},
        backends={Metric.STOI: "pystoi 1", Metric.WER: "asr 2 (sha256 ab)"},
        notes=["a note"],
        provenance={"machine": "8 cores", "python": "3.11", "packages": {"torch": "2"}, "command": "run it"},
    )


def test_table_with_everything_to_make_it_again():
    text = render_markdown(summary({Metric.WER: COMPLETE}, {Metric.STOI: COMPLETE, Metric.WER: COMPLETE}), {"x": "rev"})
    lines = text.splitlines()
    assert lines[0] == "# Scores: tokenizers"
    for line in ("- protocol: p1", "- hardware: 8 cores", "- versions: python 3.11, torch 2", "- command: `run it`"):
        assert line in lines
    assert "- WER: asr 2 (sha256 ab)" in lines
    assert "- x: rev" in lines
    assert not any("pystoi" in line for line in lines)
    assert "| system | bit/s | STOI | WER | n scored / n expected |" in lines
    assert "| a\\|b 0 |  |  | 50.0 % (25.0 to 75.0) | 4 / 4 |" in lines
    assert "| a\\|b 1 | 1000 | 0.500 (0.250 to 0.750) | 50.0 % (25.0 to 75.0) | 4 / 4 |" in lines
    assert lines[-1] == "- a note"
    assert "†" not in text


def test_score_that_does_not_rest_on_every_clip_is_marked(tmp_path):
    write_markdown(tmp_path / "table.md", summary({Metric.STOI: PARTIAL, Metric.WER: NONE}), {})
    text = (tmp_path / "table.md").read_text()
    assert "| 0.125 (0.100 to 0.200) † |  | 3 / 4, 0 / 4 |" in text
    assert "† Not every clip could be scored" in text
