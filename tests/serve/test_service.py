"""What all kinds of clients share."""

from unittest import mock

from serve.service import Prompt, Service


def test_the_limit_of_stability_is_higher_for_a_click_than_for_a_box():
    predictor = mock.Mock()
    service = Service(predictor, "small")
    click = {"points": [(3, 4)], "labels": [1]}
    for prompt in (Prompt(**click), Prompt(box=(1, 2, 5, 6)), Prompt(box=(1, 2, 5, 6), **click)):
        service.stable_mask(mock.sentinel.picture, prompt)
    limits = [call.kwargs["threshold"] for call in predictor.predict_stable.call_args_list]
    assert limits == [0.98, 0.92, 0.92]
