"""Test charts: where points and lines lie, and what is written beside them."""

from __future__ import annotations

import re

import pytest

from paddle_merge.drawing.svg import Series, heat_map, ticks, xy_chart


def places(drawn: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" [^/]*?><title>', drawn)
    ]


def test_points_lie_where_their_numbers_say() -> None:
    """A frame of 600 by 200 from (72, 10) on; each axis is 4 % longer on both sides than from 0 to 10."""
    drawn = xy_chart([Series("a", [(0, 0), (5, 10), (10, 5)])], "across", "up", size=(600, 200))
    unit = 600 / 10.8, 200 / 10.8
    expected = [(72 + (x + 0.4) * unit[0], 10 + (10.4 - y) * unit[1]) for x, y in ((0, 0), (5, 10), (10, 5))]
    assert places(drawn) == [pytest.approx(one, abs=0.06) for one in expected]
    assert ">across<" in drawn
    assert ">up<" in drawn


def test_steps_keep_a_value_until_the_next() -> None:
    drawn = xy_chart([Series("best", [(0, 3.0), (4, 1.0)], "steps")], "x", "y", size=(108, 108))
    (path,) = re.findall(r'<path d="(M[^"]*)" fill="none"', drawn)
    assert path == "M76.0 14.0H176.0V114.0"


def test_points_beyond_the_frame_lie_on_its_edge() -> None:
    drawn = xy_chart([Series("a", [(0, 1e9), (1, 0.5), (2, -7)])], "x", "y", frame=(0, 1), size=(600, 200))
    assert [y for _, y in places(drawn)] == [10.0, 110.0, 210.0]


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("none", [])],
        [Series("one", [(3, 0)])],
        [Series("equal", [(0, 0.1), (1, 0.1)], "line")],
        [Series("level", [(0, 2.0)], "level")],
        [Series("huge", [(0, -1.7e308), (1, 1.7e308)])],
        [Series("near", [(0, 1e16), (1, 1e16 + 2)])],
        [Series("tiny", [(0, 1e-300), (1, 2e-300)])],
    ],
)
def test_any_numbers_can_be_drawn(series: list[Series]) -> None:
    drawn = xy_chart(series, "x", "y")
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_names_are_escaped_and_points_in_one_place_drawn_once() -> None:
    drawn = xy_chart(
        [Series("<a>", [(0, 0), (0, 0), (1, 1)], titles=["<b>", "c", "d"], labels=["<e>", "", ""])], "<x>", "<y>"
    )
    assert len(places(drawn)) == 2
    assert all(f"&lt;{name}&gt;" in drawn for name in "abexy")
    assert not any(f"<{name}>" in drawn for name in ("b", "e", "x", "y"))


def test_ticks_are_round_and_tell_numbers_apart() -> None:
    assert ticks(0, 1, 5) == [(pytest.approx(k / 5), f"{k / 5:.1f}") for k in range(6)]
    assert [shown for _, shown in ticks(0.8701, 0.8712, 5)] == ["0.8705", "0.8710"]
    assert [shown for _, shown in ticks(-20, 1200, 5)] == ["0", "500", "1000"]
    assert [shown for _, shown in ticks(3e8, 9e8, 5)] == ["4e+08", "6e+08", "8e+08"]


def test_a_heat_map_has_narrow_columns_if_asked() -> None:
    drawn = heat_map(["row"], ["0", "1"], [[0.5, None]], "{:.2f}", 1.0, cell=30)
    assert drawn.count("<rect") == 1
    assert 'width="29"' in drawn
    assert ">0.50<" in drawn
