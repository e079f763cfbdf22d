"""The core alone, and one line for each extra that is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from mtl_keras import optional
from mtl_keras.errors import MissingExtraError

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PARTS = re.findall(r"\w+", EXTRAS["all"][0].partition("[")[2])

# Distributions that are imported by another name.
MODULES = {
    "audioop-lts": "audioop",
    "scikit-learn": "sklearn",
    "tensorflow-serving-api": "tensorflow_serving",
}
LINE = re.compile(r".+ needs ([\w-]+): pip install 'mtl_keras\[(\w+)\]'")


def distributions(extra):
    return [re.match(r"[\w-]+", requirement)[0] for requirement in EXTRAS[extra]]


BLOCKED = {
    MODULES.get(distribution, distribution)
    for part in PARTS
    for distribution in distributions(part)
}

# Runs in a process where what the extras install cannot be imported; prints, by the
# source that was run, the error.
WITHOUT_EXTRAS = """
import contextlib, io, json, re, sys

blocked = set(json.loads(sys.argv[1]))

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Finder())
import keras
before = set(sys.modules)
import mtl_keras
loaded = sorted(set(sys.modules) - before)
class One(mtl_keras.MultiTaskModel): pass
class Two(mtl_keras.MultiTaskModel): pass
class Both(One, Two): pass
inputs = keras.Input((2,))
first = Both(inputs, {"a": keras.layers.Dense(1)(inputs)}).tasks
readme = open(sys.argv[2], encoding="utf-8").read()
exec(re.search(r"```python\\n(.*?)```", readme, re.DOTALL)[1])
assert len(history.history["digit_weight"]) == 2
from mtl_keras import compare, data, embeddings, evaluation, fusion, runs, search
import tensorflow_datasets as tfds
generators = [n for n in sys.modules if n.startswith("mtl_keras.data.generated.")]
by_name = type(tfds.builder("mmoe_synthetic", data_dir="absent")).__module__
from mtl_keras import applications
errors = {}
for source in json.loads(sys.argv[3]):
    try:
        exec(source)
    except ImportError as error:
        errors[source] = [type(error).__name__, str(error)]
import mtl_keras_cli
said = {}
sys.argv[1:] = ["serve-check", "nowhere"]
for name in ("typer", "tensorflow_serving"):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            mtl_keras_cli.main()
        except SystemExit as end:
            said[name] = [end.code, stderr.getvalue()]
    blocked.discard(name)
names = ("loaded", "first", "generators", "by_name", "errors", "said")
print(json.dumps({name: globals()[name] for name in names}))
"""

# Each needs an extra, and fails at once without it.
NEEDING = {
    "audio": [
        "data.read_wav('absent.wav')",
        "from mtl_keras.data.generated import modalities\n"
        "modalities.synthetic_speech({'train': 1}, 0)",
        # A file of the data set would have to be had.
        "import tensorflow_datasets as tfds\n"
        "from mtl_keras.data import preparation\n"
        "preparation._checked_files = lambda *args: {}\n"
        "preparation._build = lambda *args: tfds.core.lazy_imports.pydub\n"
        "data.prepare('spoken_digit', '.', 'absent')",
    ],
    "data": [
        "from mtl_keras.data.generated import digits\ndigits.bundled_digits()",
    ],
    "evaluation": [
        "evaluation.group_auc([0, 1], [0.1, 0.2], [0, 0])",
        "evaluation.ndcg([0, 1], [0.1, 0.2], [0, 0])",
        "evaluation.paired_tests({'a': [1.0, 2.0, 4.0]}, [0.0, 0.0, 1.0])",
        "evaluation.detectable_difference(3)",
        "import mtl_keras.compare.summary",
        "import mtl_keras.compare.report",
    ],
    "plots": [
        "import mtl_keras.evaluation.plots",
        "search.run_study",
        "import mtl_keras.search.report",
        "import mtl_keras.reports.rendering",
        "from mtl_keras.callbacks import conflict_images\n"
        "conflict_images.heat_map(np.eye(2), ['a', 'b'])",
    ],
    "search": [
        "import keras_tuner\n"
        "search.ParetoOracle([keras_tuner.Objective(m, 'min') for m in 'ab'])",
        "from mtl_keras.search.pareto import check_bayesian\n"
        "check_bayesian('The oracle')",
    ],
    "serving": ["mtl_keras.serving", "from mtl_keras.serving import export"],
    "tables": [
        "applications.Table",
        "data.from_dataframe(None, tasks={'y': 'number'})",
    ],
    "text": ["evaluation.bleu(['a b'], ['a b'])"],
}


@pytest.fixture(scope="module")
def without_extras():
    sources = [source for part in NEEDING.values() for source in part]
    arguments = [json.dumps(sorted(BLOCKED)), str(ROOT / "README.md")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *arguments, json.dumps(sources)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_core_loads_nothing_that_keras_does_not(without_extras):
    loaded = without_extras["loaded"]
    assert {name.partition(".")[0] for name in loaded} == {"mtl_keras"}
    rooms = {name.split(".")[1] for name in loaded if "." in name}
    assert not rooms & {"applications", "compare", "data", "runs", "search", "serving"}
    assert len(loaded) < 120


def test_a_model_of_two_bases_may_be_the_first_of_a_process(without_extras):
    assert without_extras["first"] == ["a"]


def test_generators_of_toy_data_are_found_by_name_and_loaded_on_use(without_extras):
    assert without_extras["generators"] == []
    assert without_extras["by_name"] == "mtl_keras.data.generated.mmoe_synthetic"


@pytest.mark.parametrize("part", sorted(NEEDING))
def test_each_missing_extra_is_one_line(without_extras, part):
    for source in NEEDING[part]:
        kind, message = without_extras["errors"].get(source, ("none", source))
        assert kind == "MissingExtraError", message
        match = LINE.fullmatch(message)
        assert match, message
        assert match[2] == part
        assert match[1] in distributions(part)


def test_the_command_line_names_the_extra_too(without_extras):
    errors = without_extras["said"]
    assert errors["typer"] == [
        2,
        "mtl-keras: The command line needs typer: pip install 'mtl_keras[cli]'\n",
    ]
    assert errors["tensorflow_serving"] == [
        2,
        "mtl-keras: mtl_keras.serving needs tensorflow-serving-api: "
        "pip install 'mtl_keras[serving]'\n",
    ]


def test_an_installed_but_broken_package_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "halved.py").write_text("from math import no_such_function\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        pytest.raises(ImportError, match="no_such_function") as caught,
        optional.extra("text", "halved", "This"),
    ):
        import halved  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


def imports(node):
    """Returns the packages that a node's own import statement names."""
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {node.module.partition(".")[0]}
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return set()


def test_every_import_of_an_extra_is_one_that_names_it():
    guarded, every = set(), set()
    for path in sorted((ROOT / "mtl_keras").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            every |= {(path, node.lineno) for name in imports(node) if name in BLOCKED}
            if not isinstance(node, ast.With):
                continue
            call = node.items[0].context_expr
            if ast.unparse(getattr(call, "func", call)) != "optional.extra":
                continue
            part, distribution = (argument.value for argument in call.args[:2])
            assert distribution in distributions(part), (path, node.lineno)
            for statement in node.body:
                assert imports(statement) == {MODULES.get(distribution, distribution)}
                guarded.add((path, statement.lineno))
    assert every == guarded


def test_the_core_needs_only_the_packages_of_its_card():
    names = {re.match(r"[\w-]+", text)[0] for text in PROJECT["dependencies"]}
    card = {"tensorflow", "keras", "keras-tuner", "tensorflow-datasets", "tensorboard"}
    # TensorFlow Datasets imports importlib_resources, Keras rich, TensorBoard pillow;
    # settings and records are decoded by Pydantic.
    assert names == card | {
        *("numpy", "importlib_resources", "rich", "pillow", "pydantic")
    }
    for package, needed in (("keras", "rich"), ("tensorboard", "pillow")):
        assert needed in importlib.metadata.requires(package)
    installed = set(PARTS) | {"all"}
    assert installed == set(EXTRAS) - {"gpu", "dev", "docs", "notebooks"}
    assert "mtl_keras[all]" in EXTRAS["dev"]
