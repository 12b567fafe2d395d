"""A panel with buttons: remove blocks, choose a translator, and see accuracy, size and predictions change at once.

Where nobody can press a button (papermill, nbval, nbconvert, a notebook on the web) the panel is a table.
"""

import os
import sys
from collections.abc import Iterable
from html import escape
from typing import Any

import pandas as pd

from toastlib.data.images import picture_url
from toastlib.errors import InputError, need_packages
from toastlib.evaluation.interactive import Answer, Playground
from toastlib.plan import Plan, plan_of
from toastlib.plots.style import COLOURS

ROUNDED = {"accuracy": 1, "lost": 1, "lost_low": 1, "lost_high": 1, "parameters": 3, "gflops": 3}
GREY = "#888888"  # for the original: visible on light and on dark pages
BAR = '<div style="background:{};width:{:.0f}px;height:8px;margin:2px"></div>'
IMAGE = '<img src="{}" alt="image {}" width="48" height="48" style="image-rendering:pixelated">'


class Panel:
    """Controls for a `Playground`; as the last line of a cell it shows itself, as widgets or as a table.

    Parameters
    ----------
    playground, plan, translator
        Source of the answers, and first position of the controls; the table shows this plan.
    pictures
        Number of test images shown with their predictions: those that the original is least sure of.

    Attributes
    ----------
    blocks, plan, translator, page
        Widgets, once `widget` was called: one button per block, a text, a menu, and the answer as HTML.
    """

    def __init__(
        self, playground: Playground, plan: str | Plan = "", translator: str = "linear", *, pictures: int = 10
    ) -> None:
        self.playground = playground
        self.first_plan = playground.answer(plan, translator).plan
        self.first_translator = translator
        self.shown = playground.least_sure(pictures)

    def table(self) -> pd.DataFrame:
        """The original and the plan with each translator, rounded; columns as in `Playground.table`."""
        return self.playground.table(self.first_plan).round(ROUNDED)

    def predictions(self, answers: Iterable[Answer]) -> pd.DataFrame:
        """True and predicted classes of the shown images: one row per answer, one column per image."""
        names = self.playground.class_names
        rows = {"true class": self.playground.labels} | {answer.translator: answer.predicted for answer in answers}
        classes = {row: [names[classes[image]] for image in self.shown] for row, classes in rows.items()}
        return pd.DataFrame.from_dict(classes, orient="index", columns=self.shown)

    def widget(self) -> Any:
        """The controls, an `ipywidgets.VBox`, made once."""
        if not hasattr(self, "_box"):
            self._build()
            self._show()
        return self._box

    def _build(self) -> None:
        need_packages("The panel", ["ipywidgets"], "study")
        from ipywidgets import HTML, Dropdown, HBox, Layout, Text, ToggleButton, VBox

        size = Layout(width="50px", padding="0px", margin="1px")  # room for a cross and two digits
        numbers = range(len(self.playground.encoder.blocks))
        self.blocks = [ToggleButton(description=f"{k}", tooltip=f"remove block {k}", layout=size) for k in numbers]
        plan = str(self.first_plan) if self.first_plan else ""
        self.plan = Text(plan, description="plan", continuous_update=False, placeholder="2->5 7->8")
        names = self.playground.translators
        self.translator = Dropdown(description="translator", options=names, value=self.first_translator)
        self.page, self._setting = HTML(), False
        hint, row = HTML("Press the blocks to remove, or type a plan."), Layout(flex_flow="row wrap")
        self._box = VBox([hint, HBox(self.blocks, layout=row), HBox([self.plan, self.translator]), self.page])
        for button in self.blocks:
            button.observe(lambda _: self._pressed(), "value")
        for words in (self.plan, self.translator):
            words.observe(lambda _: self._show(), "value")

    def _pressed(self) -> None:
        if not self._setting:
            plan = plan_of(k for k, button in enumerate(self.blocks) if button.value)
            self.plan.value = str(plan) if plan else ""

    def _show(self) -> None:
        """Answer the plan in the text, and set the buttons to it."""
        try:
            answer = self.playground.answer(self.plan.value, self.translator.value)
        except InputError as error:
            self.page.value = f'<p role="alert"><b>{escape(str(error))}</b></p>'
            return
        self._setting = True  # these changes are not a person's
        for k, button in enumerate(self.blocks):
            button.value = k in answer.plan.removed
            button.button_style, button.icon = ("warning", "times") if button.value else ("", "")
        self._setting = False
        self.page.value = self.answer_page(answer)

    def answer_page(self, answer: Answer) -> str:
        """One answer as HTML: accuracy and size as bars below the original's, and the pictures."""
        original = self.playground.original
        points = [0 - value for value in (answer.lost, answer.lost_high, answer.lost_low)]
        sizes = [("parameters", "parameters, M", 1e6), ("gflops", "GFLOPs per image", 1)]
        colour, rows = COLOURS.get(answer.translator, GREY) if answer.plan else GREY, []
        for key, name, unit in [("accuracy", "accuracy, %", 1), *sizes]:
            before, after = (getattr(one, key) / unit for one in (original, answer))
            whole, form = (100, ".1f") if key == "accuracy" else (before, ".3g")
            bars = BAR.format(GREY, 220 * before / whole) + BAR.format(colour, 220 * after / whole)
            change = f"{100 * (after / before - 1):+.0f} %"
            rows.append([name, bars, f"{before:{form}} → <b>{after:{form}}</b>", change])
        rows[0][-1] = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*points)
        note = f"{len(self.playground.labels)} test images: {answer.right_to_wrong} turn wrong, "
        note += f"{answer.wrong_to_right} turn right. Answered in {answer.seconds:.2f} s; intervals are of 95 %."
        return _html(rows) + self._pictures([original, answer] if answer.plan else [original]) + f"<p>{note}</p>"

    def page_without_widgets(self) -> str:
        """The table of the first plan and its pictures, as HTML without styles and scripts."""
        names = [name for name in ("identity", "linear") if self.first_plan and name in self.playground.translators]
        answers = [self.playground.original, *(self.playground.answer(self.first_plan, name) for name in names)]
        count, plan = len(self.playground.labels), escape(str(self.first_plan))
        caption = f"<p>Plan {plan}, {count} test images; parameters in millions, GFLOPs per image.</p>"
        return f"{caption}{self.table().to_html(index=False)}{self._pictures(answers)}"

    def _pictures(self, answers: list[Answer]) -> str:
        """The shown images in a row, and below each its class as every answer predicts it."""
        pixels = self.playground.images.pixels
        rows = [["", *(IMAGE.format(picture_url(pixels[k], 64), k) for k in self.shown)]]
        table = self.predictions(answers).map(lambda name: escape(str(name)))
        for name, classes in table.iterrows():
            cells = [one if one == true else f"<b>{one} ✗</b>" for one, true in zip(classes, table.iloc[0])]
            rows.append([escape(str(name)), *cells])
        return _html(rows)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        page = {"text/html": self.page_without_widgets(), "text/plain": self.table().to_string(index=False)}
        return (self.widget()._repr_mimebundle_() if somebody_is_there() else {}) | page


def somebody_is_there() -> bool:
    """Tell whether the notebook is open in Jupyter, VS Code or Colab; papermill, nbval and nbconvert leave no sign."""
    from IPython import get_ipython

    shell = get_ipython()
    signs = ("JPY_SESSION_NAME" in os.environ, "google.colab" in sys.modules)
    return shell is not None and (any(signs) or "__vsc_ipynb_file__" in shell.user_ns)


def _html(rows: list[list[str]]) -> str:
    lines = ("".join(f'<td style="padding:2px 8px">{cell}</td>' for cell in row) for row in rows)
    return f'<table style="text-align:center"><tr>{"</tr><tr>".join(lines)}</tr></table>'
