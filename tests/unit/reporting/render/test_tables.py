"""Tables for a terminal and for Markdown: columns line up, and the words of files stay text."""

from __future__ import annotations

import pytest

from chestxray_vit.reporting.render.tables import aligned, in_two_lines, interval, markdown, piped, shown, shown_p


def test_columns_are_aligned_with_rules_around_the_rows():
    rows = in_two_lines([["finding", "95 % interval", "AUC"], ["Mass", "0.1 to 0.9", "0.5"], ["macro", "", "0.25"]])
    assert aligned(rows).splitlines() == [
        "               95 %",
        "finding    interval   AUC",
        "-------------------------",
        "Mass     0.1 to 0.9   0.5",
        "-------------------------",
        "macro                0.25",
    ]


def test_markdown_tables_align_numbers_to_the_right():
    assert piped([["finding", "AUC"], ["Mass", "0.5"]]).splitlines() == [
        "| finding | AUC |",
        "| --- | ---: |",
        "| Mass | 0.5 |",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Pleural_Thickening", "Pleural_Thickening"),  # an underscore inside a word is no emphasis
        ("_a_", r"\_a\_"),
        ("a|b", r"a\|b"),
        ("*a* `b`", r"\*a\* \`b\`"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        ("[a](b)", r"\[a\](b)"),
        ("\\", r"\\"),
    ],
)
def test_what_markdown_takes_for_markup_is_escaped(text, escaped):
    assert markdown(text) == escaped


def test_numbers_for_readers():
    assert [shown(None), shown(0.12345), shown(2, "+.1f")] == ["undefined", "0.123", "+2.0"]
    assert [shown_p(None), shown_p(0.0009), shown_p(0.001)] == ["undefined", "<0.001", "0.001"]
    assert interval({"low": None, "high": None}) == "undefined"
    assert interval({"low": 0.1, "high": 1.0}) == "0.100 to 1.000"
