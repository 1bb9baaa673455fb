"""Merge, convert and fold tiny models of the families that PaddleFormers and PaddleNLP have, let the libraries open the
results, and write the table of what works into the pages about conversion.

python tools/family_table.py

The libraries write the models and open the results, each in its environment: PADDLE_MERGE_PADDLENLP_PYTHON and
PADDLE_MERGE_PADDLEFORMERS_PYTHON name their interpreters (.ci/run shows what to install there). The table replaces what is
between "<!-- families: begin -->" and "<!-- families: end -->" in paddle_merge/conversion/README.md and README_cn.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paddle_merge import MergeConfig, MergeError, merge  # noqa: E402 - of this checkout

SCRIPTS = ROOT / "tests" / "loaders" / "scripts"
FOLDER = ROOT / "paddle_merge" / "conversion"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
COLUMNS = ("merge", "convert", "fold")
WORDS = {
    "README.md": {"head": "| family | library | merge | convert | fold | loads |", "yes": "yes", "no": "no"},
    "README_cn.md": {"head": "| 模型族 | 库 | 合并 | 转换 | 折叠 | 可加载 |", "yes": "是", "no": "否"},
}
# Family -> its name on the page; in the libraries' scripts (tests/loaders/scripts/families_*.py) are the models.
FAMILIES = {
    "paddleformers": {
        "llama": "Llama",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "ernie4_5": "ERNIE 4.5",
        "ernie4_5_moe": "ERNIE 4.5 MoE",
        "gemma3_text": "Gemma 3",
        "paddleocr_vl": "PaddleOCR-VL",
        "phi3": "Phi-3",
        "gpt_oss": "GPT-OSS",
        "qwen2_moe": "Qwen2-MoE",
        "qwen3_moe": "Qwen3-MoE",
        "qwen3_next": "Qwen3-Next",
        "glm4_moe": "GLM-4-MoE",
        "deepseek_v3": "DeepSeek-V3",
        "qwen2_5_vl": "Qwen2.5-VL",
        "qwen3_vl": "Qwen3-VL",
        "qwen3_vl_moe": "Qwen3-VL-MoE",
    },
    "paddlenlp": {
        "llama": "Llama",
        "qwen2": "Qwen2",
        "gemma": "Gemma",
        "mistral": "Mistral",
        "mixtral": "Mixtral",
        "qwen2_moe": "Qwen2-MoE",
        "deepseek_v2": "DeepSeek-V2",
        "deepseek_v3": "DeepSeek-V3",
    },
}
NAMES = {"paddleformers": "PaddleFormers", "paddlenlp": "PaddleNLP"}


@dataclass(frozen=True)
class Trial:
    """Describe one merge of the models that a library wrote for a family, or of results of earlier trials.

    column: of the table. sources: their folders. layout: of the output, in which the library opens it. asked: whether
    --output_layout asks for that. fold: whether the library's adapter is folded into the only source.
    """

    column: str
    sources: tuple[str, ...]
    layout: str
    asked: bool = False
    fold: bool = False

    def __str__(self) -> str:
        return f"{self.column} {'+'.join(self.sources)} {self.layout}{' asked' if self.asked else ''}"

    @property
    def expected(self) -> list[str]:
        """The files with the weights whose average the library must have afterwards."""
        letters = [letter for letter in "ab" if any(f"-{letter}" in source for source in self.sources)]
        return ["folded.safetensors"] if self.fold else [f"{letter}.safetensors" for letter in letters]


TRIALS = {
    "paddleformers": (
        Trial("merge", ("hf-a", "hf-b"), "hf"),
        Trial("merge", ("paddle-a", "paddle-b"), "paddleformers"),
        Trial("convert", ("hf-a", "hf-b"), "paddleformers", asked=True),
        Trial("convert", ("paddle-a", "paddle-b"), "hf", asked=True),
        Trial("convert", ("unified-a", "unified-b"), "hf", asked=True),
        Trial("convert", ("checkpoint-a", "checkpoint-b"), "hf", asked=True),
        Trial("convert", ("checkpoint-a", "checkpoint-b"), "paddleformers"),
        Trial("convert", ("hf-a", "paddle-b"), "hf", asked=True),
        Trial("convert", ("paddle-a", "unified-b"), "paddleformers"),
        Trial("fold", ("hf-a",), "hf", asked=True, fold=True),
        Trial("fold", ("paddle-a",), "paddleformers", fold=True),
    ),
    # PaddleNLP writes no other layout than its own, but opens Hugging Face's.
    "paddlenlp": (
        Trial("merge", ("paddle-a", "paddle-b"), "paddlenlp"),
        Trial("convert", ("paddle-a",), "hf", asked=True),
        Trial("convert", ("paddle-b",), "hf", asked=True),
        Trial("convert", ("convert paddle-a hf asked", "convert paddle-b hf asked"), "paddlenlp", asked=True),
        Trial("convert", ("paddle-a", "convert paddle-b hf asked"), "paddlenlp"),
        Trial("fold", ("paddle-a",), "paddlenlp", fold=True),
        Trial("fold", ("convert paddle-a hf asked",), "hf", fold=True),
    ),
}


Results = dict[str, dict[Trial, str]]


def tried(library: str, families: Sequence[str], folder: Path) -> Results:
    """Return for each family and trial "" if the library has the right weights, else what is wrong; a refusal begins with
    "refused".

    folder: an empty one to work in. Raises RuntimeError if a library's script fails, or if it can't tell two models apart.
    """
    adapt = [{"folder": str(folder / family), "family": family} for family in families]
    _work(library, folder / "making", {"adapt": adapt})
    results: Results = {family: {} for family in families}
    first = folder / families[0]
    wrong = {"family": families[0], "layout": library, "expected": [str(first / "b.safetensors")]}
    loads: list[dict[str, object]] = [{"name": "wrong", "folder": str(first / "paddle-a"), **wrong}]
    for family in families:
        for trial in TRIALS[library]:
            said = _merged(folder / family, trial)
            results[family][trial] = said
            if not said:
                expected = [str(folder / family / name) for name in trial.expected]
                out = str(folder / family / str(trial))
                same = {"family": family, "layout": trial.layout, "expected": expected}
                loads.append({"name": f"{family} {trial}", "folder": out, **same})
    answers = _work(library, folder / "loading", {"load": loads})
    if "weights differ" not in answers["wrong"]:
        raise RuntimeError(f"{NAMES[library]} finds a model equal to another: {answers['wrong']}")
    for family, its in results.items():
        results[family] = {trial: said or answers[f"{family} {trial}"] for trial, said in its.items()}
    return results


def _merged(folder: Path, trial: Trial) -> str:
    """Run a trial in a family's folder; return "", or why it was refused."""
    paths = [str(folder / source) for source in trial.sources]
    config = MergeConfig(output_path=str(folder / str(trial)), output_layout=trial.layout if trial.asked else None)
    config.out_dtype = "float32"  # the libraries store routers in bfloat16, and all else as it is
    if trial.fold:
        config.base_model_path, config.lora_model_path = paths[0], str(folder / "adapter")
    else:
        config.model_path_list = paths
        config.merge_method = "linear" if len(paths) > 1 else "passthrough"
    try:
        merge(config, progress=False)
    except MergeError as error:
        return f"refused: {error}"
    return ""


def _work(library: str, folder: Path, job: dict[str, list[dict[str, object]]]) -> dict[str, str]:
    """Let a library do a job (see tests/loaders/scripts/job.py) in a new folder; return its answers."""
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    command = [os.environ[f"PADDLE_MERGE_{library.upper()}_PYTHON"], str(SCRIPTS / f"families_{library}.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*command, str(folder / "job.json")], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    answers: dict[str, str] = json.loads((folder / "answers.json").read_text())
    return answers


def row(library: str, family: str, results: dict[Trial, str], page: str) -> str:
    """Return a family's line of the table. page: README.md, or README_cn.md for Chinese."""
    words = WORDS[page]
    made = {trial: said for trial, said in results.items() if not said.startswith("refused")}
    cells = [all(trial in made for trial in results if trial.column == column) for column in COLUMNS]
    cells.append(not any(made.values()))
    shown = [words["yes"] if cell else words["no"] for cell in cells]
    return f"| {' | '.join([FAMILIES[library][family], NAMES[library], *shown])} |"


def table(found: dict[str, Results], page: str) -> str:
    """Return the table as lines of Markdown. found: library -> results."""
    lines = [WORDS[page]["head"], "| --- | --- | --- | --- | --- | --- |"]
    for library, results in found.items():
        lines += [row(library, family, its, page) for family, its in results.items()]
    return "\n".join(lines)


def written(text: str, lines: str) -> str:
    """Return a page's text with the table replaced."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}"


def problems(results: Results) -> Iterable[str]:
    """Yield a line for each trial that isn't right."""
    for family, its in results.items():
        yield from (f"{family}: {trial}: {said}" for trial, said in its.items() if said)


def run() -> None:
    """Write the table into both pages, and print what isn't right."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(FAMILIES)) as pool:
        jobs = {library: pool.submit(tried, library, list(its), Path(folder, library)) for library, its in FAMILIES.items()}
        found = {library: job.result() for library, job in jobs.items()}
    for page in WORDS:
        path = FOLDER / page
        path.write_text(written(path.read_text(), table(found, page)))
    for library, results in found.items():
        for line in problems(results):
            print(f"{NAMES[library]}: {line}")


if __name__ == "__main__":
    typer.run(run)
