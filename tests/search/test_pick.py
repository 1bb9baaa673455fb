"""Which candidate a rule picks, and what is said about rules that can't be read or met. All numbers are worked by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from paddle_merge.errors import ConfigError
from paddle_merge.search.job import Result
from paddle_merge.search.outcome import Scored
from paddle_merge.search.pick import picked
from paddle_merge.search.rule import BEST, Condition, parse_rule

GOALS = {"reading": "maximize", "reward": "maximize", "length": "minimize"}


def scored(title: str, reading: float, reward: float, length: float = 0.0) -> Scored:
    return Scored(title, Result(0, {"reading": reading, "reward": reward, "length": length}))


POINTS = [
    scored("a", 0.9, 1.0, 50),
    scored("b", 0.8, 2.0, 40),
    scored("c", 0.7, 3.0, 30),
    scored("d", 0.6, 4.0, 20),
]
MODELS = {"./aligned": Result(0, {"reading": 0.6, "reward": 4.0, "length": 20}), "./x y": Result(0, error="it crashed")}


def pick(rule: str, points: list[Scored] = POINTS, models: Mapping[str, Result] = MODELS) -> str:
    return picked(points, points, GOALS, parse_rule(rule, "--pick", GOALS), models).title


@pytest.mark.parametrize(
    ("rule", "title"),
    [
        ("maximize reading", "a"),
        ("maximise reading subject to reward >= 2.5", "c"),
        ("maximize reading subject to reward >= 3", "c"),  # a bound is met by what equals it
        ("maximize reading subject to reward >= 0.75 of ./aligned", "c"),
        ("maximize reading subject to reward >= 75% of './aligned'", "c"),
        ("maximize reading subject to reward >= 1 of ./aligned", "d"),
        ("maximize reward subject to reading >= 0.88 of best", "b"),  # 0.88 of 0.9 is 0.792
        ("minimize length subject to reading >= 0.7", "c"),
        ("maximize reading subject to length <= 1.5 of best and reward >= 1", "c"),  # the shortest is 20
        ("maximize reward subject to length >= 40", "b"),  # what no front would have: a bound against the objective
    ],
)
def test_a_rule_picks_the_best_that_meets_its_conditions(rule: str, title: str) -> None:
    assert pick(rule) == title


def test_of_equal_candidates_that_with_the_better_other_objectives_is_picked() -> None:
    equal = [scored("worse", 0.9, 1.0), scored("better", 0.9, 2.0), scored("as good", 0.9, 2.0)]
    assert pick("maximize reading", equal) == "better"


def test_names_with_other_characters_are_read() -> None:
    goals = {"acc,none": "maximize", "exact match": "maximize"}
    rule = parse_rule("maximize acc,none subject to 'exact match' >= -1e-1 of \"./a and b\"", "", goals)
    assert (rule.metric, rule.conditions) == ("acc,none", (Condition("exact match", True, -0.1, "./a and b"),))
    tight = parse_rule("maximize acc,none subject to acc,none>=2", "", goals)
    assert tight.conditions == (Condition("acc,none", True, 2.0),)


def test_without_a_rule_the_candidate_nearest_to_the_best_of_everything_is_picked() -> None:
    # Shares of the ranges that c misses: 2/3, 1/3 and 1/3, squared and added 2/3; a misses 2, b 1, and d 1.
    assert picked(POINTS, POINTS, GOALS).title == "c"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "the rule ends where maximize or minimize should stand; it has the form maximize|minimize METRIC"),
        ("best reading", "'best' stands in the rule where maximize or minimize should; it has the form"),
        ("maximize", "the rule ends where a metric should stand"),
        ("maximize readin", "the rule names 'readin', which is no objective; did you mean 'reading'?; there are reading,"),
        ("minimize reading", "the rule says minimize reading, and the objectives say maximize"),
        ("maximize reading with reward >= 1", "'with' stands in the rule where subject should"),
        ("maximize reading subject to reward > 1", "'>' stands in the rule where >= or <= should"),
        ("maximize reading subject to reward >= high", "'high' stands in the rule where a number should"),
        ("maximize reading subject to reward >= inf", "'inf' in the rule is no finite number"),
        ("maximize reading subject to reward >= 1 or length <= 2", "'or' stands in the rule where and should"),
        ("maximize reading subject to reward >= 1 of", "the rule ends where best or a model should stand"),
        ("maximize 'reading", "can't read \"'reading\" in the rule"),
    ],
)
def test_a_rule_that_cant_be_read_is_refused_with_what_is_allowed(rule: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_rule(rule, "search.yaml:7:9", GOALS)
    assert len(raised.value.problems) == 1
    assert said in raised.value.problems[0]
    assert raised.value.problems[0].startswith("search.yaml:7:9: ")


def test_a_model_that_isnt_known_is_refused() -> None:
    rule = parse_rule("maximize reading subject to reward >= 0.9 of ./algned", "--pick", GOALS)
    with pytest.raises(ConfigError, match=r"unknown './algned' behind of; did you mean './aligned'\?; there are best, ./al"):
        rule.check(["./aligned"])
    parse_rule(f"maximize reading subject to reward >= 0.9 of {BEST}", "", GOALS).check([])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "maximize reading subject to reward >= 1.25 of ./aligned",
            "no candidate has reward >= 1.25 of ./aligned (5); the nearest, d, misses reward by 1; give another rule",
        ),
        (
            # Shares of what candidates differ by: a misses 2/3 of the rewards' 3, b 1/3 and 1/3 of the readings' 0.3.
            "maximize reading subject to reward >= 3 and reading >= 0.9",
            "no candidate has reward >= 3 and reading >= 0.9; the nearest, b, misses reward by 1 and reading by 0.1;",
        ),
        ("maximize reading subject to reward >= 1 of './x y'", "./x y has no reward, for it failed: it crashed"),
    ],
)
def test_what_no_candidate_meets_is_said_with_the_nearest(rule: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pick(rule)
    assert len(raised.value.problems) == 1
    assert said in raised.value.problems[0]


def test_a_share_of_a_negative_number_is_refused() -> None:
    models = {"./aligned": Result(0, {"reading": 0.6, "reward": -2.0, "length": 20})}
    with pytest.raises(
        ConfigError,
        match=r"is -2, and a multiple of a negative number is no share of it; with --resume --pick, give a number",
    ):
        pick("maximize reading subject to reward >= 0.98 of ./aligned", models=models)
    assert pick("maximize reading subject to reward >= 1 of ./aligned", models=models) == "a"
