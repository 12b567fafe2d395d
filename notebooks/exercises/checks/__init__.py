"""The checks of the exercises in ``notebooks/exercises``: one module for each notebook, one function for each exercise.

A check compares an answer with the right one and with those that the typical mistakes lead to, and says in a sentence
or two which it is::

    from checks import similarity as check

    print(check.cka(my_cka(x, y), x, y))

Whoever would rather solve an exercise first should not read its check: it holds the answer.
"""
