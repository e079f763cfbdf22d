"""Code blocks of README and documentation run, and their statements hold."""

from __future__ import annotations

import difflib
import importlib.util
import json
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from typing import NamedTuple

import keras
import pytest
import typer
from tiny_application import eagerly  # noqa: F401

from mtl_keras import balancing, sharing
from mtl_keras_cli.app import app

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MIGRATION = DOCS / "migrating" / "keras.md"
_FENCE = re.compile(
    r"^(?:<!-- (slow|needs \w+) -->\n)?```(\w*)\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block of a page.

    Slow ones stand below `<!-- slow -->`, and so does what needs a package that this
    library does without, below `<!-- needs NAME -->`.
    """

    slow: bool
    needs: str
    language: str
    code: str


def _blocks(page: pathlib.Path) -> list[Block]:
    blocks = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        Block(bool(mark), mark.removeprefix("needs ").removeprefix("slow"), *rest)
        for mark, *rest in blocks
    ]


def _with_blocks(language: str) -> list[pathlib.Path]:
    return [
        page for page in PAGES if any(b.language == language for b in _blocks(page))
    ]


def _name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def _program(page: pathlib.Path, with_slow: bool) -> str:
    """Returns a page's Python from top to bottom, as one program."""
    blocks = [block for block in _blocks(page) if block.language == "python"]
    return "\n".join(
        block.code
        for block in blocks
        if not block.slow
        or (with_slow and (not block.needs or importlib.util.find_spec(block.needs)))
    )


# They take many steps, or export a model. On the other pages a step is hardly taken
# twice, and tracing it would take most of the time.
IN_GRAPHS = {
    *("README.md", "docs/guide.md", "docs/own_application.md", "docs/pareto.md"),
    *("docs/serving.md", "docs/migrating/keras.md", "docs/migrating/tfrs.md"),
}


@pytest.mark.parametrize("page", _with_blocks("python"), ids=_name)
def test_code_blocks_run(page, request, tmp_path, monkeypatch):
    if _name(page) not in IN_GRAPHS:
        request.getfixturevalue("eagerly")
    monkeypatch.chdir(tmp_path)
    program = compile(_program(page, with_slow=False), page.name, "exec")
    exec(program, {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("page", _with_blocks("python"), ids=_name)
def test_all_code_blocks_run_as_a_program(page, tmp_path):
    """In graphs, and in a process of its own, as a page may set up devices."""
    # Not by the page's name: of `keras.py` the program itself would be `keras`.
    program = tmp_path / "program.py"
    program.write_text(_program(page, with_slow=True), encoding="utf-8")
    subprocess.run([sys.executable, program], cwd=tmp_path, check=True)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_block_is_left_out(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(_blocks(page))
    languages = {block.language for block in _blocks(page)}
    assert languages <= {"python", "bash", "toml", "yaml", "diff", "text"}


@pytest.mark.parametrize("page", _with_blocks("toml"), ids=_name)
def test_toml_blocks_are_toml(page):
    for block in _blocks(page):
        if block.language == "toml":
            tomllib.loads(block.code)


@pytest.mark.parametrize("page", _with_blocks("bash"), ids=_name)
def test_commands_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in _blocks(page):
        for line in block.code.replace("\\\n", "").splitlines():
            arguments = shlex.split(line, comments=True)
            if block.language != "bash" or not arguments:
                continue
            if arguments[0] == "mtl-keras":
                _parse(arguments[1:])
            elif arguments[0] == "make":
                assert arguments[1] in targets
            elif arguments[0] == "python" and arguments[1].endswith(".py"):
                assert (ROOT / arguments[1]).is_file()


def _parse(arguments: list[str]) -> None:
    """Parses arguments of `mtl-keras` as it would, without running anything."""
    command = typer.main.get_command(app)
    context = command.make_context("mtl-keras", list(arguments))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def test_a_wrong_command_is_found():
    with pytest.raises(Exception, match="No such option"):
        _parse(["train", "vision", "--balanced", "pcgrad"])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_every_room_has_a_page_of_reference():
    rooms = {
        path.parent.name
        for path in (ROOT / "mtl_keras").glob("*/__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert {page.stem for page in (DOCS / "reference").glob("*.md")} == rooms
    listed = re.findall(
        r": reference/(\w+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.M
    )
    assert set(listed) == rooms


@pytest.fixture(scope="module")
def generate():
    # As `python docs/generate.py` has it, for the modules beside it.
    sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DOCS))


def test_generated_parts_are_those_of_docstrings_and_results(generate):
    texts = [page.read_text(encoding="utf-8") for page in generate.PAGES]
    for text, page in zip(texts, generate.PAGES, strict=True):
        assert generate.page(text) == text, f"python docs/generate.py: {page.name}"
    for name in generate.parts():
        assert "\n".join(texts).count(f"<!-- {name} -->\n") == 1, name


_FENCES = re.compile(r"^ *```.*?^ *```", re.M | re.S)
_CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]*>")
_VERSIONS = re.compile(
    r"(?:Apache|DeepCTR|Keras|KerasTuner|LibMTL|Ludwig|NumPy|Python|SQuAD|TensorFlow"
    r"(?: (?:Datasets|Recommenders|Serving))?|TorchJD|torch|arXiv)[- ]\[?[\d.–+a-z]+"
    r"|\d+\.\d+\.\d+"
)
_UNITS = "%|times|points|bytes|[kMG]i?B|[mµ]?s|seconds?|minutes?|hours?"
_FIGURE = re.compile(
    rf"\d[\d,.]*\d? ?(?:{_UNITS})(?![\w/])|\d+\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+"
)
_COMMIT = re.compile(r'"commit": *("[0-9a-f]{40}"|null)')


def on_one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_figures_of_sentences_are_those_of_results(generate, page):
    """A figure is generated, or the results say its sentence, or it is no result."""
    text = page.read_text(encoding="utf-8")
    for name in generate.parts():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin in text:
            text = text[: text.index(begin)] + text[text.index(end) :]
    text = on_one_line(_FENCES.sub("", text))
    evidence, name = generate.evidence, page.relative_to(ROOT).as_posix()
    for passage in map(
        on_one_line, [*evidence.sentences(name), *evidence.others(name)]
    ):
        assert passage in text
        text = text.replace(passage, " … ")
    left = _FIGURE.findall(_VERSIONS.sub("", _CODE.sub("", text)))
    assert not left


def test_results_name_the_commit_that_made_them():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        commits = _COMMIT.findall(path.read_text(encoding="utf-8"))
        assert commits, path.name
        assert "null" not in commits, path.name


def test_evidence_is_that_of_the_runs(generate):
    """The gains and seconds of a table, against the runs by plain arithmetic."""
    results = json.loads((ROOT / "benchmarks" / "results" / "worth.json").read_text())

    def runs(method, labels):
        key = "fdu_mtl", method, labels
        return {
            run["seed"]: run
            for run in results["runs"]
            if (run["data"], run["method"], run["labels"]) == key and run["seed"]
        }

    alone, joint = runs("alone", 200), runs("equal", 200)
    differences = [
        statistics.mean(joint[seed]["test"]) - statistics.mean(alone[seed]["test"])
        for seed in alone
    ]
    mean = statistics.mean(differences)
    # 2.262 is the t distribution's 97.5 % quantile for nine degrees of freedom.
    half = 2.262 * statistics.stdev(differences) / len(differences) ** 0.5
    assert len(differences) == 10
    gain = f"+{mean:.3f}** ({mean - half:+.3f} to {mean + half:+.3f})"
    seconds = f"{statistics.mean(run['cpu_seconds'] for run in joint.values()):.1f}"
    text = (DOCS / "worth.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| shared, `equal`")]
    assert any(gain in row for row in rows)
    rows = [line for line in text.splitlines() if line.startswith("| Reviews of 16")]
    row = next(line for line in rows if "| 200 |" in line)
    assert row.split("|")[4].strip() == seconds


def test_hypervolumes_are_those_of_the_losses():
    results = json.loads(
        (ROOT / "benchmarks" / "results" / "preferences.json").read_text()
    )
    text = (DOCS / "pareto.md").read_text(encoding="utf-8")
    for run in results["runs"]:
        width, height = results["data"][run["data"]]["reference"]
        # Below the staircase of the points, from the left one on.
        area, floor = 0.0, height
        for x, y in sorted(run["losses"]):
            area += max(width - x, 0.0) * max(floor - y, 0.0)
            floor = min(floor, y)
        assert run["hypervolume"] == pytest.approx(area / (width * height))
    for data in results["data"]:
        one, five = (
            {
                run["seed"]: run["hypervolume"]
                for run in results["runs"]
                if (run["data"], run["method"]) == (data, method)
            }
            for method in ("manifold", "separate")
        )
        gain = statistics.mean(one[seed] - five[seed] for seed in five)
        assert f"**{gain:+.3f}**" in text


@pytest.mark.parametrize("name", balancing.names())
def test_costs_in_docstrings_are_those_of_the_code(generate, name):
    config = {"static": {"task_weights": [1.0] * 4}}.get(name, {})
    method = balancing.get({"class_name": name, "config": config})
    cost = generate.read(type(method)).cost
    method.build(["a", "b", "c", "d"])
    if isinstance(method, balancing.GradientBalancer):
        method.build_variables([keras.Variable([0.0])])
    kept = set(method.variables) - {"fallbacks"}
    assert bool(kept) == (cost["state"] is not None), kept
    if isinstance(method, balancing.GradientBalancer):
        exact = "3 T" if method.num_sub_batches else "T"
        if isinstance(method, balancing.MConFIG):
            exact = "1"
        if isinstance(method, balancing.SAMO):
            exact = "T + 1"
        running = "running" in getattr(method, "ways_to_solve", ())
        assert cost["backward"] == exact + " (running: 2)" * running
    elif method.needs_gradient_norms:
        assert cost["backward"] == "1 + T on the last shared layer"
    elif not method.needs_probe:
        assert cost["backward"] == "1"
    probes = getattr(method, "needs_probe", False)
    assert probes == (cost["forward"] is not None)
    assert ("`seed`" in (cost["needs"] or "")) == method.uses_seed


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/comparison.md"])
def test_methods_are_counted_right(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    counts = {
        "methods": re.findall(r"\b(\d+) (?:published )?methods\b", text),
        "ways": re.findall(r"\b(\d+)(?: ways\b|, over any)", text),
    }
    assert str(len(balancing.names())) in counts["methods"]
    assert set(counts["ways"]) == {str(len(sharing.names()))}


def test_migration_changes_three_lines_and_nothing_else():
    before, after = (b.code for b in _blocks(MIGRATION)[:3] if b.language == "python")
    diff = next(b.code for b in _blocks(MIGRATION) if b.language == "diff")
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    changed = [line for line in lines if line[0] in "+-"]
    shown = [line for line in diff.splitlines() if line[:1] in ("+", "-")]
    assert [line[0] + line[2:] for line in changed] == shown
    assert sum(line[0] == "+" for line in changed) == 3
