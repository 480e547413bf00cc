from __future__ import annotations

import pytest

from sad_deploy.attack_config import Attack, AttackKind
from sad_deploy.recipe import Options, resolve
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError


def test_nothing_given_is_the_embedded_default_with_a_sweep():
    recipe = resolve(Options())
    assert (recipe.model, recipe.data, recipe.weights, recipe.eta) == ("digits", "digits", None, None)
    assert recipe.attack == Attack(AttackKind.PGD, epsilon=8 / 255, steps=10)
    assert (recipe.momentum, recipe.batch_size, recipe.max_drop) == (None, 128, 2.0)


def test_paper_is_the_papers_settings():
    recipe = resolve(Options(paper=True))
    assert recipe.attack == Attack(AttackKind.PGD, epsilon=8 / 255, steps=20)
    assert (recipe.eta, recipe.momentum, recipe.normalization) == (0.8, 0.1, Normalization.NONE)
    assert not recipe.clip


def test_paper_accepts_what_agrees_with_it():
    agreeing = Options(
        paper=True, eta="0.8", normalization=Normalization.NONE, steps=20, epsilon="8/255", clip=False
    )
    assert resolve(agreeing) == resolve(Options(paper=True))


def test_paper_refuses_all_that_contradicts_it_at_once():
    with pytest.raises(UserError) as error:
        resolve(
            Options(
                paper=True,
                eta="auto",
                normalization=Normalization.RMS,
                clip=True,
                attack=AttackKind.FGSM,
                epsilon="0.1",
                max_drop=1.0,
            )
        )
    for option in ("--eta", "--normalization", "--clip", "--attack", "--epsilon", "--max-drop"):
        assert option in error.value.message


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("0", 0.0), ("4e-2", 0.04)])
def test_epsilon_may_be_a_fraction(text, value):
    assert resolve(Options(epsilon=text)).attack.epsilon == pytest.approx(value)


@pytest.mark.parametrize("text", ["x", "8/0", "8/", "-1", "nan", "inf", "1/2/3"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="--epsilon"):
        resolve(Options(epsilon=text))
    with pytest.raises(UserError, match="--eta"):
        resolve(Options(eta=text))


def test_epsilon_in_levels_of_255_is_refused():
    with pytest.raises(UserError) as error:
        resolve(Options(epsilon="8"))
    assert "8/255" in str(error.value.hint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(steps=5, attack=AttackKind.FGSM), "--steps does not apply"),
        (Options(epsilon="0.1", attack=AttackKind.EQ3), "--epsilon does not apply"),
        (Options(max_drop=1.0, eta="0.1"), "--max-drop"),
        (Options(allow_drop=True, eta="0.1"), "--allow-drop"),
        (Options(eta_grid="0.1", eta="0.1"), "--eta-grid"),
        (Options(eta_grid="0.1,much"), "--eta-grid takes values"),
        (Options(eta_grid="0"), "--eta-grid takes values"),
        (Options(mean="0.5"), "go together"),
        (Options(mean="0.5", std="0.5,0.5,0.5"), "1 values, --std 3"),
        (Options(mean="a", std="1"), "--mean takes"),
        (Options(mean="0.5,0.5", std="1,1"), "one value, three .* or four"),
        (Options(model="resnet18"), "--data is missing"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        resolve(options)


def test_a_grid_is_sorted_and_has_each_value_once():
    assert resolve(Options(eta_grid="0.5,0.1,0.5")).eta_grid == (0.1, 0.5)
    assert resolve(Options()).eta_grid is None
