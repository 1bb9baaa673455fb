"""Test a search on a Ray cluster of two nodes. .ci/run installs Ray for it; elsewhere it is skipped."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from paddle_merge import ConfigError
from paddle_merge.search.asked import Asked
from paddle_merge.search.evolve import evolve
from paddle_merge.search.sweep import sweep
from tests.search.test_evolve import SEARCH, lines
from tests.support.searches import RECIPE, workshop

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")  # Ray leaves files and sockets open


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with two nodes of one CPU each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
        cluster.shutdown()


def test_the_same_result_as_here(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes and time limits on the cluster too."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "score", raising=False)
    fails = """
import os, time
import score

def fails(candidate, split, seed, samples):
    number = int(candidate.title.split()[-1]) if candidate.title.startswith("candidate") else 99
    if number == 4:
        os._exit(3)
    if number == 5:
        time.sleep(60)
    return score.score(candidate, split, seed, samples)
"""
    text = SEARCH.replace("score:score", "fails:fails").replace("60", "27").replace('fails"}', 'fails", time_limit: 5}')
    path = workshop(tmp_path, text, more={"fails.py": fails})
    evolve(Asked(str(path), str(tmp_path / "here"), workers=2), progress=False)
    evolve(Asked(str(path), str(tmp_path / "there"), workers=2, ray=address), progress=False)
    here, there = (lines(tmp_path / name, ("seconds", "error")) for name in ("here", "there"))
    assert here == there
    errors = {line["candidate"]: line["error"] for line in lines(tmp_path / "there")[1:] if "error" in line}
    assert errors == {4: "its process on the cluster died (ActorDiedError)", 5: "it took longer than time_limit, 5 s"}
    assert (tmp_path / "here/best.yaml").read_text() == (tmp_path / "there/best.yaml").read_text()


def test_a_sweep(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "score", raising=False)
    grid = RECIPE.replace("{{search: [0, 1.5], by: layer}}", "{{choose: [0.25, 0.5]}}")
    path = workshop(tmp_path, SEARCH.replace("evaluations: 60\n", ""), grid)
    path.write_text(path.read_text().replace("search:\n  evaluate", "sweep:\n  evaluate"))
    for name, where in (("here", None), ("there", address)):
        sweep(Asked(str(path), str(tmp_path / name), ray=where), progress=False)
    assert lines(tmp_path / "here") == lines(tmp_path / "there")
    assert (tmp_path / "here/best.yaml").read_text() == (tmp_path / "there/best.yaml").read_text()


def test_no_cluster(tmp_path: Path) -> None:
    path = workshop(tmp_path, SEARCH)
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster can be reached there"):
        evolve(Asked(str(path), str(tmp_path / "out"), ray="127.0.0.1:1"), progress=False)
