"""Test what is read of an input's origin: names on a hub, only where something proves them; licence; how it was trained."""

from __future__ import annotations

import contextlib
import json
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.checkpoints.front_matter import blocks, read_keys, span
from paddle_merge.checkpoints.origins import License, Origin, read_origin


def origin(folder: Path, metadata: str | bytes = "", path: str | None = None) -> Origin:
    """Return what is read of a model with this metadata in its card."""
    folder.mkdir(parents=True, exist_ok=True)
    content = metadata.encode() if isinstance(metadata, str) else metadata
    (folder / "README.md").write_bytes(b"---\n" + content + b"\n---\n# Words\nlicense: gpl\n")
    return read_origin(path or str(folder), str(folder))


# --- names -------------------------------------------------------------------------------------------------------------


def test_what_was_given_by_name_is_that_name(tmp_path: Path) -> None:
    card = "base_model: Qwen/Qwen2.5-7B"
    found = origin(tmp_path / "models--org--name/snapshots/abc", card, path="org/name@v1.0")
    assert (found.name, found.revision) == ("org/name", "v1.0")
    assert found.published == ("org/name",), "the nearest one: not what it was made from"
    found = origin(tmp_path / "paddlenlp/org/name", card, path="org/name")
    assert (found.name, found.published) == ("org/name", ("Qwen/Qwen2.5-7B",)), "PaddleNLP's may be another model"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--Qwen--Qwen2.5-7B/snapshots/abc123", "Qwen/Qwen2.5-7B"),
        ("models--gpt2/snapshots/abc123", "gpt2"),
        ("models--Qwen--Qwen2.5-7B/blobs/abc123", ""),
        ("Qwen/Qwen2.5-7B", ""),
    ],
)
def test_a_snapshot_in_the_cache_is_a_proof(tmp_path: Path, folder: str, name: str) -> None:
    found = origin(tmp_path / folder)
    assert (found.name, found.revision) == (name, "abc123" if name else "")


def test_the_cards_declaration_counts_and_a_loaders_path_does_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, key in (("config.json", "_name_or_path"), ("adapter_config.json", "base_model_name_or_path")):
        (tmp_path / "a" / name).write_text(json.dumps({key: "org/from-a-loader"}))
    assert origin(tmp_path / "a").published == ()
    assert origin(tmp_path / "a", "base_model: [org/one, org/two, org/one]").published == ("org/one", "org/two")


@pytest.mark.parametrize(
    "declared",
    [
        *("models/math", "checkpoints/7b", "org/checkpoint-500", "./org/name", "../org/name", "/data/org/name", "~/name"),
        *("name", "org/name/sub", "org/na--me", "org/..", "C:\\models\\x", "org/name name", "https://x.org/name", "", "{}"),
    ],
)
def test_what_may_be_a_path_is_no_name(tmp_path: Path, declared: str) -> None:
    assert origin(tmp_path / "a", f"base_model: '{declared}'").published == ()


def test_the_address_of_a_page_is_a_name(tmp_path: Path) -> None:
    found = origin(
        tmp_path / "a", "base_model: [https://huggingface.co/org/name, https://huggingface.co/org/name/tree/main]"
    )
    assert found.published == ("org/name",)


@pytest.mark.parametrize("where", ["a/org/name", "org/name"])
def test_what_exists_as_a_path_is_no_name(tmp_path: Path, where: str) -> None:
    (tmp_path / where).mkdir(parents=True)
    assert origin(tmp_path / "a", "base_model: org/name").published == ()


def test_what_exists_in_the_current_folder_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert origin(tmp_path / "deep/a", "base_model: org/name").published == ()


@pytest.mark.parametrize(
    "writer", ["tags: [merge, mergekit]", "library_name: peft", "tags: [generated_from_trainer]", "tags: llama-factory"]
)
def test_cards_of_programs_that_take_paths_for_names_prove_nothing(tmp_path: Path, writer: str) -> None:
    assert origin(tmp_path / "a", f"base_model: org/name\n{writer}").published == ()


# --- licence, languages, task ------------------------------------------------------------------------------------------


def test_what_a_card_states(tmp_path: Path) -> None:
    found = origin(
        tmp_path / "a",
        "license: Apache-2.0\nlanguage:\n- no\n- zh-CN\n- ZH_hant\n- Not a language\npipeline_tag: text-generation",
    )
    assert found.license == License(("apache-2.0",))
    assert found.languages == ("no", "zh"), "no is Norwegian; hubs take no regions"
    assert (found.task, found.trouble) == ("text-generation", "")


@pytest.mark.parametrize(
    ("metadata", "license", "written"),
    [
        ("license: mit", License(("mit",)), {"license": "mit"}),
        ("license: [mit, apache-2.0]", License(("mit", "apache-2.0")), {"license": ["mit", "apache-2.0"]}),
        (
            "license: other\nlicense_name: qwen\nlicense_link: https://x.org/LICENSE",
            License(("other",), "qwen", "https://x.org/LICENSE"),
            {"license": "other", "license_name": "qwen", "license_link": "https://x.org/LICENSE"},
        ),
        # The output doesn't have that file.
        (
            "license: other\nlicense_name: qwen\nlicense_link: LICENSE",
            License(("other",), "qwen"),
            {"license": "other", "license_name": "qwen"},
        ),
        ("license: mit\nlicense_name: x", License(("mit",)), {"license": "mit"}),
        # Hugging Face's hub refuses ids that it doesn't know.
        (
            "license: Apache License 2.0",
            License(("apache license 2.0",)),
            {"license": "other", "license_name": "apache-license-2.0"},
        ),
        ("license: [mit, qwen]", License(("mit", "qwen")), {"license": "other", "license_name": "mit-and-qwen"}),
        ("license: unknown", None, None),
        ("license:", None, None),
        ("license: {a: b}", None, None),
    ],
)
def test_licences(tmp_path: Path, metadata: str, license: License | None, written: dict[str, object] | None) -> None:
    found = origin(tmp_path / "a", metadata).license
    assert found == license
    assert found is None or found.metadata == written


# --- cards of any kind -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "trouble"),
    [
        ("license: [mit", "its metadata is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("license: !!python/object/apply:os.system ['true']", ""),
        ("license: &a [*a]", "its metadata is not valid YAML: found unconstructable recursive node"),
        ("license: *a", "its metadata is not valid YAML: found undefined alias 'a'"),
        (f"license: {'[' * 5000}", "its metadata is nested too deeply"),
        (f"license: {'x' * (1 << 16)}", "its metadata is longer than 64 KiB"),
        (
            b"license: m\x00it",
            "its metadata is not valid YAML: unacceptable character #x0000: special characters are not allowed",
        ),
        (b"tags: [\xff\xfe]\nlicense: mit", ""),
        ("- a\n- b", ""),
        ("? [a]\n: b", ""),
    ],
)
def test_damaged_cards_are_told_and_never_raise(tmp_path: Path, metadata: str | bytes, trouble: str) -> None:
    found = origin(tmp_path / "a", metadata)
    assert found.trouble.partition("README.md: ")[2] == trouble
    assert (found.published, found.languages) == ((), ())


def test_cards_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    assert read_origin(str(tmp_path), str(tmp_path)).trouble.startswith(f"{tmp_path}/README.md: can't be read (")
    assert read_origin("nowhere", str(tmp_path / "nowhere")).trouble == ""


def test_megabytes_of_results_take_no_time(tmp_path: Path) -> None:
    """As the cards of embedding models have; PyYAML would take minutes."""
    results = "\n".join(f"  - metrics: [{{type: map_at_{number}, value: 0.1}}]" for number in range(100_000))
    started = time.perf_counter()
    found = origin(tmp_path / "a", f"license: mit\nmodel-index:\n- name: x\n  results:\n{results}\nlanguage: en")
    assert (found.license, found.languages) == (License(("mit",)), ("en",))
    assert time.perf_counter() - started < 5


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"# \n\t,?%@`\u00e9\x00"), max_size=60))
def test_any_text_is_a_card(text: str) -> None:
    card = f"---\nlicense: {text}\n---\n"
    where = span(card)
    assert where is not None
    assert "".join(lines for _, lines in blocks(card[slice(*where)])) == card[slice(*where)]
    with contextlib.suppress(ValueError):
        read_keys(card, ("license",))


# --- verifiable rewards --------------------------------------------------------------------------------------------------


class GRPOConfig:
    """As TRL's, whose pickle names it."""


class SFTConfig:
    """As TRL's."""


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ("tags: [trl, grpo]", "its README.md has the tag grpo"),
        ("tags: [GRPO, unsloth]", "its README.md has the tag GRPO"),
        ("tags: reinforce++", "its README.md has the tag reinforce++"),
        (
            "datasets: [allenai/RLVR-GSM-MATH-IF-Mixed-Constraints]",
            "its README.md names the dataset allenai/RLVR-GSM-MATH-IF-Mixed-Constraints",
        ),
        # Ordinary fine-tunes, and rewards that a model gives.
        ("tags: [trl, sft]", ""),
        ("tags: [trl, dpo, online-dpo, kto, ppo, reward-trainer]\nbase_model: org/x-grpo", ""),
        ("datasets: [org/curlvrx]", ""),
    ],
)
def test_cards_tell_of_verifiable_rewards(tmp_path: Path, metadata: str, why: str) -> None:
    assert origin(tmp_path / "a", metadata).rewards == why


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_training_arguments_tell_of_verifiable_rewards_and_are_never_loaded(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "training_args.bin"
    for content, why in (
        (GRPOConfig(), "its training_args.bin is that of grpo"),
        (SFTConfig(), ""),
        ({"learning_rate": 1e-6, "rl_algorithm": "grpo"}, "its training_args.bin is that of grpo"),
        ({"rl_algorithm": "reinforce_plus_plus"}, "its training_args.bin is that of reinforce-plus-plus"),
        ({"rl_algorithm": "ppo", "grpo_like": "grpo"}, ""),
    ):
        file.write_bytes(pickle.dumps(content, protocol))
        assert read_origin(str(tmp_path), str(tmp_path)).rewards == why, content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"rlhf_type": "grpo"}', "its args.json says rlhf_type grpo"),
        ('{"rlhf_type": "dpo"}', ""),
        ('{"rlhf_type": null}', ""),
        ("[1]", ""),
        ("{broken", ""),
    ],
)
def test_arguments_of_ms_swift(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "args.json").write_text(content)
    assert read_origin(str(tmp_path), str(tmp_path)).rewards == why
