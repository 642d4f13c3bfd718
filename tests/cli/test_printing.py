"""What commands print."""

import sys

from jaxdti.cli.printing import print_table


def test_tables_are_drawn_on_a_terminal_only(capsys, monkeypatch):
    rows = [("name", "rows"), ("human [random]", "1")]
    print_table("title", rows)
    assert capsys.readouterr().out == "title\nname            rows\nhuman [random]  1\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("title", rows)
    drawn = capsys.readouterr().out
    assert "human [random]" in drawn and "━" in drawn
