"""CVAT's serverless function: the model of $STABLESAM_SYSTEM in a container of Nuclio."""

import json
import os
from typing import Any

from stablesam_jax.__main__ import add_tools
from stablesam_jax.build import load_model
from stablesam_jax.errors import InputError
from stablesam_jax.predict.predictor import Predictor

add_tools()  # in a wheel, `serve` is found after this alone

from serve import cvat  # noqa: E402
from serve.schemas import checker  # noqa: E402
from serve.service import Service  # noqa: E402


def init_context(context: Any) -> None:
    """Loads the model, once for each worker."""
    system = os.environ.get("STABLESAM_SYSTEM", "stable_sam_nano")
    service = Service(Predictor(*load_model(system)), system)
    service.warm_up()
    context.user_data.service = service
    context.user_data.check = checker(cvat.request_schema(service))


def handler(context: Any, event: Any) -> Any:
    """Answers a request of CVAT; a malformed one with status 400 and one line."""
    body = event.body if isinstance(event.body, bytes) else json.dumps(event.body).encode()
    try:
        answer, status = cvat.interact(context.user_data.service, context.user_data.check(body)), 200
    except InputError as error:
        answer, status = {"error": str(error)}, 400
    return context.Response(body=json.dumps(answer), headers={}, content_type="application/json", status_code=status)
