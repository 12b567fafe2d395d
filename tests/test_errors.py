"""Errors name what would have been right."""

from toastlib.errors import InputError, unknown


def test_a_near_miss_names_the_nearest_choice():
    error = unknown("model", "vit_mini", ["vit-mini", "vit-s", "dinov2-b"])
    assert isinstance(error, InputError)
    assert str(error) == "Unknown model 'vit_mini': did you mean 'vit-mini'?"


def test_a_name_unlike_any_other_lists_the_choices():
    assert str(unknown("metric", "xyz", ["mse", "cka"])) == "Unknown metric 'xyz': choose from mse, cka."
