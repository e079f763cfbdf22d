"""Loss methods against the gradients of their papers' objectives."""

from __future__ import annotations

import balancing_cases as cases
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import tensorflow as tf

from mtl_keras.balancing import LossStep

TASKS = ("a", "b", "c")
LOSSES = np.array([0.7, 2.0, 0.3])
PREFERENCE = np.array([1.0, 2.0, 3.0])
RATIO = tf.constant(PREFERENCE / PREFERENCE.sum(), tf.float64)


def make(name, **config):
    return cases.make(name, tasks=TASKS, **config)


def weights(balancer, losses=LOSSES):
    present = tf.ones((3,), "bool")
    return balancer.weights(tf.constant(losses, tf.float32), present).numpy()


def learn(balancer, losses=LOSSES, **more):
    losses = tf.constant(losses, tf.float32)
    rate = tf.constant(0.1)
    balancer.update(LossStep(losses, tf.ones((3,), "bool"), rate, **more))


def slope(function, point):
    """Returns the gradient of a scalar, by TensorFlow in float64."""
    point = tf.constant(point, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(point)
        value = function(point)
    return tape.gradient(value, point).numpy()


def adam(point, gradients, rate):
    """Returns where Adam arrives after steps against these functions of the point."""
    point = np.array(point, "float64")
    first = second = np.zeros_like(point)
    for count, gradient in enumerate(gradients, start=1):
        value = gradient(point)
        first = 0.9 * first + 0.1 * value
        second = 0.999 * second + 0.001 * value**2
        corrected = first / (1 - 0.9**count)
        point = point - rate * corrected / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
    return point


def gls(losses):
    return tf.reduce_prod(losses) ** (1 / 3)


def stch(losses):
    return 0.5 * tf.reduce_logsumexp(3 * RATIO * (losses - 0.1) / 0.5)


def cosmos(losses):
    cosine = tf.tensordot(RATIO, losses, 1) / tf.norm(RATIO) / tf.norm(losses)
    return tf.reduce_sum(RATIO * losses) - 2.0 * cosine


def pbi(losses):
    direction = RATIO / tf.norm(RATIO)
    along = tf.tensordot(losses, direction, 1)
    return tf.norm(RATIO) * (along + 5.0 * tf.norm(losses - along * direction))


def famo(losses):
    shares = tf.ones((3,), tf.float64) / 3
    distance = losses + 1.0
    constant = tf.stop_gradient(tf.reduce_sum(shares / distance))
    return tf.reduce_sum(shares * tf.math.log(distance)) / constant


@pytest.mark.parametrize(
    ("objective", "config"),
    [
        (gls, {}),
        (
            stch,
            {"mu": 0.5, "warmup_epochs": 0, "ideal": 0.1, "preference": [1, 2, 3]},
        ),
        (cosmos, {"strength": 2.0, "preference": {"a": 1, "b": 2, "c": 3}}),
        (pbi, {"penalty": 5.0, "preference": [1, 2, 3]}),
        (famo, {"lower_bound": -1.0}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_are_the_gradient_of_the_published_scalar(objective, config):
    expected = slope(objective, LOSSES)
    name = objective.__name__
    actual = weights(make(name, scale="mean", **config))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(weights(make(name, **config)), 3 * expected, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-24, 1e24])
@pytest.mark.parametrize(
    ("objective", "config"),
    [
        (cosmos, {"strength": 2.0, "preference": [1, 2, 3]}),
        (pbi, {"penalty": 5.0, "preference": [1, 2, 3]}),
    ],
)
def test_squares_of_losses_may_leave_the_range_of_float32(objective, config, unit):
    expected = slope(objective, LOSSES * unit)  # in float64
    balancer = make(objective.__name__, scale="mean", **config)
    losses = tf.constant(LOSSES * unit, tf.float32)
    actual = balancer.weights(losses, tf.ones((3,), "bool"))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_epo_like_weights_are_those_of_its_least_scalar_of_no_smaller_losses():
    """min over v ≥ u of Σ v + λ Σ v log(v / mean v), by SciPy."""
    ratio = np.array([0.1, 0.2, 0.3, 0.4])
    balancers = {
        strength: cases.make("epo_like", strength=strength, preference=[1, 2, 3, 4])
        for strength in (0.5, 3.0, 30.0)
    }
    below = 0
    for index, (_, losses) in enumerate(cases.problems()):
        strength = list(balancers)[index % 3]
        products = ratio * losses

        def scalar(values, strength=strength):
            return values.sum() + strength * values @ np.log(values / values.mean())

        least = scipy.optimize.minimize(
            scalar,
            np.full(4, products.max()),
            bounds=[(low, None) for low in products],
            jac=lambda v, strength=strength: 1 + strength * np.log(v / v.mean()),
            options={"ftol": 1e-15, "gtol": 1e-9},
        ).x
        below += (least > products * (1 + 1e-6)).sum()
        slopes = scipy.optimize.approx_fprime(least, scalar, 1e-7)
        # No unit counts.
        losses = tf.constant(losses * 10.0 ** (index % 7 - 3), tf.float32)
        actual = balancers[strength].weights(losses, tf.ones((4,), "bool"))
        np.testing.assert_allclose(actual, 4 * ratio * slopes, rtol=2e-3, atol=2e-3)
        assert np.all(actual >= 0.0)
    assert 50 < below < 300


@pytest.mark.parametrize("first", [0.3, 0.6])
def test_epo_like_descent_ends_where_losses_times_preferences_are_alike(first):
    """The toy problem of the paper, whose front is concave."""
    ends = tf.constant([[0.5**0.5] * 2, [-(0.5**0.5)] * 2])
    ratio = np.array([first, 1.0 - first])

    def losses_at(point):
        return 1.0 - tf.exp(-tf.reduce_sum(tf.square(point - ends), axis=1))

    @tf.function(autograph=False)
    def descended(strength):
        balancer = cases.make(
            "epo_like", ("a", "b"), strength=strength, preference=ratio.tolist()
        )

        def move(count, point):
            losses = losses_at(point)
            gradients = 2.0 * (point - ends) * (1.0 - losses)[:, None]
            weights = balancer.weights(losses, tf.ones((2,), "bool"))
            rate = 0.2 * tf.pow(0.99, tf.cast(count, "float32"))
            update = tf.linalg.matvec(gradients, weights, transpose_a=True)
            return count + 1, point - rate * update

        start = tf.constant([0.3, -0.2])
        return tf.while_loop(lambda count, _: count < 1000, move, [0, start])[1]

    lowest = []
    for strength in (1e-3, 5.0, 50.0):
        point = descended(strength)
        # The Pareto set is the way from one minimum to the other.
        assert abs(point[0] - point[1]) < 1e-3
        assert abs(point[0]) <= 0.5**0.5 + 1e-3
        products = ratio * losses_at(point).numpy()
        lowest.append(products.min() / products.mean())
        assert lowest[-1] >= np.exp(-1 / strength) - 1e-3
    # Linear scalarisation ends near one of the two.
    assert lowest[0] < 0.3
    assert lowest[2] > 0.98


def scale_invariant(losses):
    return tf.reduce_mean(tf.math.log(losses))


def test_weights_of_the_scale_invariant_baseline_are_its_gradient():
    balancer = cases.make("scale_invariant", scale="mean")
    present = tf.ones((4,), "bool")
    for _, losses in cases.problems():
        actual = balancer.weights(tf.constant(losses, tf.float32), present)
        np.testing.assert_allclose(actual, slope(scale_invariant, losses), rtol=1e-5)
        # No unit counts.
        other = balancer.weights(tf.constant(1e6 * losses, tf.float32), present)
        np.testing.assert_allclose(other * 1e6, actual, rtol=1e-5)


@pytest.mark.parametrize("normalization", ["log", "none"])
def test_loss_discrepancy_control_follows_the_published_objective(normalization):
    """Model and logits descend one scalar, 40 times over; neighbours are present."""
    places = {True: [0, 1, 2, 3], False: [0, 1, 3]}
    config = {"strength": 0.3, "normalization": normalization, "learning_rate": 0.1}
    balancer, whole = cases.make("ldc_mtl", scale="mean", **config), True
    first = {}
    for _, losses in cases.problems(40):
        chosen = places[whole]
        present = np.isin(np.arange(4), chosen)
        logits = balancer.variables["logits"].numpy().astype("float64")
        for index in chosen:
            first.setdefault(index, np.float32(losses[index]))
        divisors = tf.constant([first[index] for index in chosen], tf.float64)

        def objective(values, logits, divisors=divisors):
            if normalization == "log":
                values = tf.math.log(values / divisors)
            shares = tf.sigmoid(logits)
            weighted = shares * values
            gaps = tf.reduce_sum(tf.abs(weighted[:-1] - weighted[1:]))
            total = tf.stop_gradient(tf.reduce_sum(shares))
            return tf.reduce_sum(weighted) / total + 0.3 * gaps

        masked = np.where(present, losses, 0.0)
        actual = balancer.weights(tf.constant(masked, tf.float32), present).numpy()
        # Gaps of losses at their start are 0 up to rounding, and have no slope.
        if len(first) == 4 and not np.allclose(losses[chosen], divisors, rtol=1e-3):
            fixed = tf.constant(logits[chosen])
            expected = slope(lambda x, w=fixed: objective(x, w), losses[chosen])
            np.testing.assert_allclose(actual[chosen], expected, rtol=1e-4, atol=1e-5)
            assert not actual[~present].any()
            fixed = tf.constant(losses[chosen])
            expected = slope(lambda w, x=fixed: objective(x, w), logits[chosen])
            before = balancer.variables["adam_momentum"].numpy()
            update(balancer, masked, present)
            after = balancer.variables["adam_momentum"].numpy()
            gradient = (after - 0.9 * before) / 0.1
            np.testing.assert_allclose(gradient[chosen], expected, rtol=1e-3, atol=1e-5)
            np.testing.assert_array_equal(after[~present], before[~present])
        else:
            update(balancer, masked, present)
        whole = not whole


def update(balancer, losses, present):
    losses = tf.constant(losses, tf.float32)
    balancer.update(LossStep(losses, tf.constant(present), tf.constant(0.1)))


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_trained_scales_follow_the_published_objective(name):
    kinds = {"b": "classification"}
    factors = tf.constant([0.5, 1.0, 0.5], tf.float64)
    if name == "uncertainty":
        balancer = make(name, initial_log_variance=0.3, kinds=kinds)
        start, state = np.full(3, 0.3), "log_variance"

        def objective(s, losses):
            return tf.reduce_sum(factors * tf.exp(-s) * losses + s / 2)
    else:
        balancer = make(name)
        start, state = np.zeros(3), "log_scale"

        def objective(s, losses):
            return tf.reduce_sum(tf.exp(s) * losses - s)

    batches = [LOSSES, LOSSES[::-1]]
    for losses in batches:
        now = balancer.variables[state].numpy()
        expected = slope(
            lambda x, s=now: objective(tf.constant(s, tf.float64), x), losses
        )
        np.testing.assert_allclose(weights(balancer, losses), expected, rtol=1e-4)
        learn(balancer, losses)
    expected = adam(
        start,
        [
            lambda s, x=x: slope(lambda p: objective(p, tf.constant(x, tf.float64)), s)
            for x in batches
        ],
        rate=0.1,
    )
    np.testing.assert_allclose(balancer.variables[state], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("uncertainty", {"initial_log_variance": "first_loss"}),
        ("imtl_l", {"initial_log_scale": "first_loss"}),
        ("famo", {}),
        ("gls", {}),
    ],
)
def test_losses_of_any_units_weigh_the_same_from_the_first_step(name, config):
    losses = np.array([1e13, 0.7, 1e-9])
    balancer = make(name, **config)
    first = weights(balancer, losses) * losses
    np.testing.assert_allclose(first, first[0], rtol=1e-4)
    learn(balancer, losses, probe=Losses(0.9 * losses))
    second = weights(balancer, 0.9 * losses) * losses
    np.testing.assert_allclose(second, second[0], rtol=0.06)  # famo: Adam on round-off


def test_the_first_loss_of_a_task_is_that_of_its_first_batch():
    balancer = make("imtl_l", initial_log_scale="first_loss")
    rate = tf.constant(0.1)
    for losses in ([4.0, 0.0, np.nan], [5.0, 8.0, 2.0]):
        present = tf.constant([True, losses[1] > 0, True])
        losses = tf.constant(losses, tf.float32)
        now = balancer.weights(losses, present)
        balancer.update(LossStep(losses, present, rate))
    np.testing.assert_allclose(now, [1 / 4, 1 / 8, 1 / 2], rtol=1e-5)


def test_analytic_uncertainty_is_a_softmax_of_inverse_losses():
    actual = weights(make("uw_so", temperature=2.0, scale="mean"))
    expected = scipy.special.softmax(1 / LOSSES / 2.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_dynamic_weight_average_on_known_epochs():
    balancer = make("dwa", temperature=0.5)
    epochs = np.array(
        [
            [[1.0, 4.0, 2.0], [3.0, 4.0, 2.0]],
            [[1.0, 2.0, 2.0], [1.0, 4.0, 1.0]],
            [[0.5, 3.0, 2.0], [0.5, 2.0, 2.0]],
        ]
    )
    for number in range(4):
        balancer.on_epoch_begin()
        if number < 2:
            expected = np.ones(3)
        else:
            ratio = epochs[number - 1].mean(axis=0) / epochs[number - 2].mean(axis=0)
            expected = 3 * scipy.special.softmax(ratio / 0.5)
        np.testing.assert_allclose(weights(balancer), expected, rtol=1e-5)
        for losses in epochs[number] if number < 3 else ():
            learn(balancer, losses)


def test_smooth_tchebycheff_warms_up_and_takes_logs_over_the_nadir():
    balancer = make("stch", mu=0.5, warmup_epochs=2, scale="mean")
    for nadir in ([9.0, 9.0, 9.0], [1.0, 4.0, 0.5]):
        balancer.on_epoch_begin()
        np.testing.assert_allclose(
            weights(balancer),
            slope(lambda x: tf.reduce_sum(tf.math.log(x)) / 3, LOSSES),
            rtol=1e-5,
        )
        for factor in (0.5, 1.5):
            learn(balancer, factor * np.array(nadir))
    for _ in range(2):  # the nadir stays
        balancer.on_epoch_begin()
        expected = slope(
            lambda x: 0.5 * tf.reduce_logsumexp(tf.math.log(x / [1.0, 4.0, 0.5]) / 0.5),
            LOSSES,
        )
        np.testing.assert_allclose(weights(balancer), expected, rtol=1e-5)
        learn(balancer, [5.0, 5.0, 5.0])


def test_smooth_tchebycheff_has_the_weights_of_the_authors_code():
    """2 μ log Σ exp(log(L / nadir) / μ) at nadir 1: 2 / Σ L for either task."""
    balancer = cases.make("stch", tasks=("a", "b"), warmup_epochs=1)
    present = tf.ones((2,), "bool")
    balancer.update(LossStep(tf.ones((2,)), present, tf.constant(0.1)))
    balancer.on_epoch_begin()
    actual = balancer.weights(tf.constant([0.01, 1.0]), present)
    np.testing.assert_allclose(actual, 2 / 1.01, rtol=1e-5)


def test_random_weights_are_a_softmax_of_normal_numbers():
    balancer, same, other = (make("random", seed=s, scale="mean") for s in (1, 1, 2))
    losses, present = tf.constant(LOSSES, tf.float32), tf.ones((3,), "bool")

    @tf.function(autograph=False)
    def many():
        return tf.map_fn(lambda _: balancer.weights(losses, present), tf.zeros((4000,)))

    draws = many().numpy()
    np.testing.assert_array_equal(weights(same), draws[0])
    np.testing.assert_array_equal(weights(same), draws[1])
    assert not np.allclose(weights(other), draws[0])
    sample = np.random.default_rng(0).normal(size=(100_000, 3))
    expected = scipy.special.softmax(sample, axis=1)
    np.testing.assert_allclose(draws.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=0), 1 / 3, atol=0.015)
    np.testing.assert_allclose(
        np.quantile(draws, [0.1, 0.5, 0.9]),
        np.quantile(expected, [0.1, 0.5, 0.9]),
        atol=0.02,
    )


class Losses:
    """A probe with given losses after the step."""

    def __init__(self, after):
        self.after = after

    def weights(self):
        return []

    def losses(self, weights, part=None):
        return tf.unstack(tf.constant(self.after, tf.float32))

    def total(self, value):
        return value


def test_famo_follows_the_gains():
    balancer = make("famo", learning_rate=0.1, weight_decay=0.01, scale="mean")
    batches = [([0.7, 2.0, 0.3], [0.6, 1.0, 0.31]), ([0.5, 1.0, 0.3], [0.4, 1.2, 0.2])]
    for before, after in batches:
        learn(balancer, before, probe=Losses(after))

    def gradient(before, after):
        gain = np.log(before) - np.log(after)
        return lambda w: (
            slope(lambda v: tf.reduce_sum(tf.nn.softmax(v) * gain), w) + 0.01 * w
        )

    logits = adam(np.zeros(3), [gradient(*batch) for batch in batches], rate=0.1)
    np.testing.assert_allclose(balancer.variables["logits"], logits, rtol=1e-4)
    raw = scipy.special.softmax(logits) / LOSSES
    np.testing.assert_allclose(weights(balancer), raw / raw.sum(), rtol=1e-4)


def test_gradnorm_follows_the_published_objective():
    balancer = make("gradnorm", alpha=1.5, learning_rate=0.1)
    norms = np.array([0.2, 3.0, 1.0])
    batches = [LOSSES, np.array([0.6, 0.5, 0.2])]
    for losses in batches:
        learn(balancer, losses, gradient_norms=tf.constant(norms, tf.float32))

    def gradient(losses):
        rate = losses / LOSSES
        rate = tf.constant((rate / rate.mean()) ** 1.5)

        def objective(v):
            weighted = 3 * tf.nn.softmax(v) * norms
            target = tf.stop_gradient(tf.reduce_mean(weighted) * rate)
            return tf.reduce_sum(tf.abs(weighted - target))

        return lambda v: slope(objective, v)

    logits = adam(np.zeros(3), [gradient(losses) for losses in batches], rate=0.1)
    np.testing.assert_allclose(balancer.variables["logits"], logits, rtol=1e-4)
    np.testing.assert_allclose(
        weights(balancer), 3 * scipy.special.softmax(logits), rtol=1e-4
    )


def test_gradnorm_waits_for_a_first_loss_that_can_be_divided_by():
    balancer = make("gradnorm")
    norms = tf.constant([0.2, 3.0, 1.0])
    learn(balancer, [np.nan, 0.0, 1.0], gradient_norms=norms)
    learn(balancer, LOSSES, gradient_norms=norms)
    np.testing.assert_allclose(
        balancer.variables["first_losses"], [*LOSSES[:2], 1.0], rtol=1e-6
    )


class Quadratic:
    """Losses ½ (θ − c)ᵀ A (θ − c), with an A and c of each task and half."""

    def __init__(self):
        rng = np.random.default_rng(3)
        roots = rng.normal(size=(2, 3, 4, 4))
        self.matrices = tf.constant(roots @ roots.swapaxes(-1, -2), tf.float32)
        self.centres = tf.constant(rng.normal(size=(2, 3, 4)), tf.float32)
        self.point = tf.constant(rng.normal(size=4), tf.float32)

    def weights(self):
        return [self.point]

    def losses(self, weights, part=None):
        assert part is not None
        offset = weights[0] - self.centres[part]
        return tf.unstack(
            0.5 * tf.einsum("ti,tij,tj->t", offset, self.matrices[part], offset)
        )

    def total(self, value):
        return value


@pytest.mark.parametrize("primary", [None, ["c"]])
def test_auto_lambda_descends_the_validation_loss_after_a_step(primary):
    probe = Quadratic()
    balancer = make("auto_lambda", primary=primary, initial=0.7, learning_rate=0.05)
    np.testing.assert_allclose(weights(balancer), 0.7, rtol=1e-6)
    chosen = [0, 1, 2] if primary is None else [2]

    def validation(shares):
        shares = tf.cast(shares, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(probe.point)
            total = tf.reduce_sum(shares * tf.stack(probe.losses([probe.point], 0)))
        ahead = probe.point - 0.1 * tape.gradient(total, probe.point)
        losses = probe.losses([ahead], 1)
        return tf.add_n([losses[index] for index in chosen])

    exact = slope(validation, np.full(3, 0.7))
    learn(balancer, probe=probe)
    momentum = balancer.variables["adam_momentum"].numpy()
    np.testing.assert_allclose(momentum / 0.1, exact, rtol=2e-2)
    np.testing.assert_allclose(
        balancer.variables["lambda"], 0.7 - 0.05 * np.sign(exact), rtol=1e-4
    )
