"""Labels out of step with the network are found, named and stop the calibration."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from sad_deploy.label_order import check_label_order, find_permutation
from sad_runtime.errors import UserError

RNG = np.random.default_rng(0)


def seen(order, *, each=10, right=0.95):
    """Labels by folder, and predictions of a network for which folder i is output ``order[i]``."""
    labels = np.repeat(np.arange(len(order)), each)
    predictions = np.asarray(order)[labels]
    wrong = RNG.random(len(labels)) > right
    predictions[wrong] = RNG.integers(0, len(order), wrong.sum())
    return labels, predictions


def test_numbers_sorted_as_words_are_named():
    classes = sorted(str(k) for k in range(12))
    with pytest.raises(UserError, match="another order") as caught:
        check_label_order(*seen([int(name) for name in classes]), classes)
    assert "in the order of numbers" in caught.value.hint
    assert "'10' are classified as output 10" in caught.value.message


def test_any_other_order_is_given_as_the_images_have_it():
    classes = ["four", "one", "three", "two", "zero"]
    with pytest.raises(UserError) as caught:
        check_label_order(*seen([4, 1, 3, 2, 0]), classes)
    assert caught.value.hint.endswith("zero, one, two, three, four")


def test_capital_letters_first_are_named():
    classes = sorted(["Zebra", "ant", "Bee", "cow"])
    order = sorted(classes, key=str.lower)
    with pytest.raises(UserError) as caught:
        check_label_order(*seen([order.index(name) for name in classes]), classes)
    assert "whatever their case" in caught.value.hint


def test_two_exchanged_classes_of_ten_are_found_though_most_images_fit():
    order = [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]
    assert find_permutation(*seen(order)) == {3: 4, 4: 3}


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guesses_are_at_chance(classes):
    labels = np.repeat(np.arange(classes), 400 // classes)
    with pytest.raises(UserError, match="at chance"):
        check_label_order(labels, np.zeros_like(labels), [str(k) for k in range(classes)])


@pytest.mark.parametrize(("right", "is_chance"), [(60, True), (75, False)])
def test_twelve_of_a_hundred_right_among_ten_classes_is_chance(right, is_chance):
    labels = np.repeat(np.arange(10), 50)
    predictions = (labels + 1 + np.arange(500) % 7) % 10
    predictions[np.arange(0, 500, 500 // right)[:right]] = labels[np.arange(0, 500, 500 // right)[:right]]
    assert (labels == predictions).sum() == right
    with pytest.raises(UserError, match="at chance") if is_chance else contextlib.nullcontext():
        check_label_order(labels, predictions, [str(k) for k in range(10)])


@pytest.mark.parametrize("right", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("each", [1, 3, 20])
def test_a_network_that_is_often_wrong_is_accepted(classes, each, right):
    if classes * each < 50:
        right = max(right, 0.7)  # below it so few images cannot be told from chance
    check_label_order(*seen(range(classes), each=each, right=right), [f"c{k:04}" for k in range(classes)])


def test_classes_that_are_confused_with_one_other_are_no_permutation():
    labels, predictions = seen(range(6), each=20, right=1.0)
    predictions[labels == 2] = 3
    predictions[labels == 4] = 5
    check_label_order(labels, predictions, list("abcdef"))


def test_a_class_without_images_is_fine():
    labels, predictions = seen(range(6), right=1.0)
    some = labels != 2
    check_label_order(labels[some], predictions[some], list("abcdef"))


def test_labels_shifted_by_a_missing_folder_are_found():
    """The network has outputs 0 to 5, the folder of output 2 is missing, so 3 to 5 are one too low."""
    labels, predictions = seen([0, 1, 3, 4, 5], right=1.0)
    assert find_permutation(labels, predictions) == {2: 3, 3: 4, 4: 5}


def test_few_images_say_nothing():
    check_label_order(np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2]), list("abcd"))
    check_label_order(np.zeros(0, int), np.zeros(0, int), list("abcd"))
