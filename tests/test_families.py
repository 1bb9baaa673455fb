"""Test the pages on families of methods: what they say is right, in both languages, and their recipes run."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from paddle_merge.methods.registry import NAMED, find, names
from paddle_merge.methods.shared.method import REQUIRED, Method
from tests.support.sweeps import every
from tools.compare_with_mergekit import Tensors
from tools.try_recipes import tried

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configs" / "recipes"
FAMILIES = sorted(path for path in RECIPES.iterdir() if path.is_dir())
PAGES = [page for folder in (RECIPES, *FAMILIES) for page in (folder / "README.md", folder / "README_cn.md")]
# What a page's column on the base model says, by language.
BASES = {
    "README.md": {"required": "yes", "optional": "optional", "model": "no", "first": "one of the two"},
    "README_cn.md": {"required": "需要", "optional": "可选", "model": "不用", "first": "两者之一"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def blocks(page: Path) -> list[str]:
    return re.findall(r"```\w+\n.*?```", page.read_text(), flags=re.S)


def rows(page: Path, columns: int) -> dict[str, list[str]]:
    """The rows of tables of so many columns whose first names methods: name -> the other cells."""
    found: dict[str, list[str]] = {}
    for line in page.read_text().splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == columns - 1:
            for name in re.findall("`([^`]+)`", first):
                assert name not in found, f"{page}: {name} twice"
                found[name] = cells
    return found


def described(page: Path) -> dict[str, list[str]]:
    """Method -> idea, paper, base, parameters, cost."""
    return rows(page, 6)


@pytest.mark.parametrize("folder", [RECIPES, *FAMILIES], ids=lambda folder: folder.name)
def test_both_languages_show_the_same(folder: Path) -> None:
    """Code blocks, links to recipes, and measured numbers."""
    english, chinese = folder / "README.md", folder / "README_cn.md"
    assert blocks(english) == blocks(chinese) != []
    numbers = [re.findall(r"\d+\.\d ± \d+\.\d", page.read_text()) for page in (english, chinese)]
    assert numbers[0] == numbers[1]
    links = [set(re.findall(r"\]\(([^)]+\.(?:yaml|py))\)", page.read_text())) for page in (english, chinese)]
    assert links[0] == links[1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != RECIPES], ids=name_of)
def test_a_page_names_every_recipe_beside_it(page: Path) -> None:
    linked = {link for link in re.findall(r"\]\(([^)]+\.yaml)\)", page.read_text()) if "/" not in link}
    assert linked == {path.name for path in page.parent.glob("*.yaml")}


@pytest.mark.parametrize("language", BASES)
def test_every_method_is_on_one_page(language: str) -> None:
    """With all its parameters and their defaults, and whether it needs a base model, as the code has them.

    Except for a method that has no place in lists yet: one file, its loop and its laws make a method.
    """
    found = [name for folder in FAMILIES for name in described(folder / language)]
    new = {name for name, method in NAMED.items() if method.place == Method.place}
    assert set(names()) - new <= set(found) <= set(names())
    assert len(found) == len(set(found))
    for folder in FAMILIES:
        for name, (_, _, base, parameters, _) in described(folder / language).items():
            method = find(name)
            assert method is not None
            assert base == BASES[language][method.base], name
            for one in method.parameters:
                default = "" if one.default is REQUIRED or one.default is None else f" {yaml_word(one.default)}"
                assert re.search(rf"`{one.name}`{re.escape(default)}(?![\w.])", parameters), (name, one.name, default)
            assert set(re.findall("`([^`]+)`", parameters)) == {one.name for one in method.parameters}, name


def yaml_word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_files_that_are_there(page: Path) -> None:
    for path in re.findall(r"(?:configs|tools)/[\w./]+", " ".join(blocks(page))):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("path", every(sorted(RECIPES.rglob("*.yaml")), 3), ids=name_of)
def test_every_recipe_runs_as_it_stands(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On small Llamas by the names that it gives; no filter is there in vain."""
    caplog.set_level(logging.WARNING, "paddle_merge")
    out = tried(path)
    assert all(np.isfinite(x).all() and (x.any() or path.stem == "block_expansion") for x in out.values())
    assert [record.message for record in caplog.records if "int8_mask" not in record.message] == []
    depth = {"block_expansion": 40, "depth_up_scaling": 48, "frankenmerge": 40, "layer_scale": 48}
    depth |= {"passthrough": 40, "gradient_slerp": 32, "drop_layers": 16}
    assert len([name for name in out if name.endswith("q_proj.weight")]) == depth.get(path.stem, 4)


def test_what_block_expansion_inserts_adds_nothing() -> None:
    out = tried(RECIPES / "layers" / "block_expansion.yaml")
    for number in range(40):
        layer = parts(out, number)
        silent = not layer["self_attn.o_proj.weight"].any() and not layer["mlp.down_proj.weight"].any()
        assert silent == (number % 5 == 4)
        if silent:
            before = parts(out, number - 1)
            same = [name for name in layer if (layer[name] == before[name]).all()]
            assert set(layer) - set(same) == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}


def parts(out: Tensors, number: int) -> Tensors:
    start = f"model.layers.{number}."
    return {name.removeprefix(start): x for name, x in out.items() if name.startswith(start)}


@pytest.mark.exhaustive
def test_the_comparison_knows_every_method_and_runs() -> None:
    """On two of them, with one training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle's import warns of a missing ccache
        from tools.compare_methods import GRIDS, PAIRS, ROLES

    assert GRIDS.keys() | PAIRS.keys() | ROLES == set(names())
    command = [sys.executable, str(ROOT / "tools" / "compare_methods.py"), "--only", "places", "--seeds", "1"]
    done = subprocess.run([*command, "--methods", "linear,nearswap,passthrough"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = {line.split("|")[1].strip(): line.split("|")[-2] for line in done.stdout.splitlines() if line.startswith("| ")}
    assert float(told["linear"].split("±")[0]) > float(told["base, middle"].split("±")[0])
