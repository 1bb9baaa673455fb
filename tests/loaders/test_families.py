"""Test families of models with PaddleFormers and PaddleNLP: the libraries write tiny models, adapters and what the adapters
make of them, paddle_merge merges, converts and folds, and the libraries have the right weights when they open the results.

tools/family_table.py does the same for more families; test_loaders.py says what this needs. Layouts are the libraries' own:
what they hold in memory is compared, not what is in files.
"""

from __future__ import annotations

import pytest

from tests.support.libraries import ABSENT
from tools.family_table import FOLDER, TRIALS, WORDS, Results, problems, row, tried

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

TRIED = {
    "paddleformers": ("llama", "qwen2", "qwen3", "ernie4_5", "ernie4_5_moe", "gemma3_text", "paddleocr_vl"),
    "paddlenlp": ("qwen2", "mixtral", "deepseek_v2"),
}


@pytest.fixture(scope="module", params=TRIED)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Results]:
    library = request.param
    return library, tried(library, TRIED[library], tmp_path_factory.mktemp(library))


def test_the_libraries_have_the_right_weights(results: tuple[str, Results]) -> None:
    library, found = results
    assert set(found) == set(TRIED[library])
    assert all(its.keys() == set(TRIALS[library]) for its in found.values())
    assert list(problems(found)) == []


def test_the_pages_say_so(results: tuple[str, Results]) -> None:
    library, found = results
    for page in WORDS:
        text = (FOLDER / page).read_text()
        for family, its in found.items():
            assert row(library, family, its, page) in text
