"""A study file is checked whole before anything is trained."""

from __future__ import annotations

import json

import keras
import keras_tuner
import pytest

from mtl_keras import balancing
from mtl_keras import sharing as sharing_methods
from mtl_keras.errors import InputError
from mtl_keras.search import StudyHyperModel, keras_tuner_compat, load_study
from mtl_keras.search.space import parse_dimension, parse_methods

HEAD = """
application = "tiny"
trials = 3
epochs = 1
"""
SHARING = "[space]\nsharing = {{ class_name = '{}', {} }}"


def write(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_every_dimension_reaches_the_run(tiny, tmp_path):
    study = load_study(
        write(
            tmp_path,
            HEAD
            + """
limit = 48
seed = 7
[space]
balancing = [
    "equal",
    { class_name = "dwa", config = { temperature = 1.5 } },
    ["uncertainty", "pcgrad"],
]
sharing = "hard"
width = [4, 8]
depth = { min = 1, max = 2 }
learning_rate = { min = 1e-3, max = 1e-1, log = true }
loss_weights = { max_ratio = 4.0 }
""",
        )
    )
    assert study.base.data == "stripes"
    assert study.tasks == ("way", "bright", "level")
    hypermodel = StudyHyperModel(study)
    hp = keras_tuner.HyperParameters()
    hypermodel.config(hp)
    assert {p.name for p in hp.space} == {
        "balancing",
        "width",
        "depth",
        "learning_rate",
        "loss_weight/bright",
        "loss_weight/level",
    }
    hp.values["balancing"] = '{"class_name": "dwa", "config": {"temperature": 1.5}}'
    hp.values["loss_weight/bright"] = 0.5
    hp.values["loss_weight/level"] = 1.5
    config = hypermodel.config(hp)
    assert config.balancing == {"class_name": "dwa", "config": {"temperature": 1.5}}
    hp.values["balancing"] = '["uncertainty", "pcgrad"]'
    assert hypermodel.config(hp).balancing == ["uncertainty", "pcgrad"]
    assert config.sharing == "hard"
    assert (config.seed, config.limit, config.epochs) == (7, 48, 1)
    # Ratios 1 : 0.5 : 1.5, scaled to sum to the number of tasks.
    assert config.loss_weights == pytest.approx(
        {"way": 1.0, "bright": 0.5, "level": 1.5}
    )


@pytest.mark.slow
def test_the_hypermodel_works_with_keras_tuners_own_tuners(tiny, tmp_path):
    study = load_study(write(tmp_path, HEAD + "[space]\nwidth = [4, 8]\n"))
    tuner = keras_tuner.RandomSearch(
        StudyHyperModel(study),
        objective=keras_tuner.Objective("val_mean", "max"),
        max_trials=1,
        directory=tmp_path / "kt",
    )
    tuner.search(verbose=0)
    (trial,) = tuner.oracle.get_best_trials()
    metrics = {
        name: trial.metrics.get_best_value(name) for name in trial.metrics.metrics
    }
    # Mean of accuracy, AUC and, to be minimised, the absolute error.
    expected = (
        metrics["val_way_accuracy"]
        + metrics["val_bright_auc"]
        - metrics["val_level_mae"]
    ) / 3
    assert trial.score == pytest.approx(expected)


@pytest.mark.slow
def test_an_architecture_is_searched_with_its_own_arguments(tiny, tmp_path):
    ple = (
        '{ class_name = "ple", config = { num_shared_experts = 1 }, search = '
        "{ num_levels = [1, 2], num_task_experts = { min = 1, max = 3 } } }"
    )
    mmoe = '{ class_name = "mmoe", search = true }'
    text = f'[space]\ndepth = 2\nsharing = ["hard", {mmoe}, {ple}]\n'
    study = load_study(write(tmp_path, HEAD + text))
    assert study.searched == ["sharing"]
    drawn = []

    class Recorder(StudyHyperModel):
        def build(self, hp):
            drawn.append((dict(hp.values), self.config(hp).sharing))
            return super().build(hp)

        def fit(self, hp, model, *args, **kwargs):
            return {"val_mean": 0.0}

    keras_tuner.RandomSearch(
        Recorder(study),
        objective=keras_tuner.Objective("val_mean", "max"),
        max_trials=12,
        directory=tmp_path / "kt",
        seed=1,
    ).search(verbose=0)
    configs = {"hard": set(), "mmoe": set(), "ple": set()}
    for values, sharing in drawn[1:]:
        name = sharing if isinstance(sharing, str) else sharing["class_name"]
        config = {} if isinstance(sharing, str) else sharing["config"]
        configs[name].add(tuple(config.items()))
        own = {k.split("/")[-1] for k in values if k.startswith(f"sharing/{name}/")}
        assert own <= set(config)
    assert len(configs["mmoe"]) > 1
    assert len(configs["ple"]) > 1
    assert {dict(c)["num_shared_experts"] for c in configs["ple"]} == {1}
    assert {dict(c)["num_levels"] for c in configs["ple"]} <= {1, 2}


@pytest.mark.parametrize(
    "values",
    [
        (0, 0.4),
        (1, 2, 3),
        (0.1, 1),
        (True, False),
        ("a", "b"),
        (0, False),
        (None, 0.5),
        ("x", 1, [1, 2], {"k": 1}),
    ],
)
def test_a_choice_draws_the_values_that_it_was_given(values):
    hp = keras_tuner.HyperParameters()
    choice = parse_dimension("any", list(values))
    assert choice.sample(hp, "any") == values[0]
    drawn = []
    for value in hp.space[0].values:
        hp.values["any"] = value
        drawn.append(choice.sample(hp, "any"))
    assert drawn == list(values)
    assert [type(value) for value in drawn] == [type(value) for value in values]
    # As its trials travel to workers and lie on the disk.
    proto = keras_tuner.HyperParameters.from_proto(hp.to_proto())
    assert choice.sample(proto, "any") == values[-1]
    read = keras_tuner.HyperParameters.from_config(
        json.loads(json.dumps(hp.get_config()))
    )
    assert choice.sample(read, "any") == values[-1]


def test_numbers_of_both_kinds_are_searched(tiny, tmp_path):
    cagrad = "{ class_name = 'cagrad', search = { c = [0, 0.4] } }"
    study = load_study(write(tmp_path, f"{HEAD}[space]\nbalancing = {cagrad}\n"))
    (trial, *_) = keras_tuner_compat.make(StudyHyperModel(study)).hyperparameters.space
    assert trial.values == [0.0, 0.4]


@pytest.mark.parametrize("setting", ["balancing", "sharing"])
def test_the_search_space_of_a_class_is_searched_by_all_of_its_names(
    tiny, tmp_path, setting
):
    registry = {"balancing": balancing, "sharing": sharing_methods}[setting]
    declaring = 0
    for name in registry.names():
        cls = registry.get_class(name)
        space = cls.search_space
        declaring += bool(space)
        spaces = []
        for alias in (name, cls.__name__) if space else ():
            value = {"class_name": alias, "search": True}
            (option,) = parse_methods(setting, value).options
            assert set(option.arguments) == set(space)
            spaces.append(option.arguments)
            for argument, dimension in option.arguments.items():
                default = getattr(registry.get(name), argument)
                ends = dimension.examples()
                if default is not None:
                    assert min(ends) <= default <= max(ends)
                for end in ends:
                    registry.get({"class_name": alias, "config": {argument: end}})
        assert spaces[1:] == spaces[:1]
    assert declaring >= {"balancing": 10, "sharing": 6}[setting]
    assert balancing.get_class("uw_so").search_space


def test_methods_as_text_are_those_as_tables():
    text = ["cagrad(c=0.5)", "uncertainty + moco(beta=0.25)", "equal()"]
    tables = [
        {"class_name": "cagrad", "config": {"c": 0.5}},
        ["uncertainty", {"class_name": "moco", "config": {"beta": 0.25}}],
        "equal",
    ]
    assert parse_methods("balancing", text) == parse_methods("balancing", tables)
    with pytest.raises(InputError, match="Unknown argument of 'cagrad'"):
        parse_methods("balancing", "cagrad(d=1)")
    with pytest.raises(InputError, match=r"Expected NAME or NAME\(ARGUMENT=VALUE"):
        parse_methods("balancing", "cagrad(c=0.5")


@pytest.mark.parametrize(
    ("space", "balancing"),
    [
        ("width = [8, 16]", "scale_invariant"),
        ("loss_weights = { max_ratio = 3.0 }", "equal"),
        ('loss_weights = { max_ratio = 3.0 }\nbalancing = "dwa"', "dwa"),
    ],
)
def test_searched_loss_weights_have_something_to_weigh(tmp_path, space, balancing):
    text = HEAD.replace("tiny", "vision") + f"[space]\n{space}"
    study = load_study(write(tmp_path, text))
    config = StudyHyperModel(study).config(keras_tuner.HyperParameters())
    assert config.balancing == balancing


def test_arguments_that_have_no_default_may_be_fixed_or_searched(tmp_path):
    @keras.saving.register_keras_serializable(package="test")
    class Needy(balancing.get_class("dwa")):
        method = "needy"
        search_space = {"bias": [0.5, 1.0]}  # noqa: RUF012

        def __init__(self, bias, **kwargs):
            super().__init__(**kwargs)
            self.bias = bias

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(balancing._METHODS, "needy", Needy)
        fixed = {"class_name": "needy", "config": {"bias": 2.0}}
        (option,) = parse_methods("balancing", fixed).options
        assert option.spec({}) == fixed
        searched = {"class_name": "needy", "search": True}
        (option,) = parse_methods("balancing", searched).options
        assert option.arguments["bias"].examples() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "[space]\nbalancing = { class_name = 'cagrad', "
            "search = { c = [0.4, 0.40] } }",
            "to differ",
        ),
        (
            HEAD + "[space]\nbalancing = { class_name = 'cagrad', "
            "search = { c = [2026-01-01, 0.4] } }",
            "finite numbers",
        ),
        (
            HEAD + "[space]\nbalancing = { class_name = 'cagrad', "
            "search = { c = { min = 0.1, max = inf } } }",
            "max to be a finite number",
        ),
        (HEAD + SHARING.format("hard", "search = true"), "'hard'"),
        (HEAD + SHARING.format("pel", "search = true"), "'ple'"),
        (
            HEAD + SHARING.format("ple", "serch = 1, search = true"),
            "'search'",
        ),
        (
            HEAD + SHARING.format("ple", "search = { levels = [1, 2] }"),
            "levels",
        ),
        (
            HEAD + SHARING.format("mmoe", "search = { num_experts = [0, 2] }"),
            "num_experts",
        ),
        ("[space]\nwidth = [4, 8]", "'application'"),
        ("application = 3", "Expected application to be a text"),
        (HEAD.replace("tiny", "tinny") + "[space]\nwidth = [4, 8]", "'tiny'"),
        (HEAD, "'space'"),
        (HEAD + "[space]", "something to search"),
        (HEAD + "[space]\nwidth = 4", "something to search"),
        (HEAD + "trails = 3\n[space]", "Did you mean 'trials'"),
        (HEAD.replace("3", '"3"') + "[space]", "trials to be a whole number"),
        (HEAD.replace("3", "true") + "[space]", "trials to be a whole number"),
        (HEAD.replace("3", "0") + "[space]\nwidth = [4, 8]", "at least 1"),
        (HEAD + 'oracle = "bayes"\n[space]\nwidth = [4, 8]', "'bayesian'"),
        (HEAD + 'objective = "wya"\n[space]\nwidth = [4, 8]', "'way'"),
        (HEAD + 'tasks = ["wya"]\n[space]\nwidth = [4, 8]', "'way'"),
        (HEAD + "tasks = [1]\n[space]\nwidth = [4, 8]", ".0 to be a text"),
        (HEAD + "[space]\nbalance = ['equal']", "'balancing'"),
        (HEAD + "[space]\nbalancing = ['equal', 'pcgard']", "'pcgrad'"),
        (HEAD + "[space]\nsharing = ['hard', 'mmeo']", "'mmoe'"),
        (HEAD + "[space]\nbackbone = ['cnn', 'rmm']", "backbone"),
        (HEAD + "[space]\nbalancing = [1, 2]", "balancing to be a name"),
        (
            HEAD + "[space]\nbalancing = [{ class_name = 'dwa', confg = {} }, 'equal']",
            "'config'",
        ),
        (
            HEAD + "[space]\nbalancing = [{ class_name = 'dwa', "
            "config = { temprature = 1.0 } }, 'equal']",
            "'temperature'",
        ),
        (
            HEAD + "[space]\nbalancing = { class_name = 'cagrad', "
            "search = { c = { min = -1.0, max = 1.0 } } }",
            "`c` to be a number",
        ),
        (HEAD + "[space]\noptimizer = ['adm', 'sgd']", "'adm'"),
        (HEAD + "[space]\nschedule = ['cosin', 'constant']", "'cosine'"),
        (HEAD + "[space]\nsharing = ['esmm', 'hard']", "click_and_conversion"),
        (HEAD + "[space]\nprecision = 'mixed_float61'", "'mixed_float16'"),
        (HEAD + 'objective = "bright_acuracy"\n[space]', "'bright_accuracy'"),
        (HEAD + 'objective = ["way", "level"]\n[space]', 'oracle = "pareto"'),
        (HEAD + 'objective = ["way", "way_accuracy"]\n[space]', "once"),
        (HEAD + "objective = [1]\n[space]", ".0 to be a text"),
        (HEAD + "patience = 0\n[space]", "patience to be a whole number"),
        (HEAD + "[space]\nwidth = []", "at least one value"),
        (HEAD + "[space]\nwidth = [4, 4]", "to differ"),
        (HEAD + "[space]\nwidth = [4, 8.5]", "width to be a whole number"),
        (HEAD + "[space]\nwidth = [0, 8]", "width to be a whole number of at least 1"),
        (HEAD + "[space]\ndepth = { min = 2 }", "the key 'max', which is missing"),
        (HEAD + "[space]\ndepth = { min = 2, max = 1 }", "below max"),
        (HEAD + "[space]\ndepth = { min = 1, max = 2, stp = 1 }", "'step'"),
        (HEAD + "[space]\nlearning_rate = { min = 0, max = 1, log = true }", "above 0"),
        (HEAD + "[space]\nlearning_rate = { min = 0, max = 1, log = 1 }", "true or"),
        (HEAD + "[space]\nlearning_rate = 'fast'", "learning_rate to be a number"),
        (HEAD + "[space]\nloss_weights = 3", "max_ratio"),
        (HEAD + "[space]\nloss_weights = { max_ratio = 1.0 }", "above 1"),
        (HEAD + "[space]\nloss_weights = { max_ratio = 2.0, way = 1.0 }", "not both"),
        (HEAD + "[space]\nwidth = [4, 8]\nloss_weights = { wya = 1.0 }", "'way'"),
        (
            HEAD + "tasks = ['way']\n[space]\nloss_weights = { max_ratio = 2.0 }",
            "two tasks",
        ),
        (HEAD + "[space", "not a TOML file"),
    ],
)
def test_a_wrong_study_is_one_line_that_names_the_file(
    tiny, tmp_path, monkeypatch, text, message
):
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("trained"))
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_study(path)
    received = str(caught.value)
    assert message in received
    assert str(path) in received
    assert "\n" not in received


def test_the_shipped_studies_hold():
    from pathlib import Path

    tuning = Path(__file__).parents[2] / "tuning"
    for path in tuning.glob("*.toml"):
        assert load_study(path).searched
