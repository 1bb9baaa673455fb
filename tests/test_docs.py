"""Test that the pages are right, in both languages: commands, flags, configs, tables, links."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import yaml

from paddle_merge import MergeConfig, merge
from paddle_merge.backends.engine import import_paddle
from paddle_merge.commands.main import COMMANDS, main
from paddle_merge.commands.merge import EXAMPLES, FIELDS
from paddle_merge.methods.paddlenlp import METHODS
from paddle_merge.methods.registry import find, names
from paddle_merge.recipe.request import Request
from paddle_merge.recipe.yaml_nodes import documents
from paddle_merge.search.sections import evaluation_spec, has_section, search_spec
from paddle_merge.search.spec import KINDS, File, read_file
from paddle_merge.search.sweep_spec import sweep_spec
from tests.support.checkpoints import write
from tests.support.command_lines import check_fields, check_tool, parsed
from tests.support.pages import ROOT, blocks, chinese, commands, english, headings, links, name_of, prose, tables, words
from tools import method_table

LINES = {name: import_module(f"paddle_merge.commands.{module}").LINE for name, (module, _) in COMMANDS.items()}

PAGES = [page for one in english() for page in (one, chinese(one))]
README, README_CN = ROOT / "README.md", ROOT / "README_cn.md"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Folders whose pages belong to the documentation; each has a page in both languages.
FOLDERS = ["", "configs", "configs/recipes", "configs/search", "tools", "tools/claims", "paddle_merge"]
FOLDERS += [
    f"paddle_merge/{name}" for name in ("backends", "checkpoints", "commands", "compat", "conversion", "methods", "search")
]


def fill(folder: Path, *paths: str) -> None:
    """Write a small model with config.json to each of these paths in a folder."""
    for number, path in enumerate(paths):
        generator = np.random.default_rng(number)
        tensors = {"w": generator.standard_normal((20, 30)), "b": generator.standard_normal(5)}
        write(folder / path, tensors, "bfloat16")
        (folder / path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}')


def test_every_folder_has_its_page() -> None:
    found = {str(page.parent.relative_to(ROOT)).removeprefix(".") for page in english()}
    assert set(FOLDERS) - found == set()


def test_readme_is_an_overview() -> None:
    """What is longer belongs beside what it describes."""
    assert len(README.read_text().splitlines()) <= 160
    assert len(README_CN.read_text().splitlines()) <= 160


@pytest.mark.parametrize("page", english(), ids=name_of)
def test_both_languages_say_the_same(page: Path) -> None:
    """The same headings, code blocks, links, tables, and decimal numbers."""
    other = chinese(page)
    assert [level for level, _ in headings(page)] == [level for level, _ in headings(other)]
    assert blocks(page) == blocks(other)
    assert sorted(re.findall(r"\d+\.\d+", prose(page))) == sorted(re.findall(r"\d+\.\d+", prose(other)))
    shapes = [[[len(row) for row in table] for table in tables(one)] for one in (page, other)]
    assert shapes[0] == shapes[1]
    firsts = [[words(row[0]) for table in tables(one) for row in table] for one in (page, other)]
    assert firsts[0] == firsts[1]
    ends = [sorted(targets(one)) for one in (page, other)]
    assert ends[0] == ends[1]


def targets(page: Path) -> Iterator[tuple[str, int]]:
    """Yield where each link leads: the English file and the number of the heading; links between twins are left out."""
    for path, anchor in links(page):
        if path.parent != page.parent or not path.name.startswith("README") or anchor:
            number = [one for _, one in headings(path)].index(anchor) if anchor else -1
            yield name_of(path).replace("_cn.md", ".md"), number


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Each page links to its twin, and otherwise to pages of its own language."""
    assert links(page)
    for path, anchor in links(page):
        assert path.exists(), path
        assert not anchor or anchor in [one for _, one in headings(path)], f"{name_of(path)}#{anchor}"
    others = [path for path, _ in links(page) if path.name.endswith(".md") and ("_cn" in path.name) != ("_cn" in page.name)]
    assert others == [twin(page)]


def twin(page: Path) -> Path:
    """Return the same page in the other language."""
    return page.with_name("README.md" if page.name == "README_cn.md" else "README_cn.md")


@functools.cache
def sources() -> set[str]:
    """Return the paths of the repository's Python files."""
    return {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_exist(page: Path) -> None:
    """Python files and folders of the repository that a page names."""
    for name in words(prose(page)):
        if re.fullmatch(r"[\w/]+\.py", name):
            assert any(f"/{path}".endswith(f"/{name}") for path in sources()), name
        if re.fullmatch(r"(?:tools|tests|configs|paddle_merge)/[\w/.]*", name):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("language", ["README.md", "README_cn.md"])
@pytest.mark.parametrize(
    "package",
    ["backends", "checkpoints", "commands", "conversion", "plan", "recipe", "run", "run/output", "search", "training"],
)
def test_every_module_is_on_a_page(package: str, language: str) -> None:
    """On its package's, or on the one above it."""
    folder = ROOT / "paddle_merge" / package
    page = folder / language if (folder / language).exists() else ROOT / "paddle_merge" / language
    modules = {path.name for path in folder.glob("*.py") if path.stem != "__init__"}
    assert modules - {Path(word).name for word in words(prose(page))} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command is understood down to its last word; files of this repository that it names are there."""
    for command in commands(page):
        for word in command:
            assert not re.match(r"(?:configs|tools)/", word) or (ROOT / word).exists(), word
        if "paddle_merge" in command:  # also behind paddle.distributed.launch
            given = parsed(main, command[command.index("paddle_merge") + 1 :], monkeypatch)
            check_fields(given)
        elif command[0] == "python" and command[1].startswith("tools/"):
            import_paddle()  # without its warnings
            tool = import_module(command[1].removesuffix(".py").replace("/", "."))
            check_tool(tool, command, monkeypatch)
        elif command[:4] == ["python", "-m", "pip", "install"]:
            extras = re.search(r"\[([\w,]+)\]", command[-1])
            for extra in extras[1].split(",") if extras else ():
                assert f'"{extra}": ' in (ROOT / "setup.py").read_text()
        else:
            assert command[0] in ("ruff", "mypy", "lint-imports") or command == ["python", "-m", "pytest"], command


@pytest.mark.parametrize("page", english(), ids=name_of)
def test_yaml_shown_is_a_recipe(page: Path) -> None:
    """Or says how models are evaluated."""
    for language, content in blocks(page):
        assert language in ("bash", "python", "text", "yaml")
        nodes = tuple(documents(content, name_of(page))) if language == "yaml" else ()
        file = File(name_of(page), content, nodes)
        if has_section(nodes, "sweep"):
            assert sweep_spec(file)
        elif has_section(nodes, "search"):
            assert search_spec(file)
        elif has_section(nodes, "evaluate"):
            evaluation, objectives, data, _ = evaluation_spec(file)
            assert evaluation.kind in KINDS
            assert objectives
            assert data.report
        elif language == "yaml":
            assert Request.of(MergeConfig(recipe_yaml=content)).sources


@pytest.mark.parametrize("page", english(), ids=name_of)
def test_python_shown_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On small models that have the names in the example."""
    monkeypatch.chdir(tmp_path)
    for language, content in blocks(page):
        if language == "python":
            fill(tmp_path, "math", "code", "base")
            exec(compile(content, name_of(page), "exec"), state_dicts(content))
            if "output_path" in content:
                assert (tmp_path / "merged" / "model.safetensors").exists()


def state_dicts(content: str) -> dict[str, Any]:
    """Return the names that an example uses besides its own: of models in memory, each a small layer; or a Trainer."""
    if "trainer" in content:
        return {"trainer": Mock()}
    if "state_dict" not in content:
        return {}
    paddle = import_paddle()
    return {name: paddle.nn.Linear(3, 4) for name in ("math", "code", "base", "model")}


def test_readme_shows_what_the_merge_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The command at its top, on small models: the same lines, but for numbers."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "math", "code", "chat", "base")
    argv = commands(README)[0][3:]
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert not exit.value.code
    shown = next(content for language, content in blocks(README) if language == "text")

    def masked(text: str) -> list[str]:
        return [re.sub(r"[\d.,]+(?: ?(?:[kKMGT]i?B?|B))?\b", "#", line) for line in text.splitlines() if line.strip()]

    assert masked(capsys.readouterr().err) == masked(shown)


def test_ci_finds_the_command_that_tests() -> None:
    lines = README.read_text().splitlines()
    assert 'python -m pip install -e ".[test]" && python -m pytest' in lines


@pytest.mark.parametrize("folder", ["configs", "paddle_merge/commands"])
@pytest.mark.parametrize("language", ["README.md", "README_cn.md"])
def test_every_flag_is_on_a_page(folder: str, language: str) -> None:
    text = (ROOT / folder / language).read_text()
    if folder == "configs":
        assert [name for name in FIELDS if f"`{name}`" not in text] == []
    else:
        described = [command for command in LINES if command not in ("merge", "extract-lora", "evolve", "sweep", "demo")]
        items = {name: item for command in described for name, item in LINES[command].fields.items() if name not in FIELDS}
        every = {name for name, item in items.items() if not item.metadata["group"].startswith("With")}  # of PEFT's ways
        every |= {"merge_prefix", "layout", "n_process"}  # which have meanings of their own there
        assert [name for name in sorted(every) if f"--{name}" not in text and f"`{name}`" not in text] == []
        assert [name for name in ("rank", "energy", "format", "only_linear") if f"--{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_the_text_exist(page: Path) -> None:
    known = {flag for line in LINES.values() for flag in (*line.fields, *line.aliases)}
    known |= {"help", "verbose", "quiet", "version", "mergekit"}
    said = [word for word in words(prose(page)) if not word.startswith("python tools/")]
    used = {flag for word in said for flag in re.findall(r"--([\w-]+)", word)}
    assert [flag for flag in used if flag.removeprefix("no_") not in known] == []


@pytest.mark.parametrize("page", [README, README_CN], ids=name_of)
def test_readme_says_when_to_use_each_method(page: Path) -> None:
    assert [row[0] for row in tables(page)[0][1:]] == [f"`{name}`" for name in order(METHODS)]


def order(methods: Any) -> list[str]:
    """Return the methods in the order of the tables: the simple ones first."""
    return sorted(methods, key=["linear", "slerp", "ties", "dare_linear", "dare_ties", "della_linear", "della"].index)


@pytest.mark.parametrize("language", ["README.md", "README_cn.md"])
def test_the_table_of_methods_is_the_registry(language: str) -> None:
    """It is what tools/method_table.py makes: a row for every method, with all its parameters."""
    text = (ROOT / "paddle_merge" / "methods" / language).read_text()
    assert method_table.written(language, text) == text
    rows = [words(line) for line in method_table.table(language).splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == names()
    for name, *row in rows:
        method = find(name)
        assert method is not None
        assert {parameter.name for parameter in method.parameters} <= set(row), name
    pairs = tables(ROOT / "paddle_merge" / "methods" / language)[0][1:]
    said = {words(row[0])[0]: (None if row[1] in ("none", "无") else row[1], row[2]) for row in pairs}
    assert said == METHODS


def test_there_is_a_config_for_each_method() -> None:
    assert {path.stem for path in CONFIGS} == set(METHODS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, in a folder that has checkpoints where it says (the demo's)."""
    fields = yaml.safe_load(path.read_text())
    assert fields["merge_method"] == path.stem
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for source in [*fields["model_path_list"], *([fields["base_model_path"]] if "base_model_path" in fields else [])]:
        write(tmp_path / source, {"w": generator.standard_normal((20, 30)), "b": generator.standard_normal(5)})
    config = MergeConfig.from_mapping(MergeConfig.from_file(str(path)))
    output = merge(config)
    assert (tmp_path / output / "model.safetensors").exists()


SEARCHES = sorted((ROOT / "configs" / "search").glob("*.yaml"))


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_search_files_are_right(path: Path) -> None:
    """Each for the command that its first lines name."""
    file = read_file(str(path))
    command = re.search(r"python -m paddle_merge (evolve|sweep|evaluate)", file.text)
    assert command
    read = {"evolve": search_spec, "sweep": sweep_spec, "evaluate": evaluation_spec}[command[1]]
    assert read(file)  # type: ignore[operator]


@pytest.mark.exhaustive
def test_searches_over_the_demo_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has networks where they say; with fewer candidates."""
    import_paddle()
    from paddle_merge.commands.demo import network

    monkeypatch.chdir(tmp_path)
    texts = {path.stem: path.read_text().replace("evaluations: 300", "evaluations: 10") for path in SEARCHES}
    for number, path in enumerate(dict.fromkeys(re.findall(r"demo/[\w-]+", "".join(texts.values())))):
        network.save(network.new(number), path)
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text.replace("0:1.2:0.1", "0:1:0.5").replace("  pick:", "  # pick:"))
    searches = "evolve evolve.yaml --output_path best", "sweep sweep.yaml --output_path aligned"
    for command in (*searches, "evaluate demo/base best aligned --with evaluate.yaml"):
        with pytest.raises(SystemExit) as exit:
            main(command.split())
        assert not exit.value.code


def test_examples_of_the_help_page_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "base"):
        write(tmp_path / name, {"w": np.random.default_rng(ord(name[0])).standard_normal((8, 9))})
    assert EXAMPLES.keys() == METHODS.keys()
    for method, (_, flags) in EXAMPLES.items():
        with pytest.raises(SystemExit) as exit:
            main(["--merge_method", method, *flags.split(), "--output_path", f"out-{method}"])
        assert not exit.value.code
        assert (tmp_path / f"out-{method}" / "model.safetensors").exists()


def test_no_heavy_imports() -> None:
    """Importing the package, and the help page, cost no Paddle and no Numba."""
    code = "import sys, paddle_merge; paddle_merge.MergeConfig; print([m for m in ('numba', 'paddle') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
