"""The panel's buttons, text and menu say one plan, its page says the answer, and without widgets it is a table."""

import re

import pytest

from toastlib.evaluation.interactive import Playground
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.encoder import Encoder
from toastlib.plots.panel import Panel, somebody_is_there
from toastlib.statistics.collect import collect_moments

HEAD = HeadConfig(seeds=1, min_steps=0)
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def playground(tiny_model, tiny_images):
    encoder = Encoder(tiny_model("vit", num_hidden_layers=6), name="tiny")
    return Playground(encoder, tiny_images, collect_moments(encoder, tiny_images.train, folds=0), head=HEAD)


@pytest.fixture
def panel(playground):
    """A panel whose widgets are made, on plan 1->3."""
    panel = Panel(playground, "1->3")
    panel.widget()
    return panel


def pressed(panel) -> list[int]:
    return [k for k, button in enumerate(panel.blocks) if button.value]


def test_the_controls_stand_on_the_given_plan(panel, playground):
    assert pressed(panel) == [2, 3]
    assert (panel.plan.value, panel.translator.value) == ("1->3", "linear")
    assert panel.page.value == panel.answer_page(playground.answer("1->3", "linear"))
    assert panel.widget() is panel.widget()


def test_a_pressed_block_is_removed_and_answered(panel, playground):
    panel.blocks[5].value = True
    assert panel.plan.value == "1->3 4->5"
    assert panel.page.value == panel.answer_page(playground.answer("1->3 4->5"))
    panel.blocks[2].value = False
    assert panel.plan.value == "2->3 4->5"


def test_pressed_blocks_are_told_apart_by_more_than_their_colour(panel):
    assert [button.icon for button in panel.blocks] == ["", "", "times", "times", "", ""]


def test_a_typed_plan_presses_its_blocks_and_keeps_its_spans(panel, playground):
    panel.plan.value = "0->1 1->2"
    assert pressed(panel) == [1, 2]
    assert panel.plan.value == "0->1 1->2"
    assert panel.page.value == panel.answer_page(playground.answer("0->1 1->2"))


def test_the_translator_changes_the_answer(panel, playground):
    panel.translator.value = "identity"
    assert panel.page.value == panel.answer_page(playground.answer("1->3", "identity"))


def test_nothing_removed_is_the_original(panel, playground):
    for button in panel.blocks:
        button.value = False
    assert panel.plan.value == ""
    assert panel.page.value == panel.answer_page(playground.original)
    assert playground.answer("") is playground.original


@pytest.mark.parametrize(("typed", "sentence"), [("1->9", "leaves the model"), ("<b>", "is not a span")])
def test_a_wrong_plan_is_answered_by_one_sentence(panel, typed, sentence):
    panel.plan.value = typed
    assert 'role="alert"' in panel.page.value
    assert sentence in panel.page.value
    assert "'<b>'" not in panel.page.value
    assert pressed(panel) == [2, 3]
    panel.plan.value = "0->1"
    assert "alert" not in panel.page.value


def test_the_page_shows_accuracy_size_and_pictures(panel, playground):
    answer = playground.answer("1->3")
    page = panel.answer_page(answer)
    assert f"<b>{answer.accuracy:.1f}</b>" in page
    assert f"<b>{answer.parameters / 1e6:.3g}</b>" in page
    assert page.count("<img ") == 10
    assert page.count("data:image/png;base64,") == 10
    wrong = (answer.predicted[panel.shown] != playground.labels[panel.shown]).sum()
    wrong += (playground.original.predicted[panel.shown] != playground.labels[panel.shown]).sum()
    assert page.count("✗") == wrong


def test_predictions_are_class_names_of_the_shown_images(panel, playground):
    table = panel.predictions([playground.answer("1->3", "identity")])
    names = playground.class_names
    assert list(table.index) == ["true class", "identity"]
    assert list(table.columns) == panel.shown
    assert list(table.loc["true class"]) == [names[playground.labels[k]] for k in panel.shown]


def test_without_widgets_it_is_a_table(playground):
    bundle = Panel(playground, "1->3")._repr_mimebundle_()
    assert bundle.keys() == {"text/html", "text/plain"}
    for name in ("original", *playground.translators):
        assert f"<td>{name}</td>" in bundle["text/html"]
        assert re.search(rf"^ *{name} ", bundle["text/plain"], re.M)
    assert "<script" not in bundle["text/html"]


def test_without_widgets_none_is_made(playground, monkeypatch):
    monkeypatch.setattr(Panel, "widget", lambda self: pytest.fail("a widget was made: its state would be saved"))
    Panel(playground, "1->3")._repr_mimebundle_()


def test_where_widgets_run_both_are_handed_over(playground, monkeypatch):
    monkeypatch.setattr("toastlib.plots.panel.somebody_is_there", lambda: True)
    bundle = Panel(playground, "1->3")._repr_mimebundle_()
    assert bundle.keys() == {WIDGET, "text/html", "text/plain"}
    assert bundle["text/plain"].split()[:2] == ["translator", "accuracy"]


@pytest.mark.parametrize(("name", "expected"), [("JPY_SESSION_NAME", True), ("JPY_PARENT_PID", False)])
def test_a_jupyter_server_is_known_by_the_name_of_its_session(monkeypatch, name, expected):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setattr("IPython.get_ipython", lambda: InteractiveShell.instance())
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setenv(name, "here.ipynb")
    assert somebody_is_there() is expected
    InteractiveShell.clear_instance()


def test_a_script_has_nobody_to_press_buttons():
    assert not somebody_is_there()


def test_names_in_the_page_are_escaped(playground, monkeypatch):
    monkeypatch.setattr(playground, "class_names", ("<i>one</i>", "two", "three"))
    page = Panel(playground, "1->3")._repr_mimebundle_()["text/html"]
    assert "&lt;i&gt;one" in page
    assert "<i>one" not in page
