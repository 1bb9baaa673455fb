"""Test chat templates: the texts that ours make of conversations, against texts written by hand from each format's
description; which template an output gets; and in which file it is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import pytest
import yaml

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.commands.main import main
from paddle_merge.commands.merge import FIELDS
from paddle_merge.commands.verify.verify import verify
from paddle_merge.plan import chat
from paddle_merge.recipe import chat_template
from paddle_merge.recipe.yaml_read import parse
from tests.support.checkpoints import write

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Two\nlines"},
]
ANSWER = {"role": "assistant", "content": "Yes."}
# Meta's prompt format page, OpenAI's chat markup, LG's and Mistral's model cards, Stanford's README.
EXPECTED = {
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nTwo\nlines<|im_end|>\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\nYes.<|im_end|>\n",
    ),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nTwo\nlines<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>",
    ),
    "exaone": (
        "[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n[|user|]Two\nlines\n",
        "[|system|]Be brief.[|endofturn|]\n",
        "[|assistant|]",
        "[|assistant|]Yes.[|endofturn|]\n",
    ),
    "mistral": (
        " [INST] Hi [/INST] Hello!</s> [INST] Two\nlines [/INST]",
        " [INST] Be brief.\n\nHi [/INST] Hello!</s> [INST] Two\nlines [/INST]",
        "",
        " Yes.</s>",
    ),
    "alpaca": (
        "\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n### Instruction:\nTwo\nlines",
        "Be brief.",
        "\n\n### Response:\n",
        "\n\n### Response:\nYes.</s>",
    ),
}
# What comes first without a system message, beside the token that begins a text.
FIRST = {
    "exaone": "[|system|][|endofturn|]\n",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
}
BEGINS = ("llama3", "mistral", "alpaca")  # with bos_token


def render(template: str, messages: list[dict[str, str]], prompt: bool, trailing: bool = False, **tokens: str) -> str:
    """As transformers does it; with `trailing`, as PaddleNLP."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=trailing
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    tokens = tokens or {"bos_token": "<s>", "eos_token": "</s>"}
    return environment.from_string(template).render(messages=messages, add_generation_prompt=prompt, **tokens)


def ours(name: str) -> str:
    template, worries = chat.choose(name, [], str(Path(__file__).parent))
    assert template is not None
    assert len(worries) == 1  # there is no tokenizer here
    return template.text


def test_there_are_texts_for_each_template_and_help_names_it() -> None:
    assert all(name in FIELDS["chat_template"].metadata["help"] for name in [*EXPECTED, chat_template.AUTO])
    assert chat_template.names() == sorted(EXPECTED) == ["alpaca", "chatml", "exaone", "llama3", "mistral"]


@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_conversations_by_hand(name: str, trailing: bool) -> None:
    template, (turns, system, prompt, answer) = ours(name), EXPECTED[name]
    begin = "<s>" if name in BEGINS else ""
    with_system = system if name == "mistral" else system + turns
    bare = begin + FIRST.get(name, "") + turns
    assert render(template, TURNS, False, trailing) == bare
    assert render(template, TURNS, True, trailing) == bare + prompt
    assert render(template, [SYSTEM, *TURNS], True, trailing) == begin + with_system + prompt
    assert render(template, [SYSTEM, *TURNS, ANSWER], False, trailing) == begin + with_system + answer
    # A tokenizer without such tokens gives none.
    assert render(template, TURNS, True, trailing, other="") == (bare + prompt).replace("<s>", "").replace("</s>", "")


def test_alpacas_input_by_hand() -> None:
    messages = [{"role": "user", "content": " Sum up. "}, {"role": "user_context", "content": "A text."}]
    assert render(ours("alpaca"), messages, True) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        " response that appropriately completes the request."
        "\n\n### Instruction:\nSum up.\n\n### Input:\nA text.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("mistral", [TURNS[1]]),
        ("mistral", [TURNS[0], TURNS[0]]),
        ("mistral", [TURNS[0], SYSTEM]),
        ("mistral", [SYSTEM, SYSTEM]),
        ("alpaca", [TURNS[0], SYSTEM]),
        ("alpaca", [{"role": "tool", "content": "4"}]),
    ],
)
def test_conversations_that_a_format_does_not_know(name: str, messages: list[dict[str, str]]) -> None:
    with pytest.raises(jinja2.TemplateError, match=name):
        render(ours(name), messages, False)


# --- which template ------------------------------------------------------------------------------------------------------


def model(folder: Path, seed: int, tokenizer: dict[str, Any] | None, **files: str) -> str:
    write(folder, {"w": np.random.default_rng(seed).standard_normal((4, 3))}, config={"hidden_size": 3})
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9, **tokenizer}))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a has none; b and d have "two", with other space around it; c has "three", as one of several; e one in Jinja."""
    model(tmp_path / "a", 0, {})
    model(tmp_path / "b", 1, {"chat_template": "{{ 'two' }}"})
    named = [{"name": "tool_use", "template": "{{ 'tool' }}"}, {"name": "default", "template": "{{ 'three' }}"}]
    model(tmp_path / "c", 2, {"chat_template": named})
    model(tmp_path / "d", 3, {}, chat_template__json=json.dumps({"chat_template": "{{ 'two' }}\n"}))
    model(tmp_path / "e", 4, {"chat_template": "{{ 'old' }}"}, chat_template__jinja="{{ 'three' }}\n\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(*models: str, out: str = "out", **fields: Any) -> Path:
    merge(MergeConfig(model_path_list=list(models), output_path=out, **fields), progress=False)
    return Path(out)


def of(folder: Path) -> str:
    """The template of an output, the same in both places."""
    text = (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == text
    return text


@pytest.mark.parametrize(
    ("models", "expected", "said"),
    [
        ("abcd", "{{ 'two' }}", "that of b, d (2 of 4 inputs)"),
        ("acb", "{{ 'three' }}", "that of c (1 of 3 inputs)"),
        ("abec", "{{ 'three' }}\n\n", "that of e, c (2 of 4 inputs)"),
        ("db", "{{ 'two' }}\n", "that of d, b (2 of 2 inputs)"),
    ],
)
def test_auto_takes_what_most_inputs_have(
    here: Path, capsys: pytest.CaptureFixture[str], models: str, expected: str, said: str
) -> None:
    merged(*models, chat_template="auto", dry_run=True)
    assert f"chat     {said}\n" in capsys.readouterr().out
    assert of(merged(*models, chat_template="auto")) == expected


def test_auto_counts_the_base(here: Path) -> None:
    assert of(merged("a", "c", "b", base_model_path="d", chat_template="auto")) == "{{ 'two' }}"


def test_auto_where_there_is_none(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    model(here / "f", 5, {"chat_template": "{{ 'f' "})
    out = merged("a", "f", chat_template="auto")
    assert "f/tokenizer_config.json: its chat template is not Jinja: unexpected end of template" in caplog.text
    assert "no input has a chat template, so nothing is changed" in caplog.text
    assert (out / "tokenizer_config.json").read_bytes() == Path("a/tokenizer_config.json").read_bytes()
    assert not (out / "chat_template.jinja").exists()


def test_auto_refuses_what_it_cannot_read(here: Path) -> None:
    (here / "b" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"b/chat_template.jinja: can't be read \(it is not UTF-8 text\)"):
        merged("a", "b", chat_template="auto")


def test_without_it_files_are_copied(here: Path) -> None:
    out = merged("e", "a")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (here / "e" / name).read_bytes()


# --- where it is written -------------------------------------------------------------------------------------------------


def test_no_other_template_stays(here: Path) -> None:
    """PaddleNLP's chat_template.json would win over tokenizer_config.json, an older processor's own over both."""
    paddlenlp = json.dumps({"conversation": ["{{user}}", "{{bot}}"], "system": None, "query": "{{query}}"})
    processor = json.dumps({"chat_template": "{{ 'old' }}", "image_seq_length": 7})
    old = {"chat_template": "{{ 'old' }}", "bos_token": "<s>", "note": "\u4e2d"}
    model(here / "f", 5, old, chat_template__json=paddlenlp, processor_config__json=processor)
    out = merged("f", "a", chat_template="chatml")
    assert of(out) == ours("chatml")
    assert not (out / "chat_template.json").exists()
    kept = json.loads((out / "tokenizer_config.json").read_text())
    assert (kept["model_max_length"], kept["bos_token"], kept["note"]) == (9, "<s>", "\u4e2d")
    kept = json.loads((out / "processor_config.json").read_text())
    assert kept == {"chat_template": ours("chatml"), "image_seq_length": 7}
    assert verify(str(out), None, 1, False, progress=False).off == []


def test_without_a_tokenizer_it_is_written_and_said(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    model(here / "f", 5, None)
    out = merged("f", "a", chat_template="{{ messages }}\n")
    assert "f has no tokenizer_config.json, so the chat template is only written to chat_template.jinja" in caplog.text
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (out / "tokenizer_config.json").exists()


def test_a_tokenizer_config_that_is_none(here: Path) -> None:
    (here / "a" / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json, beside the weights, can't take the chat template"):
        merged("a", "b", chat_template="chatml")
    assert not Path("out").exists()


def test_files_that_would_contradict(here: Path) -> None:
    wanted = ["chat_template.jinja", "./chat_template.json", "tokenizer_config.json"]
    with pytest.raises(CheckpointError) as caught:
        merged("e", "a", chat_template="chatml", copy_file_list=wanted)
    assert caught.value.problems == [
        f"--copy_file_list chat_template.{kind}: would contradict the chat template that is asked for"
        for kind in ("jinja", "json")
    ]


# --- asked for, and refused ----------------------------------------------------------------------------------------------

RECIPE = "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n"


def test_a_recipe_names_it_and_a_flag_wins(here: Path) -> None:
    Path("r.yaml").write_text(f"{RECIPE}chat_template: llama3\n")
    for out, flags in (("o1", []), ("o2", ["--chat_template", "{{ 'mine' }}"])):
        with pytest.raises(SystemExit) as caught:
            main(["r.yaml", "--output_path", out, "-q", *flags])
        assert caught.value.code == 0
    assert of(Path("o1")) == ours("llama3")
    assert of(Path("o2")) == "{{ 'mine' }}"
    for out in ("o1", "o2"):
        again = MergeConfig.from_mapping(MergeConfig.from_file(f"{out}/merge_config.json"))
        again.output_path = f"{out}-again"
        merge(again, progress=False)
        assert of(Path(f"{out}-again")) == of(Path(out))


def test_print_recipe_shows_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{% for m in messages %}\n  {{ m['content'] }}: 'x'\n{% endfor %}\n"
    with pytest.raises(SystemExit):
        main(["--model_path_list", "a", "b", "--chat_template", template, "--print_recipe"])
    said = capsys.readouterr().out
    assert yaml.safe_load(said)["chat_template"] == template
    assert parse(said, "r").recipe.chat_template == template


def test_in_a_merge_that_another_takes_it_has_no_effect() -> None:
    told = parse(f"name: x\n{RECIPE}chat_template: alpaca\n---\n{RECIPE.replace('model: b', 'model: x')}", "r.yaml")
    assert told.recipe.chat_template is None
    assert told.notes == ("r.yaml:5:16: 'chat_template' has no effect in a merge whose output another merge uses",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "chatlm",
            "r.yaml:4:16: chat_template 'chatlm' is neither a Jinja template, which contains {{ ... }}, nor one of auto",
        ),
        ("chatlm", "nor one of auto, alpaca, chatml, exaone, llama3, mistral; did you mean 'chatml'?"),
        ("'{% if x %}'", "r.yaml:4:16: chat_template is not Jinja: Unexpected end of template"),
        ("|\n  {{ x }}\n  {{ x | shout }}", "is not Jinja: No filter named 'shout' (in line 2 of the template)"),
        ("'{% break %}'", "is not Jinja: 'break' outside loop"),
        ("'{{ " + "[" * 3000 + "'", "chat_template is nested too deeply"),
        ("''", "r.yaml:4:16: must be text"),
        ("[a]", "r.yaml:4:16: must be text"),
    ],
)
def test_mistakes_by_line_and_column(value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{RECIPE}chat_template: {value}\n", "r.yaml")
    (problem,) = caught.value.problems
    assert words in problem


def test_mistakes_in_flags(here: Path) -> None:
    for models, recipe in ((["a", "b"], None), (None, RECIPE)):
        config = MergeConfig(model_path_list=models, recipe_yaml=recipe, chat_template="{{ x", n_process=0, output_path="o")
        with pytest.raises(ConfigError) as caught:
            merge(config, progress=False)
        assert "--n_process 0 must be at least 1" in caught.value.problems
        assert any("--chat_template is not Jinja: unexpected end of template" in one for one in caught.value.problems)


def test_what_transformers_adds_to_jinja_is_no_mistake() -> None:
    marked = "{% generation %}{{ m | tojson }}{% endgeneration %}"
    assert chat_template.mistake("{% for m in messages %}" + marked + "{% if 1 %}{% break %}{% endif %}{% endfor %}") is None


def test_a_strangers_template_is_not_computed(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It would take terabytes."""
    text = "{{ 'a' * 10 ** 12 }}"
    model(here / "f", 5, {"chat_template": text})
    with caplog.at_level(logging.INFO):
        assert of(merged("f", "a", chat_template="auto")) == text
    assert "chat     that of f (1 of 2 inputs)" in caplog.text
