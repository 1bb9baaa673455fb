"""What the documents say is so: commands, flags, configs, tables; in both languages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_merge import MergeConfig, merge
from paddle_merge.commands.analyze.cli import FIELDS as ANALYZE_FIELDS
from paddle_merge.commands.diff.cli import FIELDS as DIFF_FIELDS
from paddle_merge.commands.extract_lora.cli import FIELDS as EXTRACT_FIELDS
from paddle_merge.commands.inspect.cli import FIELDS as INSPECT_FIELDS
from paddle_merge.commands.main import EXAMPLES, FIELDS
from paddle_merge.commands.verify.cli import FIELDS as VERIFY_FIELDS
from paddle_merge.methods.paddlenlp import METHODS

from .checkpoints import write

ROOT = Path(__file__).parent.parent
README, README_CN = ROOT / "README.md", ROOT / "README_cn.md"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def commands(page: Path) -> list[str]:
    """The code blocks of a page."""
    return re.findall(r"```(?:bash|python)\n(.*?)```", page.read_text(), flags=re.S)


def test_both_languages_show_the_same_commands() -> None:
    assert commands(README) == commands(README_CN)


@pytest.mark.parametrize("page", [README, README_CN])
def test_every_flag_and_method_is_in_the_readme(page: Path) -> None:
    text = page.read_text()
    assert [name for name in FIELDS if f"`{name}`" not in text] == []
    assert [name for name in METHODS if f"`{name}`" not in text] == []
    assert [name for name in ("rank", "energy", "format", "only_linear") if f"--{name}" not in text] == []
    assert [name for name in {**DIFF_FIELDS, **INSPECT_FIELDS, **ANALYZE_FIELDS} if f"--{name}" not in text] == []


@pytest.mark.parametrize("page", [README, README_CN])
def test_flags_used_in_the_readme_exist(page: Path) -> None:
    used = {flag for block in commands(page) for flag in re.findall(r"--([a-z_]+)", block) if "paddle_merge" in block}
    known = {*FIELDS, *EXTRACT_FIELDS, *DIFF_FIELDS, *ANALYZE_FIELDS, *VERIFY_FIELDS}
    unknown = {flag for flag in used if flag.removeprefix("no_") not in known}
    assert unknown <= {"folder", "help", "model", "peers", "nproc_per_node"}


@pytest.mark.parametrize("page", [README, README_CN])
def test_the_tree_is_the_tree(page: Path) -> None:
    """Every file named in the annotated tree exists, and every module of the package is named."""
    tree = next(
        block for block in re.findall(r"```text\n(.*?)```", page.read_text(), flags=re.S) if "paddle_merge/" in block
    )
    named = set(re.findall(r"[\w.]+\.(?:py|md)", tree))
    files = {path.name for path in (ROOT / "paddle_merge").rglob("*.py")}
    assert named - {path.name for path in ROOT.rglob("*.*") if ".git/" not in str(path)} == set()
    assert files - named == set()


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
    merge(config)
    assert (tmp_path / config.output / "model.safetensors").exists()


def test_examples_of_the_help_page_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle_merge.commands.main import main

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "base"):
        write(tmp_path / name, {"w": np.random.default_rng(ord(name[0])).standard_normal((8, 9))})
    assert EXAMPLES.keys() == METHODS.keys()
    for method, (_, flags) in EXAMPLES.items():
        with pytest.raises(SystemExit) as exit:
            main(["--merge_method", method, *flags.split(), "--output_path", f"out-{method}"])
        assert not exit.value.code
        assert (tmp_path / f"out-{method}" / "model.safetensors").exists()


def test_the_bench_runs(tmp_path: Path) -> None:
    bench = ROOT / "tools" / "bench.py"
    done = subprocess.run(
        [
            sys.executable,
            str(bench),
            "--model",
            "tiny",
            "--folder",
            str(tmp_path),
            "--repeats",
            "1",
            "--methods",
            "slerp,dare_ties",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| slerp", "| dare_ties"))]
    assert len(rows) == 2
    assert all(len(row.split("|")) == 8 for row in rows)


def test_no_heavy_imports() -> None:
    """Importing the package, and the help page, cost no Paddle and no Numba."""
    code = "import sys, paddle_merge; paddle_merge.MergeConfig; print([m for m in ('numba', 'paddle') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
