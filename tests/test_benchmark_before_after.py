"""benchmarks/before_after.py: both trees are run in turn; the factor is that of the medians."""

from __future__ import annotations

import json

from benchmarks import before_after


def test_the_factor_is_that_of_the_medians_of_alternating_runs(
    plain_clip, tmp_path, monkeypatch, capsys
):
    took = iter([8.0, 2.0, 10.0, 4.0, 30.0, 3.0])
    order = []

    def timed(tree, clip, output):
        order.append(tree)
        return next(took)

    monkeypatch.setattr(before_after, "timed", timed)
    monkeypatch.setattr(before_after, "git", lambda *arguments: None)
    path = tmp_path / "result.json"
    assert before_after.main([str(plain_clip), "--runs", "3", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["factor"] == round(10 / 3, 3)
    assert order[1::2] == [before_after.ROOT] * 3
    assert all(tree != before_after.ROOT for tree in order[::2])


def test_the_program_of_a_tree_is_what_runs(plain_clip, tmp_path):
    output = tmp_path / "out.mp4"
    assert before_after.timed(before_after.ROOT, plain_clip, output) > 0
    assert output.exists()


def test_an_unknown_commit_is_one_line(plain_clip, capsys):
    assert before_after.main([str(plain_clip), "--before", "no-such-commit"]) == 1
    assert "before_after: error: " in capsys.readouterr().err
