import warnings
from itertools import product

import numpy as np
import pytest
from scipy.stats import kendalltau, multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel

from nas.search import surrogate
from nas.search.encoding import Encoding
from nas.search.surrogate import ADDITIVE, LENGTHS, NOISES, OPS, Shape, Surrogate, shape_for
from nas.space import load_space
from tests.search.test_study import SPACES

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)
ENCODING = Encoding([SPACE])
PLAIN = [
    Shape(additive=0.5, length=0.3, noise=0.01),
    Shape(additive=0.0, length=0.1, noise=1e-4),
    Shape(additive=1.0, length=1.0, noise=0.1),
    Shape(additive=0.5, length=0.3, noise=0.01, ops=0.6),
]
SHAPES = [*PLAIN, Shape(additive=0.3, length=0.5, noise=0.01, logarithmic=True)]


def drawn(space, count, seed=0):
    """Different architectures."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        found[space.sample(rng, uniform_over="choices")] = None
    return list(found)


def additive(space, seed=0):
    """A function that adds something up for every option of every choice."""
    rng = np.random.default_rng(seed)
    worth = {key: rng.standard_normal(len(o)) for key, o in space.parameters.items()}

    def value(architecture):
        return 10 + sum(
            worth[key][space.parameters[key].index(chosen)] for key, chosen in architecture.choices
        )

    return value


SOME = drawn(SPACE, 90)
KNOWN, WANTED = ENCODING(SOME[:60]), ENCODING(SOME[60:])
VALUES = np.array([additive(SPACE)(each) for each in SOME[:60]])
VALUES = np.abs(VALUES + np.random.default_rng(1).normal(0, 0.3, 60))


def covariance(model, *rows):
    """The prior covariance, without noise, of several lots of architectures one after another."""
    lots = [model._features(each) for each in rows]
    return np.block([[surrogate._kernel(a, b, model.shape) for b in lots] for a in lots])


def standardised(values, shape):
    y = np.log(values) if shape.logarithmic else values
    return (y - y.mean()) / y.std(), y.mean(), y.std()


def textbook(model, values, supposed=()):
    """Means and deviations of `WANTED` by an explicit inverse, some observed at their means."""
    noise = model.shape.noise
    both = covariance(model, KNOWN, WANTED)
    y, mean, scale = standardised(values, model.shape)
    n = len(y)
    gram = both[:n, :n] + noise * np.eye(n)
    means = both[n:, :n] @ np.linalg.inv(gram) @ y
    variance = y @ np.linalg.inv(gram) @ y / n
    seen = [*range(n), *(n + at for at in supposed)]
    inverse = np.linalg.inv(both[np.ix_(seen, seen)] + noise * np.eye(len(seen)))
    cross = both[np.ix_(range(n, len(both)), seen)]
    left = np.diag(both)[n:] - np.einsum("ij,jk,ik->i", cross, inverse, cross) + noise
    deviations = scale * np.sqrt(variance * left)
    means = mean + scale * means
    if model.shape.logarithmic:
        typical = np.exp(means + deviations**2 / 2)
        return typical, typical * np.sqrt(np.exp(deviations**2) - 1)
    return means, deviations


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_prior_covariance_is_one(shape):
    found = covariance(Surrogate(KNOWN, VALUES, ENCODING, shape), KNOWN, WANTED)
    assert found == pytest.approx(found.T)
    assert np.linalg.eigvalsh(found).min() > -1e-9 * np.linalg.eigvalsh(found).max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mean_and_deviation_are_those_of_an_explicit_inverse(shape):
    model = Surrogate(KNOWN, VALUES, ENCODING, shape)
    means, deviations = model.predict(WANTED)
    expected = textbook(model, VALUES)
    assert means == pytest.approx(expected[0], rel=1e-5)
    assert deviations == pytest.approx(expected[1], rel=1e-3)


class Precomputed(Kernel):
    """Covariances that are known, for rows that are positions; scikit-learn asks for them."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, x, y=None, eval_gradient=False):
        rows = x[:, 0].astype(int)
        columns = rows if y is None else y[:, 0].astype(int)
        return self.matrix[np.ix_(rows, columns)]

    def diag(self, x):
        return np.diag(self(x))

    def is_stationary(self):
        return False


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_mean_and_deviation_are_those_of_scikit_learn(shape):
    model = Surrogate(KNOWN, VALUES, ENCODING, shape)
    y, _, _ = standardised(VALUES, shape)
    prior = covariance(model, KNOWN, WANTED)
    n = len(y)
    noisy = prior[:n, :n] + shape.noise * np.eye(n)
    variance = y @ np.linalg.solve(noisy, y) / n
    # The variance that makes the values likeliest multiplies all of the covariance.
    theirs = GaussianProcessRegressor(
        Precomputed(variance * prior),
        alpha=variance * shape.noise,
        optimizer=None,
        normalize_y=True,
    )
    theirs.fit(np.arange(n)[:, None], VALUES)
    expected, without_noise = theirs.predict(np.arange(n, len(prior))[:, None], return_std=True)
    noise = VALUES.std() * np.sqrt(variance * shape.noise)
    means, deviations = model.predict(WANTED)
    assert means == pytest.approx(expected, rel=1e-5)
    assert deviations == pytest.approx(np.hypot(without_noise, noise), rel=1e-3)


def test_values_without_noise_are_interpolated():
    for shape in (Shape(0.5, 0.3, 0.0), Shape(0.2, 0.1, 0.0), Shape(0.2, 0.3, 0.0, 0.0, True)):
        model = Surrogate(KNOWN, VALUES, ENCODING, shape)
        means, deviations = model.predict(KNOWN)
        assert means == pytest.approx(VALUES, abs=1e-3 * VALUES.std())
        assert (deviations < 0.01 * VALUES.std()).all()
        assert (model.predict(WANTED)[1] > deviations.max()).all()


def test_noise_lets_values_be_missed():
    model = Surrogate(KNOWN, VALUES, ENCODING, Shape(0.5, 0.3, 0.5))
    assert np.abs(model.predict(KNOWN)[0] - VALUES).max() > 0.1 * VALUES.std()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_supposing_equals_refitting_with_that_observation_at_its_mean(shape):
    model = Surrogate(KNOWN, VALUES, ENCODING, shape)
    posterior = model.posterior(WANTED)
    _, before = posterior.marginals()
    supposed = []
    for position in (3, 17, 4, 17, 29):
        posterior.suppose(position)
        supposed.append(position)
        means, deviations = posterior.marginals()
        expected = textbook(model, VALUES, supposed)
        assert deviations == pytest.approx(expected[1], rel=1e-3, abs=1e-4 * VALUES.std())
        assert means == pytest.approx(expected[0], rel=1e-4)
        assert (deviations <= before * (1 + 1e-9)).all()
        before = deviations
    # The model itself has learned nothing.
    assert model.predict(WANTED)[1] == pytest.approx(textbook(model, VALUES)[1], rel=1e-3)


def test_what_is_believed_of_one_does_not_depend_on_what_else_is_asked():
    model = Surrogate(KNOWN, VALUES, ENCODING, PLAIN[0])
    together = model.predict(WANTED)
    for position in (0, 7, 29):
        alone = model.predict(ENCODING([SOME[60 + position]]))
        assert alone[0] == pytest.approx(together[0][[position]])
        assert alone[1] == pytest.approx(together[1][[position]])


@pytest.mark.parametrize("factor", [2.0**40, 2.0**-40, 1e12, 1e-12])
def test_beliefs_have_the_units_of_the_values(factor):
    for shape in SHAPES:
        means, deviations = Surrogate(KNOWN, VALUES, ENCODING, shape).predict(WANTED)
        found = Surrogate(KNOWN, factor * VALUES, ENCODING, shape).predict(WANTED)
        assert found[0] == pytest.approx(factor * means, rel=1e-6)
        assert found[1] == pytest.approx(factor * deviations, rel=1e-6)
    assert shape_for(KNOWN, factor * VALUES, ENCODING) == shape_for(KNOWN, VALUES, ENCODING)


def likelihood(known, values, shape):
    """The logarithm of the values' own density, with the variance that makes it largest."""
    model = Surrogate(known, values, ENCODING, shape)
    y, _, scale = standardised(values, shape)
    gram = covariance(model, known) + (shape.noise + 1e-8) * np.eye(len(y))
    variance = y @ np.linalg.solve(gram, y) / len(y)
    stretched = np.log(values).sum() if shape.logarithmic else 0.0
    density = multivariate_normal.logpdf(y, cov=variance * gram)
    return density - len(y) * np.log(scale) - stretched


def choices_of_shape(values):
    """Those that `shape_for` chooses among."""
    ways = (False, True) if (values > 0).all() else (False,)
    return [Shape(*each) for each in product(ADDITIVE, LENGTHS, NOISES, OPS, ways)]


def worlds():
    """Values of one and the same 60 architectures that have different shapes."""
    rng = np.random.default_rng(5)
    smooth = np.array([additive(SPACE, 3)(each) for each in SOME[:60]])
    smooth = (smooth - smooth.mean()) / smooth.std()
    noise = rng.standard_normal(60)
    return {"additive": smooth, "noise": noise, "mixed": smooth + noise, "large": np.exp(smooth)}


@pytest.mark.parametrize("world", worlds())
def test_the_shape_is_the_likeliest(world):
    values = worlds()[world]
    found = shape_for(KNOWN, values, ENCODING)
    likely = {shape: likelihood(KNOWN, values, shape) for shape in choices_of_shape(values)}
    alike = [s for s in likely if (s.additive, s.length) == (found.additive, found.length)]
    way = [s for s in alike if s.logarithmic == found.logarithmic]
    assert likely[found] == pytest.approx(max(likely[shape] for shape in way), abs=1e-6)
    # Not all are compared with all: what is found may be a little less likely than the best.
    assert likely[found] > max(likely.values()) - 1.5


def test_the_shape_is_recognised():
    found = {name: shape_for(KNOWN, values, ENCODING) for name, values in worlds().items()}
    assert found["noise"].noise == max(NOISES)
    assert found["additive"].noise == min(NOISES)
    assert not found["additive"].logarithmic
    assert found["large"].logarithmic


@pytest.mark.parametrize("shape", [PLAIN[0], PLAIN[1], PLAIN[3]], ids=str)
def test_the_same_value_everywhere_is_expected_everywhere(shape):
    for value in (0.0, 0.1, -3.0, 1e9):
        same = np.full(60, value)
        model = Surrogate(KNOWN, same, ENCODING, shape)
        means, deviations = model.predict(WANTED)
        assert means == pytest.approx(same[:30], rel=1e-6, abs=1e-6)
        assert np.isfinite(deviations).all()
        assert (deviations >= 0).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert shape_for(KNOWN, same, ENCODING) in choices_of_shape(same)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_observations_are_enough_to_say_something(count):
    known, values = ENCODING(SOME[:count]), VALUES[:count]
    shape = shape_for(known, values, ENCODING)
    for each in (shape, PLAIN[0]):
        means, deviations = Surrogate(known, values, ENCODING, each).predict(ENCODING(SOME))
        assert np.isfinite(means).all()
        assert np.isfinite(deviations).all()
        assert means[:count] == pytest.approx(values, abs=0.1 + values.std())


def test_several_spaces_in_one_model():
    encoding = Encoding(SPACES)
    lots = [drawn(space, 30) for space in SPACES]
    offsets = [0.0, 5.0, -5.0]
    known = encoding([each for lot in lots for each in lot[:20]])
    values = np.concatenate(
        [
            [offset + 0.3 * additive(space)(each) for each in lot[:20]]
            for space, lot, offset in zip(SPACES, lots, offsets, strict=True)
        ]
    )
    model = Surrogate(known, values, encoding, shape_for(known, values, encoding))
    for space, lot, offset in zip(SPACES, lots, offsets, strict=True):
        expected = np.array([offset + 0.3 * additive(space)(each) for each in lot[20:]])
        means, deviations = model.predict(encoding(lot[20:]))
        assert np.abs(means - expected).mean() < 0.75
        assert (deviations > 0).all()


RANKED = {"squeezenet_tiny": (8, 0.9), "mobilenet_v3_small": (32, 0.8), "shufflenet": (32, 0.7)}


@pytest.mark.parametrize("name", RANKED)
def test_unseen_architectures_are_ranked_by_what_their_choices_add_up_to(name):
    size, bound = RANKED[name]
    space = load_space(name, image_size=size, channels=1)
    encoding = Encoding([space])
    some = drawn(space, 200)
    known, wanted = encoding(some[:100]), encoding(some[100:])
    taus = []
    for seed in range(3):
        values = np.array([additive(space, seed)(each) for each in some])
        model = Surrogate(known, values[:100], encoding, shape_for(known, values[:100], encoding))
        taus.append(kendalltau(model.predict(wanted)[0], values[100:]).statistic)
    assert np.mean(taus) > bound


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_errors_are_about_as_large_as_expected(noise):
    """In units of the deviation that is believed, the noise of an observation included."""
    some = drawn(SPACE, 300)
    known, wanted = ENCODING(some[:100]), ENCODING(some[100:])
    surprises = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        values = np.array([additive(SPACE, seed)(each) for each in some])
        # Neighbouring choices that help each other: nothing that adds up.
        values += np.array([np.sin(3 * value) for value in values])
        seen = values + noise * rng.standard_normal(len(values))
        model = Surrogate(known, seen[:100], ENCODING, shape_for(known, seen[:100], ENCODING))
        means, deviations = model.predict(wanted)
        surprises.append(np.sqrt(np.mean((means - seen[100:]) ** 2 / deviations**2)))
    assert 0.4 < np.mean(surprises) < 2.5
