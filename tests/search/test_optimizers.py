"""Test the optimisers: known optima are reached, populations are exact, and the same losses give the same candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from paddle_merge.errors import ConfigError
from paddle_merge.recipe.recipe import Value
from paddle_merge.search import optimizers
from paddle_merge.search.gene import Gene, Values, settled
from paddle_merge.search.optimizers import grid
from paddle_merge.search.optimizers.cat_cma import FEW
from paddle_merge.search.optimizers.optimizer import Optimizer, Settings
from paddle_merge.search.spec import OPTIMIZERS
from tests.support.sweeps import few

Function = Callable[[Values], Sequence[float]]
SWITCH = Gene("s", "s", choices=(True, False), start=True)
METHOD = Gene("m", "m", choices=("ties", "dare", "linear"), start="ties")
COUNT = Gene("n", "n", 0, 9, integer=True, start=4)
WIDE = Gene("w", "w", 1, 10_000, integer=True, log=True, start=100)
NUMBER = Gene("x", "x", -1.0, 3.0, start=1.0)
RATE = Gene("r", "r", 1e-4, 1.0, log=True, start=0.01)
MIXED = (SWITCH, NUMBER, METHOD, COUNT, RATE)
BEST: Values = (False, 0.25, "linear", 7, 0.1)


def numbers(count: int) -> tuple[Gene, ...]:
    return tuple(Gene(f"x{place}", "x", -2.0, 4.0, start=1.0) for place in range(count))


def sphere(values: Values) -> list[float]:
    return [sum((float(value) - 0.5) ** 2 for value in values)]


def rastrigin(values: Values) -> list[float]:
    return [sum((float(x) - 0.5) ** 2 + 1 - math.cos(2 * math.pi * (float(x) - 0.5)) for x in values)]


def mixed(values: Values) -> list[float]:
    """0 at BEST; each wrong choice costs 1, and the number interacts with the switch."""
    switch, number, method, count, rate = values
    wrong = (switch is not False) + (method != "linear")
    return [
        wrong + (float(number) - 0.25) ** 2 * (1 + switch) + (int(count) - 7) ** 2 / 20 + math.log10(float(rate) * 10) ** 2
    ]


def two(values: Values) -> list[float]:
    """Schaffer's first problem, for several numbers: the front is sqrt(f1) + sqrt(f2) = 1, where all numbers are equal."""
    x = np.array(values, np.float64)
    return [float(((x - 0.0) ** 2).mean()), float(((x - 1.0) ** 2).mean())]


def search(
    name: str, genes: Sequence[Gene], function: Function, evaluations: int, first: Sequence[Values] = (), **settings: int
) -> tuple[list[Values], list[Sequence[float]], Optimizer]:
    """Search as evolve does; return all candidates with their losses, and the optimiser."""
    objectives = len(function(tuple(gene.start for gene in genes)))
    made = optimizers.make(name, genes, Settings(evaluations=evaluations, objectives=objectives, **settings), first)
    candidates: list[Values] = []
    rows: list[Sequence[float]] = []
    while len(candidates) + made.population <= evaluations:
        population, asked = made.population, made.ask()
        if not asked:
            break
        assert len(asked) == population
        for values in asked:
            assert all(gene.admits(value) for gene, value in zip(genes, values, strict=True)), values
        told = [function(values) for values in asked]
        made.tell(told)
        candidates += asked
        rows += told
    return candidates, rows, made


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "function", "evaluations", "bound"),
    [
        ("cma", sphere, 600, 1e-6),
        ("sep_cma", sphere, 600, 1e-5),
        ("cat_cma", sphere, 600, 1e-6),
        ("nsga2", sphere, 1200, 1e-2),
        ("optuna", sphere, 100, 1.0),
        ("cat_cma", rastrigin, 1500, 1e-4),
        pytest.param("cma", rastrigin, 1500, 1e-4, marks=pytest.mark.exhaustive),
        pytest.param("nsga2", rastrigin, 2500, 0.1, marks=pytest.mark.exhaustive),
    ],
)
def test_numbers_reach_the_minimum(name: str, function: Function, evaluations: int, bound: float) -> None:
    """0, where all are 0.5. The middle of the bounds, where a search begins, has 1.25 of the sphere, 11.25 of Rastrigin."""
    population = {"population": 30} if function is rastrigin else {}
    for seed in range(1 if name == "optuna" else 3):
        _, rows, made = search(name, numbers(5), function, evaluations, seed=seed, **population)
        assert min(row[0] for row in rows) < bound
        if (mean := made.mean()) is not None:
            assert function(mean)[0] < 10 * bound


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "evaluations", "bound"), [("cat_cma", 600, 1e-4), ("nsga2", 900, 2e-2), ("optuna", 120, 0.6)]
)
def test_choices_integers_and_numbers_together(name: str, evaluations: int, bound: float) -> None:
    for seed in range(1 if name == "optuna" else 3):
        candidates, rows, _ = search(name, MIXED, mixed, evaluations, seed=seed)
        found = min(range(len(rows)), key=lambda place: rows[place][0])
        assert rows[found][0] < bound
        if name != "optuna":
            assert [candidates[found][place] for place in (0, 2, 3)] == [False, "linear", 7]


def test_the_mean_has_the_likeliest_choices() -> None:
    _, _, made = search("cat_cma", MIXED, mixed, 900)
    mean = made.mean()
    assert mean is not None
    assert (mean[0], mean[2], mean[3]) == (False, "linear", 7)
    assert mean[1] == pytest.approx(0.25, abs=0.02)
    assert mean[4] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(("name", "threshold"), [("nsga2", 0.80), ("como", 0.80), ("optuna", 0.55), ("random", 0.0)])
def test_two_objectives(name: str, threshold: float) -> None:
    """The front of `two` leaves 1/6 of the unit square below it, so that the most that a hypervolume can be is 5/6."""
    from moocore import hypervolume

    genes = numbers(3)
    found = search(name, genes, two, 150 if name == "optuna" else 1000)[1]
    volume = hypervolume(np.array(found), ref=[1.0, 1.0])
    assert threshold <= volume <= 5 / 6
    if name == "random":
        assert volume < 0.80


def test_only_choices() -> None:
    """Without any number: 12 switches, all of which must be on."""
    genes = tuple(Gene(f"s{place}", "s", choices=(False, True), start=False) for place in range(12))
    for name in ("cat_cma", "nsga2"):
        rows = search(name, genes, lambda values: [12 - sum(map(bool, values))], 400)[1]
        assert min(row[0] for row in rows) == 0


@pytest.mark.parametrize("genes", [(NUMBER,), (COUNT,), (WIDE,), (SWITCH,), (METHOD,)], ids=lambda genes: genes[0].name)
def test_a_single_gene(genes: tuple[Gene, ...]) -> None:
    best = genes[0].value(0.8)
    for name in ("cat_cma", "nsga2", "grid", "optuna", "random"):
        function = lambda values: [float(values[0] != best) if genes[0].choices else abs(float(values[0]) - best)]  # noqa: E731
        _, rows, _ = search(name, genes, function, 10_000 if name == "grid" else 40)
        assert min(row[0] for row in rows) < (1 if genes[0].choices else 0.3 * (genes[0].high - genes[0].low))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_losses_give_the_same_candidates(name: str) -> None:
    """Also after some failed: those are told as large, and all as equal in the first generation."""
    genes = numbers(4) if name in ("cma", "sep_cma") else MIXED
    objectives = 2 if name == "como" else 1
    seen: list[Values] = []

    def function(values: Values) -> list[float]:
        seen.append(values)
        loss = sphere(values)[0] if name in ("cma", "sep_cma") else mixed(values)[0]
        loss = 3.0 if len(seen) % 120 < 20 else 1e9 if len(seen) % 7 == 0 else loss
        return [loss, float(values[1])][:objectives]

    runs = []
    for seed in (0, 0, 1):
        seen.clear()
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            runs.append(search(name, genes, function, 60 if name == "optuna" else 240, seed=seed)[0])
    assert runs[0] == runs[1]
    assert runs[0]
    assert runs[0] != runs[2] or name == "grid"


@pytest.mark.parametrize("name", few(["cma", "nsga2", "grid", "cat_cma", "como", "optuna", "random"], 3))
def test_the_first_generation_has_what_is_given(name: str) -> None:
    genes = numbers(3)
    first: list[Values] = [(4.0, 4.0, 4.0), (-2.0, 0.0, 1.0)]
    function = two if name == "como" else sphere
    candidates = search(name, genes, function, 300, first)[0]
    if name == "como":  # whose searches begin there: their first candidates are among those of the others
        assert set(first) <= set(candidates[:20])
    else:
        assert candidates[:2] == first


@pytest.mark.parametrize("name", ["cat_cma", "nsga2", "optuna", "random", "grid"])
def test_more_given_candidates_than_a_generation_has(name: str) -> None:
    first = [(place / 4, 2.0, 3.0) for place in range(11)]
    candidates = search(name, numbers(3), sphere, 40, first, population=4)[0]
    assert candidates[:11] == first


def test_a_far_candidate_does_not_spoil_the_search() -> None:
    """A corner of the bounds, which is far from where the search begins."""
    for seed in range(3):
        rows = search("cat_cma", numbers(5), sphere, 600, [(4.0,) * 5], seed=seed)[1]
        assert min(row[0] for row in rows) < 1e-5


def test_a_choice_begins_at_its_start() -> None:
    """The first generation of 400 choices: of 0.9 likely ones 10 % differ, of others two thirds."""
    for likely, expected in ((0.9, 0.1), (None, 2 / 3)):
        genes = tuple(Gene(f"m{place}", "m", choices=("a", "b", "c"), start="b", likely=likely) for place in range(400))
        for name in ("cat_cma", "nsga2"):
            made = optimizers.make(name, genes, Settings(population=4))
            differ = np.mean([value != "b" for value in made.ask()[-1]])
            assert differ == pytest.approx(expected, abs=0.06)


def conditional(count: int) -> tuple[Gene, ...]:
    """Return switches, and numbers that count only where their switch is on."""
    switches = [Gene(f"k{place}", "k", choices=(True, False), start=True) for place in range(count)]
    return (*switches, *(Gene(f"s{place}", "s", 0.5, 1.5, start=1.0, needs=place) for place in range(count)))


def test_numbers_that_have_no_effect_are_at_their_start() -> None:
    genes = conditional(6)
    assert settled(genes, (*[True, False] * 3, *[1.2] * 6)) == (*[True, False] * 3, *[1.2, 1.0] * 3)

    def function(values: Values) -> list[float]:
        assert all(value == 1.0 for value, counts in zip(values[6:], values[:6], strict=True) if not counts)
        wrong = sum(value is not (place % 2 == 0) for place, value in enumerate(values[:6]))
        return [wrong + sum((float(value) - 0.8) ** 2 for value, kept in zip(values[6:], values[:6], strict=True) if kept)]

    for name in ("cat_cma", "nsga2", "random", "optuna"):
        rows = search(name, genes, function, 30 if name == "optuna" else 800)[1]
        assert min(row[0] for row in rows) < {"cat_cma": 1e-5, "nsga2": 0.05}.get(name, 9)


def test_nsga2_asks_for_nothing_twice() -> None:
    candidates = search("nsga2", (METHOD, COUNT, COUNT), lambda values: [float(values[1]), -float(values[2])], 120)[0]
    assert len(set(candidates)) == 120


def test_crowding_of_a_front() -> None:
    """Ends are infinite; others have both sides of their box, as shares: (2-0)/4 + (4-1)/4, and (4-1)/4 + (3-0)/4."""
    from paddle_merge.search.optimizers.nsga2 import _crowding

    rows = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 1.0], [4.0, 0.0]])
    assert _crowding(rows).tolist() == [np.inf, 0.5 + 0.75, 0.75 + 0.75, np.inf]


def test_children_stay_between_the_bounds() -> None:
    from paddle_merge.search.optimizers.nsga2 import _polynomial, _sbx

    generator = np.random.default_rng(0)
    for one, two_, share in generator.random((2000, 3)):
        for child in (*_sbx(one, two_, share), _polynomial(one, share)):
            assert -1e-9 <= child <= 1 + 1e-9
    pairs = [_sbx(0.4, 0.6, share) for share in generator.random(2000)]
    assert np.mean([left + right for left, right in pairs]) == pytest.approx(1.0, abs=1e-3)


def values_of(genes: Sequence[Gene], most: int) -> list[list[Value]]:
    found = grid.points(genes, most)
    assert len(found) == len(set(found)) <= most
    return [sorted(set(column), key=str) for column in zip(*found, strict=True)]


def test_a_grid_has_all_choices_and_as_many_numbers_as_fit() -> None:
    x, y = (Gene(name, name, 0.0, 1.0, start=0.5) for name in "xy")
    few = Gene("n", "n", 1, 3, integer=True, start=2)
    assert values_of((METHOD, few, x, y), 9) == [["dare", "linear", "ties"], [1, 2, 3], [0.5], [0.5]]
    assert values_of((METHOD, few, x, y), 18)[2:] == [[0.0, 1.0], [0.5]]
    assert values_of((METHOD, few, x, y), 9 * 3 * 4 - 1)[2:] == [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]
    assert values_of((METHOD, few, x, y), 9 * 3 * 4)[2] == [0.0, 0.333333, 0.666667, 1.0]
    assert grid.points((x, y), 4) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert values_of((RATE,), 5) == [[0.0001, 0.001, 0.01, 0.1, 1.0]]
    candidates = search("grid", (METHOD, x), lambda values: [float(values[1])], 100, [("dare", 0.123)])[0]
    assert candidates[0] == ("dare", 0.123)
    assert len(candidates) == len(set(candidates)) == 100


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"integers and steps alone make 30 candidates, and there may be 29 evaluations"):
        optimizers.make("grid", (METHOD, COUNT), Settings(evaluations=29))
    with pytest.raises(ConfigError, match="'m' is a choice; give cat_cma"):
        optimizers.make("cma", (METHOD,), Settings())
    with pytest.raises(ConfigError, match="takes one objective; give nsga2"):
        optimizers.make("cat_cma", (METHOD,), Settings(objectives=2))
    with pytest.raises(ConfigError, match="takes two objectives, not 3"):
        optimizers.make("como", (METHOD, NUMBER), Settings(objectives=3))


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, package, extra in (
        ("cat_cma", "cmaes", "search"),
        ("nsga2", "moocore", "search"),
        ("optuna", "optuna", "optuna"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=rf"needs the package {package}: .*paddle_merge\[{extra}\]"):
            optimizers.make(name, MIXED, Settings())


def test_integers_of_many_values_are_searched_like_numbers() -> None:
    wide = Gene("w", "w", 0, FEW * 10, integer=True, start=500)
    candidates, rows, _ = search(
        "cat_cma", (wide, NUMBER), lambda values: [abs(int(values[0]) - 333) + float(values[1]) ** 2], 500
    )
    assert candidates[min(range(len(rows)), key=lambda place: rows[place][0])][0] == 333


@pytest.mark.parametrize("name", ["cma", "sep_cma", "cat_cma", "nsga2", "random", "grid", "optuna"])
@pytest.mark.parametrize("integer", [True, False])
def test_numbers_keep_their_steps(name: str, integer: bool) -> None:
    """0, 2 ... 8: the best is 6. search() checks that all candidates are ones that the genes admit."""
    stepped = Gene("s", "s", 0.0, 8.0, integer=integer, step=2.0, start=4)
    pair = (stepped, Gene("t", "t", 0.0, 8.0, integer=integer, step=4.0, start=4))
    candidates, rows, _ = search(
        name, pair, lambda values: [(float(values[0]) - 6) ** 2 + float(values[1])], 15 if name == "grid" else 90
    )
    assert candidates[min(range(len(rows)), key=lambda place: rows[place][0])][0] == 6
    assert name != "grid" or len(candidates) == 15


def test_settings_without_an_effect_are_told(caplog: pytest.LogCaptureFixture) -> None:
    optimizers.make("grid", (COUNT,), Settings(population=4, sigma=0.2, noisy=True))
    assert [text.partition(" with")[0] for text in caplog.messages] == [
        "population has no effect", "sigma has no effect", "noisy has no effect"
    ]  # fmt: skip
    caplog.clear()
    optimizers.make("cma", (NUMBER,), Settings(population=4, sigma=0.2, noisy=True))
    assert caplog.messages == []


def test_como_goes_on_when_all_losses_are_equal() -> None:
    """As those of failures are: no statistic of the package is NaN, which it warns of, and pytest makes an error of that."""
    genes = [Gene(f"g{number}", f"g{number}") for number in range(6)]
    made = optimizers.make("como", genes, Settings(seed=0, population=12, evaluations=240, objectives=2))
    for _ in range(6):
        made.tell([(1.0, 1.0)] * len(made.ask()))
    assert all(0 <= float(value) <= 1 for values in made.ask() for value in values)
