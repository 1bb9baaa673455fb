"""Values as people write and read them."""

from __future__ import annotations

import pytest

from paddle_merge.parsing import parse_size, size_text


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


@pytest.mark.parametrize("nbytes", [1, 512, 1000, 5_000_000, 64_000_000_000])
def test_a_printed_size_can_be_given_to_a_flag(nbytes: int) -> None:
    assert parse_size(size_text(nbytes)) == nbytes
