"""Describe the package for pip. A comment gives the reason for each dependency."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "paddle_merge" / "version.py").read_text()).group(1)

demo = [
    "paddlepaddle>=3.0",  # to train the demo's networks
    "scikit-learn",  # for the digits that the demo uses as data
    "matplotlib",  # to draw the demo's picture
]
search = [
    "cmaes>=0.13",  # CMA-ES for numbers, and CatCMA for numbers and choices together
    "moocore>=0.3",  # which candidates no other one beats, and the hypervolume of several objectives
    "matplotlib",  # to draw what a search found
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
        "numpy>=1.26",  # arrays
        "numba>=0.60",  # compiles the loops over elements
        "llvmlite",  # links their machine code without Numba, which needs it and says which version
        "typer>=0.12",  # the command line
        "tqdm",  # the progress bar
        "safetensors>=0.4.3",  # opens every output once more, before the merge counts as done
        "xxhash>=3",  # fast checksums of the output
        "pyyaml",  # recipes and config files in YAML
        "tokenizers>=0.20",  # reads tokenizers, to align vocabularies by token
        "jinja2>=3",  # checks chat templates before the merge
        "threadpoolctl",  # keeps BLAS to one thread for SVDs: its results depend on the number of threads
    ],
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2"],  # for --tensor_type pd on the CPU; for GPUs install paddlepaddle-gpu instead
        # Versions with which PaddleNLP 3.0 can be installed and imported; it needs NumPy 1.26.
        "paddlenlp": ["paddlenlp==3.0.0b4", "paddlepaddle>=3.0", "aistudio-sdk<0.3", "pyarrow<20", "datasets<4"],
        "hub": ["huggingface_hub>=0.26"],  # push to, and names at, Hugging Face; tokenizers brings some version along
        "aistudio": ["aistudio-sdk>=0.3"],  # push to AI Studio; PaddleNLP 3.0 needs an older version
        "modelscope": ["modelscope-hub>=0.5"],  # push to ModelScope; the part of modelscope that talks to the hub
        "demo": demo,
        "search": search,
        "ray": [*search, "ray>=2.9"],  # to score the candidates of a search on several machines
        "optuna": ["optuna>=4.5"],  # searches with Optuna's samplers
        "lm_eval": ["lm-eval>=0.4.13"],  # tasks of lm-eval as evaluators; brings about 80 packages
        "test": [
            *demo,  # for the tests of the demo
            *search,  # for the tests of the search
            "optuna>=4.5",
            "pytest>=8",
            "pytest-xdist",  # runs the tests on all cores, as .pytest.ini asks
            "hypothesis",  # property-based tests
            "sentencepiece",  # vocabularies in SentencePiece files
            "ml_dtypes",  # bfloat16 and 8-bit floats as NumPy arrays
            "psutil",  # memory and children of processes, in tests and tools
        ],
        "lint": [  # beside "test", whose packages' types mypy reads
            "ruff",
            "mypy",  # types
            "import-linter",  # checks the layers in .importlinter
            "types-PyYAML",
            "types-tqdm",
            "types-psutil",
        ],
    },
    entry_points={"console_scripts": ["paddle-merge = paddle_merge.__main__:main"]},
)
