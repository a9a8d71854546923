import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from fakereal.labels import FAKE, REAL
from fakereal.model import calibration, metrics
from fakereal.model.calibration import DecisionRule


def simulated(count, temperature=1.0, seed=0):
    """Labels drawn from known probabilities, and network outputs that are too sure by the given temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels, 1 / (1 + np.exp(-logits * temperature))


def test_the_label_is_fake_from_the_threshold_on():
    p_real = np.array([0.9, 0.5, 0.4, 0.1])
    assert calibration.labels(p_real, DecisionRule()).tolist() == [REAL, FAKE, FAKE, FAKE]
    assert calibration.labels(p_real, DecisionRule(threshold=0.55)).tolist() == [REAL, REAL, FAKE, FAKE]


def test_inside_the_band_the_verdict_is_uncertain_but_the_label_stays():
    decision = DecisionRule(band=(0.3, 0.7))
    p_real = np.array([0.9, 0.6, 0.4, 0.1])
    assert calibration.verdicts(p_real, decision) == ["real", "uncertain", "uncertain", "fake"]
    assert calibration.labels(p_real, decision).tolist() == [REAL, REAL, FAKE, FAKE]


def test_confidence_is_the_probability_of_the_label_given():
    assert calibration.confidence(np.array([0.9, 0.2]), DecisionRule()) == pytest.approx([0.9, 0.8])


def test_a_network_that_is_sure_to_the_last_bit_stays_finite():
    for decision in (DecisionRule(), DecisionRule(temperature=0.05), DecisionRule(temperature=20)):
        assert np.isfinite(calibration.confidence(np.array([0.0, 1.0]), decision)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_scaling_finds_how_much_too_sure_the_outputs_are(temperature):
    labels, p_real = simulated(20_000, temperature)
    assert calibration.fit_temperature(labels, p_real) == pytest.approx(temperature, rel=0.07)


def test_the_threshold_stays_at_one_half_where_another_is_only_chance():
    labels, p_real = simulated(200)
    assert calibration.choose_threshold(labels, 1 - p_real) == 0.5


def test_the_threshold_moves_where_another_is_clearly_better():
    labels = np.array([FAKE] * 100 + [REAL] * 100)
    p_fake = np.concatenate([np.linspace(0.30, 0.49, 100), np.linspace(0.01, 0.2, 100)])
    threshold = calibration.choose_threshold(labels, p_fake)
    assert 0.2 < threshold < 0.31
    # ... and the band is around it, not around 0.5
    assert calibration.choose_band(labels, p_fake, threshold) == (threshold, threshold)


def test_outside_the_band_the_promised_share_is_right():
    labels, p_real = simulated(5_000)
    decision = calibration.fit_decision_rule(labels, p_real)
    measured = metrics.measure(labels, p_real, decision)
    assert measured["accuracy"] < calibration.CERTAIN_ACCURACY <= measured["accuracy_outside_band"]
    assert 0.05 < measured["uncertain_share"] < 0.9


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.2])
def test_a_detector_that_only_guesses_calls_most_uncertain_however_close_its_outputs_lie(spread):
    rng = np.random.default_rng(0)
    labels, p_real = rng.integers(0, 2, 200), 1 / (1 + np.exp(-rng.normal(0, spread, 200)))
    assert metrics.measure(labels, p_real, calibration.fit_decision_rule(labels, p_real))["uncertain_share"] > 0.8


def test_a_detector_that_is_always_right_has_no_band():
    labels = np.array([FAKE, REAL] * 50)
    assert calibration.fit_decision_rule(labels, np.where(labels == REAL, 0.999, 0.001)).band == (0.5, 0.5)


def test_the_figures_are_scikit_learns():
    labels, p_real = simulated(500)
    measured = metrics.measure(labels, p_real, DecisionRule())
    predicted = (p_real > 0.5).astype(int)
    expected = sklearn_metrics.classification_report(labels, predicted, output_dict=True)
    assert measured["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert measured["f1_macro"] == pytest.approx(expected["macro avg"]["f1-score"], abs=1e-6)
    for label, name in enumerate(("fake", "real")):
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert measured[f"{ours}_{name}"] == pytest.approx(expected[str(label)][theirs], abs=1e-6)
    assert measured["confusion"] == sklearn_metrics.confusion_matrix(labels, predicted).tolist()
    assert measured["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, p_real), abs=1e-6)
    assert measured["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, p_real), abs=1e-6)


def test_tied_scores_count_half_in_the_roc_auc():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.5, 0.5, 0.2, 0.5])
    assert metrics.roc_auc(labels, scores) == sklearn_metrics.roc_auc_score(labels, scores)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(60):
        labels, p_real = simulated(300, seed=seed)
        low, high = metrics.measure(labels, p_real, DecisionRule())["intervals"]["accuracy"]
        hits += low <= 0.7781 <= high  # the accuracy of this simulation over ten million images
    assert 53 <= hits <= 60


def test_the_same_labels_and_outputs_give_the_same_figures_to_the_last_digit():
    labels, p_real = simulated(200)
    assert metrics.measure(labels, p_real, DecisionRule()) == metrics.measure(labels, p_real, DecisionRule())


def test_a_threshold_never_calls_all_images_alike():
    labels = np.array([REAL] * 180 + [FAKE] * 20)
    p_fake = np.random.default_rng(0).uniform(0.4, 0.9, 200)
    assert p_fake.min() < calibration.choose_threshold(labels, p_fake) < p_fake.max()


def test_a_threshold_never_cuts_through_images_of_the_same_output():
    labels = np.array([REAL] * 100 + [REAL] * 20 + [FAKE] * 80)
    p_fake = np.array([0.6] * 100 + [0.9] * 100)
    threshold = calibration.choose_threshold(labels, p_fake)
    assert 0.6 < threshold < 0.9
    assert calibration.choose_threshold(labels, np.full(200, 0.3)) == 0.5


def test_a_dozen_right_answers_are_no_reason_for_near_certainty():
    labels = np.array([FAKE, REAL] * 6)
    p_real = np.where(labels == REAL, np.linspace(0.55, 0.65, 12), np.linspace(0.35, 0.45, 12))
    decision = calibration.fit_decision_rule(labels, p_real)
    assert calibration.confidence(p_real, decision).max() < 0.97


def test_ten_right_answers_are_no_proof_of_perfection():
    labels = np.array([FAKE, REAL] * 5)
    measured = metrics.measure(labels, np.where(labels == REAL, 0.9, 0.1), DecisionRule())
    assert measured["f1_macro"] == measured["intervals"]["f1_macro"][1] == 1.0
    assert measured["intervals"]["accuracy"][0] < 0.9
    assert measured["intervals"]["roc_auc"] == [0.4, 1.0]
    many = np.tile(labels, 100)
    low, high = metrics.measure(many, np.where(many == REAL, 0.9, 0.1), DecisionRule())["intervals"]["roc_auc"]
    assert 0.99 < low < high == 1.0
