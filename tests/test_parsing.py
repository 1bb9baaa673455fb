"""Test the parsing and formatting of values."""

from __future__ import annotations

import numpy as np
import pytest

import paddle_merge
from paddle_merge.parsing import coerce, count_text, nearest, parse_size, short_paths, size_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (12_345, "12.3 KB"),
        (999_499, "999 KB"),
        (999_500, "1 MB"),
        (988_097_824, "988 MB"),
        (14_532_000_000, "14.5 GB"),
        (3_200_000_000_000, "3.2 TB"),
        (2_000_000_000_000_000, "2,000 TB"),
    ],
)
def test_sizes_read_well_at_every_scale(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(999, "999 B"), (1001, "1.01 KB"), (234_100_000, "235 MB"), (10**8, "100 MB"), (999_999, "1 MB")],
)
def test_a_size_rounded_up_is_enough(nbytes: int, text: str) -> None:
    assert size_text(nbytes, round_up=True) == text
    assert parse_size(text) >= nbytes


@pytest.mark.parametrize(
    ("number", "text"), [(5, "5"), (999, "999"), (12_345, "12.3 K"), (494_032_768, "494 M"), (7_615_616_512, "7.62 B")]
)
def test_counts_read_well_at_every_scale(number: int, text: str) -> None:
    assert count_text(number) == text


@pytest.mark.parametrize("nbytes", [1, 512, 1000, 5_000_000, 64_000_000_000])
def test_a_printed_size_can_be_given_to_a_flag(nbytes: int) -> None:
    assert parse_size(size_text(nbytes)) == nbytes


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["/home/me/math", "code/"], ["math", "code"]),
        (["/x/run1/checkpoint-5", "/x/run2/checkpoint-5", "/x/a"], ["run1/checkpoint-5", "run2/checkpoint-5", "a"]),
        (["/a", "/b/a", "/c/b/a"], ["a", "b/a", "c/b/a"]),
        (["/x/a", "/x/a"], ["a", "a"]),
        (["/"], [""]),
        ([], []),
    ],
)
def test_paths_are_as_short_as_tells_them_apart(paths: list[str], short: list[str]) -> None:
    assert short_paths(paths) == short


def test_a_vector_is_a_list() -> None:
    assert coerce(np.array([0.25, 0.75], np.float32), "list[float] | None") == [0.25, 0.75]
    with pytest.raises(ValueError, match="must be a number"):
        coerce(np.ones((2, 2)), "list[float] | None")


def test_public_names_can_be_completed() -> None:
    """They are imported when they are first used, so a shell doesn't see them by itself."""
    assert set(paddle_merge.__all__) <= set(dir(paddle_merge))


def test_a_word_in_capitals_is_near() -> None:
    assert nearest("TIES", ["linear", "ties"]) == "; did you mean 'ties'?"
