"""Write the table of all methods, made from the registry, into the pages about methods.

python tools/method_table.py

It replaces what is between "<!-- methods: begin -->" and "<!-- methods: end -->" in paddle_merge/methods/README.md and
README_cn.md. With --check it writes nothing, and its exit status is 1 if a page differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paddle_merge.methods.registry import find, names  # noqa: E402 - of this checkout
from paddle_merge.methods.shared.method import REQUIRED, Method  # noqa: E402

FOLDER = ROOT / "paddle_merge" / "methods"
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
WORDS: dict[str, dict[str, str]] = {
    "README.md": {
        "head": "| method | use it when | base model | models | parameters (default) | source |",
        **{"required": "yes", "optional": "optional", "model": "no", "first": "one of the two"},
        **{"must": "must be given", "each": "each", "follows": "by the other parameters", "none": "none"},
        **{"comma": ", ", "open": " (", "close": ")"},
    },
    "README_cn.md": {
        "head": "| 方法 | 适用场合 | 基础模型 | 模型数 | 参数（默认值） | 出处 |",
        **{"required": "需要", "optional": "可选", "model": "不用", "first": "两者之一"},
        **{"must": "必须给出", "each": "each", "follows": "由其他参数决定", "none": "无"},
        **{"comma": "，", "open": "（", "close": "）"},
    },
}


def table(page: str) -> str:
    """Return the table of methods as lines of Markdown. page: README.md, or README_cn.md for Chinese."""
    words = WORDS[page]
    lines = [words["head"], "| --- | --- | --- | --- | --- | --- |"]
    for name in names():
        method = find(name)
        assert method is not None
        about = method.about_cn if page == "README_cn.md" else method.about
        parameters = words["comma"].join(_parameter(one, words) for one in method.parameters) or words["none"]
        cells = [f"`{name}`", about, words[method.base], _count(method), parameters, method.source]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _count(method: Method) -> str:
    if method.most is None:
        return f"{method.least}+"
    return f"{method.least}" if method.most == method.least else f"{method.least}-{method.most}"


def _parameter(one: Any, words: dict[str, str]) -> str:
    said = [_default(one.default, words), *([words["each"]] if one.each else [])]
    return f"`{one.name}`{words['open']}{words['comma'].join(said)}{words['close']}"


def _default(value: Any, words: dict[str, str]) -> str:
    if value is REQUIRED or value is None:
        return words["must" if value is REQUIRED else "follows"]
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def written(page: str, text: str) -> str:
    """Return the page's text with its table replaced by the current one. Raises ValueError if the page has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table(page)}\n{END}{after}"


def main(check: bool = typer.Option(False, "--check", help="Write nothing; exit with 1 if a page differs.")) -> None:
    """Write the table of methods into paddle_merge/methods/README.md and README_cn.md."""
    differ = False
    for page in WORDS:
        path = FOLDER / page
        text = path.read_text(encoding="utf-8")
        if (due := written(page, text)) != text:
            differ = True
            print(f"{path} {'differs from the registry' if check else 'written'}")
            if not check:
                path.write_text(due, encoding="utf-8")
    raise typer.Exit(int(check and differ))


if __name__ == "__main__":
    typer.run(main)
