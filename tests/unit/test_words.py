"""Lists and tables in messages."""

from taugrid.words import listed, markdown_table


def test_a_long_list_says_how_many_it_leaves_out():
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(["a", "b", "c"], 2, "cell", "; ") == "a; b and 1 more cell"
    assert listed(["a", "b", "c"], 1, "cell") == "a and 2 more cells"


def test_a_bar_in_a_text_does_not_end_a_column_of_markdown():
    table = markdown_table(["name", "n", "best"], "lrc", [["a|b", "1", ""]])
    assert table == "| name | n | best |\n| :-- | --: | :-: |\n| a\\|b | 1 |  |"
