"""Packaging. Every dependency is listed with its reason."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "paddle_merge" / "version.py").read_text()).group(1)

demo = [
    "paddlepaddle>=3.0",  # trains the demo's networks
    "scikit-learn",  # its digits are the demo's data
    "matplotlib",  # draws the demo's picture
    "safetensors",  # saves the demo's checkpoints as any training script would
]

setup(
    name="paddle_merge",
    version=version,
    description="Merge model checkpoints: any size, any number of workers, the same bytes.",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["paddle_merge/LICENSE"],
    packages=find_packages(include=["paddle_merge", "paddle_merge.*"]),
    package_data={"paddle_merge": ["LICENSE", "recipe/templates/*.jinja"]},
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.26",  # blocks of tensors
        "numba>=0.60",  # the loops that run over every element
        "typer>=0.12",  # the command line
        "tqdm",  # the progress bar
        "xxhash>=3",  # checksums of what is written, at the speed of memory
        "pyyaml",  # config files in YAML
        "tokenizers>=0.20",  # which token each row of an embedding is
        "jinja2>=3",  # tells a mistake in a chat template before the merge, not when the model is first talked to
        "threadpoolctl",  # singular vectors on one thread: BLAS's results depend on how many it takes
    ],
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2"],  # --tensor_type pd on the CPU; for GPUs install paddlepaddle-gpu instead
        # The versions under which PaddleNLP 3.0 installs and imports; it holds NumPy at 1.26.
        "paddlenlp": ["paddlenlp==3.0.0b4", "paddlepaddle>=3.0", "aistudio-sdk<0.3", "pyarrow<20", "datasets<4"],
        "demo": demo,
        "test": [
            *demo,  # the demo is tested too
            "pytest>=8",
            "pytest-xdist",  # runs the tests on all cores; .pytest.ini asks for it
            "hypothesis",  # properties over wide input spaces
            "sentencepiece",  # vocabularies in its files
            "ml_dtypes",  # bfloat16 arrays as others hold them
            "psutil",  # the bench watches its processes' memory
            "ruff",  # lint
            "mypy",  # types
            "import-linter",  # the layers of .importlinter
            "types-PyYAML",
            "types-tqdm",
            "types-psutil",
        ],
    },
    entry_points={"console_scripts": ["paddle-merge = paddle_merge.commands.main:main"]},
)
