"""A panel to play with: pick blocks and a translator, and see accuracy, size and predictions change at once.

Here are only the controls and the pages; `Playground` computes what they show. Where nobody can press a
button (papermill, nbval, nbconvert, a notebook on the web) the panel is a table.
"""

import base64
import io
import os
import sys
from collections.abc import Iterable
from html import escape
from typing import Any

import pandas as pd

from toastlib.errors import InputError
from toastlib.evaluation.interactive import Answer, Playground
from toastlib.plan import Plan, plan_of
from toastlib.plots.style import COLOURS

ROUNDED = {"accuracy": 1, "lost": 1, "lost_low": 1, "lost_high": 1, "parameters": 3, "gflops": 3}
THUMBNAIL = 64  # pixels, at most
GREY = "#888888"  # of the original: to be seen on light and on dark pages


class Panel:
    """Controls for a playground; as the last line of a cell it shows itself, as widgets or as a table.

    Parameters
    ----------
    playground
        What answers.
    plan, translator
        Where the controls stand at first; the table shows this plan.
    pictures
        How many test images are shown with their predictions: those that the original is least sure of.

    Attributes
    ----------
    blocks : list of ipywidgets.ToggleButton
        One for each block; pressed ones are removed.
    plan, translator : ipywidgets.Text, ipywidgets.Dropdown
        The same in words.
    page : ipywidgets.HTML
        The answer, or the sentence that says why there is none.

    Examples
    --------
    >>> panel = Panel(Playground(encoder, digits, moments), "2->5")  # doctest: +SKIP
    >>> panel.widget()  # doctest: +SKIP
    >>> panel.blocks[7].value = True  # the same as a click on block 7  # doctest: +SKIP
    """

    def __init__(
        self, playground: Playground, plan: str | Plan = "", translator: str = "linear", pictures: int = 10
    ) -> None:
        self.playground = playground
        self.first_plan = playground.answer(plan, translator).plan
        self.first_translator = translator
        self.shown = playground.least_sure(pictures)

    def table(self) -> pd.DataFrame:
        """The original and the plan with each translator, rounded; the columns are those of `Playground.table`."""
        return self.playground.table(self.first_plan).round(ROUNDED)

    def predictions(self, answers: Iterable[Answer]) -> pd.DataFrame:
        """The classes of the shown images, true and as predicted: one row per answer, one column per image."""
        names = self.playground.class_names
        rows = {"true class": self.playground.labels} | {answer.translator: answer.predicted for answer in answers}
        classes = {row: [names[classes[image]] for image in self.shown] for row, classes in rows.items()}
        return pd.DataFrame.from_dict(classes, orient="index", columns=self.shown)

    def widget(self) -> Any:
        """The controls, an `ipywidgets.VBox`, made once; from then on the panel has the attributes named above."""
        if not hasattr(self, "_box"):
            self._build()
            self._set_plan(self.first_plan)
        return self._box

    def _build(self) -> None:
        from ipywidgets import HTML, Dropdown, HBox, Layout, Text, ToggleButton, VBox

        size = Layout(width="50px", padding="0px", margin="1px")  # room for a cross and two digits
        numbers = map(str, range(len(self.playground.encoder.blocks)))
        self.blocks = [ToggleButton(description=k, tooltip=f"remove block {k}", layout=size) for k in numbers]
        self.plan = Text(description="plan", continuous_update=False, placeholder="2->5 7->8")
        names = {"options": self.playground.translators, "value": self.first_translator}
        self.translator = Dropdown(description="translator", **names)
        self.page = HTML()
        hint = HTML("Press the blocks to remove, or type a plan.")
        row = HBox(self.blocks, layout=Layout(flex_flow="row wrap"))
        self._box = VBox([hint, row, HBox([self.plan, self.translator]), self.page])
        self._setting = False
        for button in self.blocks:
            button.observe(lambda _: self._pressed(), "value")
        self.plan.observe(lambda _: self._typed(), "value")
        self.translator.observe(lambda _: self._show(), "value")

    def _pressed(self) -> None:
        if not self._setting:
            self._set_plan(plan_of(k for k, button in enumerate(self.blocks) if button.value))

    def _typed(self) -> None:
        if self._setting:
            return
        try:
            plan = Plan.parse(self.plan.value).check(len(self.blocks))
        except InputError as error:
            self.page.value = _sentence(error)
        else:
            self._set_plan(plan)

    def _set_plan(self, plan: Plan) -> None:
        """Let buttons and text say this plan, and answer it."""
        self._setting = True  # what follows is no press of a button
        for k, button in enumerate(self.blocks):
            button.value = k in plan.removed
            button.button_style, button.icon = ("warning", "times") if button.value else ("", "")
        self.plan.value = str(plan) if plan else ""
        self._setting = False
        self._show()

    def _show(self) -> None:
        try:
            self.page.value = self.answer_page(self.playground.answer(self.plan.value, self.translator.value))
        except InputError as error:
            self.page.value = _sentence(error)

    def answer_page(self, answer: Answer) -> str:
        """One answer as HTML: accuracy and size beside the original's, and the pictures."""
        original = self.playground.original
        colour = COLOURS[answer.translator] if answer.plan else GREY
        lost, low, high = answer.lost
        points = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(0 - one for one in (lost, high, low)))
        sizes = [(one.parameters / 1e6, one.gflops) for one in (original, answer)]
        meters = [
            _meter("accuracy, %", original.accuracy, answer.accuracy, points, colour, whole=100),
            _meter("parameters, M", sizes[0][0], sizes[1][0], _change(sizes[0][0], sizes[1][0]), colour),
            _meter("GFLOPs per image", sizes[0][1], sizes[1][1], _change(sizes[0][1], sizes[1][1]), colour),
        ]
        worse, better = self.playground.flips(answer)
        images = f"{len(self.playground.labels)} test images: {worse} turn wrong, {better} turn right"
        note = f'<p style="opacity:.7">{images}. Answered in {answer.seconds:.2f} s; intervals are of 95 %.</p>'
        answers = [original, answer] if answer.plan else [original]
        return f"<table>{''.join(meters)}</table>{self._pictures(answers)}{note}"

    def page_without_widgets(self) -> str:
        """The table of the first plan and its pictures, as HTML that needs neither styles nor scripts."""
        names = [name for name in ("identity", "linear") if self.first_plan and name in self.playground.translators]
        answers = [self.playground.original, *(self.playground.answer(self.first_plan, name) for name in names)]
        count, plan = len(self.playground.labels), escape(str(self.first_plan))
        caption = f"<p>Plan {plan}, {count} test images; parameters in millions, GFLOPs per image.</p>"
        return f"{caption}{self.table().to_html(index=False)}{self._pictures(answers)}"

    def _pictures(self, answers: list[Answer]) -> str:
        """The shown images in a row, and below each its class as every answer has it."""
        table = self.predictions(answers)
        images = "".join(f"<td>{_picture(self.playground.images.pixels[k], k)}</td>" for k in self.shown)
        rows = [f"<tr><td></td>{images}</tr>"]
        for name, classes in table.iterrows():
            cells = "".join(
                f"<td>{escape(str(one))}</td>" if one == true else f"<td><b>{escape(str(one))} ✗</b></td>"
                for one, true in zip(classes, table.iloc[0])
            )
            rows.append(f"<tr><td>{escape(str(name))}</td>{cells}</tr>")
        return f'<table style="text-align:center">{"".join(rows)}</table>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        page = {"text/html": self.page_without_widgets(), "text/plain": self.table().to_string(index=False)}
        return (self.widget()._repr_mimebundle_() if somebody_is_there() else {}) | page


def somebody_is_there() -> bool:
    """Whether the notebook is open in a browser or an editor, where buttons can be pressed.

    A Jupyter server names the notebook in the kernel's environment, VS Code in its variables, Colab brings a package;
    papermill, nbval and nbconvert start kernels without.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return False
    return "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns or "google.colab" in sys.modules


def _meter(name: str, before: float, after: float, change: str, colour: str, whole: float | None = None) -> str:
    """Two bars, the original's and the plan's, and what lies between them."""
    bars = "".join(
        f'<div style="background:{shade};width:{220 * value / (whole or before):.0f}px;height:8px;margin:2px"></div>'
        for value, shade in ((before, GREY), (after, colour))
    )
    numbers = f"{before:.3g} → <b>{after:.3g}</b>" if whole is None else f"{before:.1f} → <b>{after:.1f}</b>"
    cells = (name, f'<div style="width:230px">{bars}</div>', numbers, change)
    row = "".join(f'<td style="padding:2px 12px 2px 0">{cell}</td>' for cell in cells)
    return f"<tr>{row}</tr>"


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %"


def _picture(pixels: Any, number: int) -> str:
    """An image, uint8 of shape (3, height, width), as a thumbnail that lies in the page itself."""
    from PIL import Image

    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file := io.BytesIO(), "png")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<img src="{source}" alt="image {number}" width="48" height="48" style="image-rendering:pixelated">'


def _sentence(error: InputError) -> str:
    return f'<p role="alert"><b>{escape(str(error))}</b></p>'
