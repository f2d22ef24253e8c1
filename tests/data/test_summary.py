from moss.data.manifest import Utterance
from moss.data.shard_index import read_index
from moss.data.shard_writer import write_shards
from moss.data.summary import Length, lengths_of_manifest, lengths_of_shards, summary_lines, write_histogram
from tests.recordings import card, coded_utterances


def test_totals_languages_and_splits():
    lengths = [
        Length(1.0, "en", "anna", "train"),
        Length(2.5, "en", "ben", "train"),
        Length(3600.0, "fr", "anna", "heldout"),
    ]
    lines = summary_lines(lengths)
    assert lines[0] == "utterances: 3   hours: 1.001   speakers: 2   languages: 2"
    assert lines[1] == "  en: 2 utterances, 0.1 min, speakers: anna, ben"
    assert lines[2] == "  fr: 1 utterances, 60.0 min, speakers: anna"
    assert lines[3] == "  split: heldout 1, train 2"


def test_the_histogram_counts_everything_once():
    lengths = [Length(seconds, "en", "", "") for seconds in (0.5, 0.6, 1.5, 9.9)]
    lines = summary_lines(lengths)
    bins = lines[lines.index("length (s):") + 1 :]
    assert [int(line.split()[3]) for line in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert bins[0].endswith("2 " + "#" * 40)
    assert "unknown" in lines[1]


def test_bins_grow_with_the_longest():
    for longest in (0.3, 5.0, 70.0, 3000.0):
        lines = summary_lines([Length(longest, "en", "", ""), Length(0.0, "en", "", "")])
        bins = lines[lines.index("length (s):") + 1 :]
        assert 2 <= len(bins) <= 12


def test_nothing_has_no_histogram():
    assert summary_lines([])[0] == "utterances: 0   hours: 0.000   speakers: 0   languages: 0"


def test_many_speakers_are_abbreviated():
    lines = summary_lines([Length(1.0, "en", f"s{number}", "") for number in range(8)])
    assert lines[1].endswith("speakers: s0, s1, s2, s3, s4 and 3 more")


def test_manifest_and_shards_give_lengths(tmp_path):
    with_audio = Utterance(id="a", audio="a.wav", text="a", language="en", duration_s=2.0)
    request = Utterance(id="b", audio="", text="b", language="en")
    assert lengths_of_manifest([with_audio, request]) == [Length(2.0, "en", "", "")]
    write_shards(tmp_path, coded_utterances(2), card())
    assert [length.seconds for length in lengths_of_shards(read_index(tmp_path))] == [0.08, 0.16]


def test_the_picture_is_a_png(tmp_path):
    for name, lengths in (("a.png", [Length(1.0, "en", "", ""), Length(2.0, "", "", "")]), ("b.png", [])):
        write_histogram(tmp_path / name, lengths, "title")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
