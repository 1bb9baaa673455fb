"""Test rows that a recipe gives to tokens: mergekit's table `tokenizer: {tokens: ...}`.

The expected rows are mergekit's: its version 0.1.5 (PermutedVocabulary) and this program agree on 120 random tables of this
kind, 93 with equal rows and 27 that both refuse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from tests.conversion.vocabulary.test_vocabulary import AVERAGE, EMBED, HEAD, made, model, tokens_of
from tests.support.checkpoints import read


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a: t0 t1 t2 t3. b: t0 t3 t1 t4, whose rows are 10 times the token's number. lm_head's rows are 100 more."""
    model(tmp_path / "a", ["t0", "t1", "t2", "t3"])
    model(tmp_path / "b", ["t0", "t3", "t1", "t4"], 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TABLE = """tokenizer:
  source: base
  tokens:
    t0: {source: {kind: model_token, model: a, token_id: 3}, force: true}
    t1: {source: b, force: true}
    t2: {source: {kind: zero}}
    t3: {source: b}
    t4: {source: {kind: model_token, model: b, token: t3}}
    new: {source: {kind: model_token, model: a, token: t2}}
    none: {source: {kind: zero}, force: true}
"""
# t0: a's row 3. t1: b's row, 10. t2: a's 2, and zeros for b, which lacks it: 1. t3: as without the table, (3 + 30) / 2, as
# both have it. t4: b's own 40, and b's t3, 30, for a, which lacks it: 35. new: a's t2. none: zeros.
EXPECTED = [3, 10, 1, 16.5, 35, 2, 0]
EXPECTED_HEAD = [103, 110, 51, 116.5, 135, 102, 0]


def test_given_rows(here: Path) -> None:
    out = made(AVERAGE + TABLE)
    assert out[EMBED][:, 0].tolist() == EXPECTED
    assert out[HEAD][:, 0].tolist() == EXPECTED_HEAD
    assert out[EMBED][0].tolist() == [3, 3.25, 3.5]
    assert tokens_of("out") == {"t0": 0, "t1": 1, "t2": 2, "t3": 3, "t4": 4, "new": 5, "none": 6}


@pytest.mark.parametrize("source", ["union", "b"])
def test_given_rows_for_every_source(here: Path, source: str) -> None:
    """The rows are those of the same tokens; the order is the source's. b has no t2, but the table does."""
    ids = {"union": ["t0", "t1", "t2", "t3", "t4", "new", "none"], "b": ["t0", "t3", "t1", "t4", "t2", "new", "none"]}[
        source
    ]
    out = made(AVERAGE + TABLE.replace("source: base", f"source: {source}"))
    wanted = dict(zip(["t0", "t1", "t2", "t3", "t4", "new", "none"], EXPECTED, strict=True))
    assert out[EMBED][:, 0].tolist() == [wanted[token] for token in ids]
    assert tokens_of("out") == {token: row for row, token in enumerate(ids)}


def test_a_forced_row_is_the_bases_too(here: Path) -> None:
    """So its task vectors are zero: t1 is b's row. t3's are 30 - 3 for b and 0 for a: 3 + 27 / 2."""
    text = "models: [{model: a}, {model: b}]\nbase_model: a\nmerge_method: task_arithmetic\nparameters: {weight: 0.5}\n"
    out = made(text + "tokenizer: {source: base, tokens: {t1: {source: b, force: true}}}")
    assert out[EMBED][:, 0].tolist() == [0, 10, 2, 16.5]


def test_a_table_and_padding(here: Path) -> None:
    """Rows without a token are the mean of the others, here of 0, 5.5, 2, 16.5 and 30: 10.8."""
    model(here / "c", ["t0", "t1", None], 7)
    table = "{source: base, pad_to_multiple_of: 8, tokens: {new: {source: {kind: model_token, model: b, token_id: 1}}}}"
    out = made(f"{AVERAGE}tokenizer: {table}")
    np.testing.assert_allclose(out[EMBED][:, 0], [0, 5.5, 2, 16.5, 30, 10.8, 10.8, 10.8], rtol=1e-6)
    # A row without a token can be given, too: -7, by its number.
    three = "models: [{model: a}, {model: c}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    out = made(
        f"{three}tokenizer: {{source: base, tokens: {{t2: {{source: {{kind: model_token, model: c, token_id: 2}}}}}}}}",
        "again",
    )
    assert out[EMBED][:, 0].tolist() == [0, 4, (2 - 7) / 2, 3]


def test_a_token_without_a_source_follows_the_rules(here: Path) -> None:
    """mergekit fails here where a model lacks the token."""
    out = made(AVERAGE + "tokenizer: {source: base, tokens: {t4: {}, t2: , t9: {force: false}}}")
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5, 40, 0]


def test_tied_rows_are_given_once(here: Path) -> None:
    model(here / "a", ["t0", "t1", "t2", "t3"], tied=True)
    model(here / "b", ["t0", "t3", "t1", "t4"], 10, tied=True)
    out = made(AVERAGE + TABLE)
    assert HEAD not in out
    assert out[EMBED][:, 0].tolist() == EXPECTED


def test_the_record_and_the_recipe_in_yaml_repeat_it(here: Path) -> None:
    first = made(AVERAGE + TABLE)
    again = MergeConfig.from_mapping({**MergeConfig.from_file("out/merge_config.json"), "output_path": "again"})
    merge(again, progress=False)
    for name, values in read(here / "again").items():
        np.testing.assert_array_equal(first[name], values)
    recipe = parse(AVERAGE + TABLE.replace("source: base", "source: union\n  pad_to_multiple_of: 4"), "x").recipe
    assert parse(to_yaml(recipe), "x").recipe == recipe


def test_the_flag_changes_the_source_alone(here: Path) -> None:
    """Not what the recipe says of rows and of padding: 7 tokens in 8 rows."""
    out = made(f"{AVERAGE}{TABLE}  pad_to_multiple_of: 4\n", tokenizer_source="b")
    assert tokens_of("out") == {"t0": 0, "t3": 1, "t1": 2, "t4": 3, "t2": 4, "new": 5, "none": 6}
    assert out[EMBED][:7, 0].tolist() == [3, 16.5, 10, 35, 1, 2, 0]
    assert out[EMBED].shape == (8, 3)


def test_the_plan_says_which_rows_are_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from paddle_merge.commands.main import main

    Path("recipe.yaml").write_text(
        AVERAGE + "tokenizer: {source: base, tokens: {t1: {source: b, force: true}, z: {source: a}}}"
    )
    with pytest.raises(SystemExit):
        main(["recipe.yaml", "--output_path", "out", "--dry_run"])
    assert "a: has no token 'z' with a row, which the tokens of the recipe give to 'z'" in capsys.readouterr().err
    Path("recipe.yaml").write_text(AVERAGE + "tokenizer: {source: base, tokens: {t1: {source: b, force: true}}}")
    with pytest.raises(SystemExit):
        main(["recipe.yaml", "--output_path", "out", "--dry_run"])
    shown = capsys.readouterr().out
    assert "a: 3 matched, 1 filled ('t1'), 0 dropped" in shown
    assert "rows said by the recipe: 1 tokens ('t1')" in shown


def test_what_no_input_has_is_reported_at_once(here: Path) -> None:
    table = (
        "t1: {source: {kind: model_token, model: b, token: t2}}, t2: {source: b},"
        " t3: {source: {kind: model_token, model: a, token_id: 4}}"
    )
    with pytest.raises(CheckpointError) as caught:
        made(f"{AVERAGE}tokenizer: {{source: base, tokens: {{{table}}}}}")
    assert caught.value.problems == [
        "b: has no token 't2' with a row, which the tokens of the recipe give to 't1'",
        "b: has no token 't2' with a row, which the tokens of the recipe give to 't2'",
        "a: has no row 4 (it has 4), which the tokens of the recipe give to 't3'",
    ]


def test_a_model_of_which_the_tensor_is_not_made(here: Path) -> None:
    """The embedding is the first slice's; mergekit refuses it, too."""
    text = "slices: [{sources: [{model: a, layer_range: [0, 1]}]}, {sources: [{model: b, layer_range: [0, 1]}]}]\n"
    text += "merge_method: passthrough\n"
    with pytest.raises(CheckpointError, match=f"b: has no tensor '{EMBED}' that is merged here, of which"):
        made(text + "tokenizer: {source: union, tokens: {t1: {source: b, force: true}}}")
    out = made(text + "tokenizer: {source: union, tokens: {t1: {source: {kind: zero}, force: true}}}")
    assert out[EMBED][:, 0].tolist() == [0, 0, 2, 3, 0]
    assert out[HEAD][:, 0].tolist() == [100, 0, 0, 130, 140]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{source: d}", "the row of 'x' is taken from 'd', which is none of the models that are merged"),
        ("{force: true}", "force replaces the row of 'x' in every model, so it needs a source"),
        ("{source: a, force: maybe}", "force must be true or false"),
        ("{sauce: a}", "unknown key 'sauce'"),
        ("{source: {kind: mean}}", "unknown kind 'mean'; there are zero and model_token"),
        ("{source: {kind: model_token, model: a}}", "needs model, and one of token and token_id"),
        ("{source: {kind: model_token, token: t1}}", "needs model, and one of token and token_id"),
        ("{source: {kind: model_token, model: a, token: t1, token_id: 1}}", "needs model, and one of token and token_id"),
        ("{source: {kind: model_token, model: a, token_id: -1}}", "token_id must be a whole number of at least 0"),
        ("{source: {kind: model_token, model: d, token_id: 1}}", "is taken from 'd', which is none"),
        ("a", "an entry of tokens must be a mapping"),
    ],
)
def test_mistakes(here: Path, entry: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(f"{AVERAGE}tokenizer: {{tokens: {{x: {entry}}}}}")
    assert said in str(error.value)
