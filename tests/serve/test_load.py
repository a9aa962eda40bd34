"""Eight clients at once on a real server: no error, no other picture's mask, no more memory."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import subprocess
import sys

import httpx
import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from serve.service import Service
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.slots import Slots
from tests.reference import small
from tests.serve.conftest import png

pytestmark = pytest.mark.slow  # starts a server

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIENTS, REQUESTS, PICTURES, KEPT = 8, 50, 24, 16
JITTERS = 3
MORE = 20 << 20  # bytes by which memory may grow from the second half of the requests on


@contextlib.contextmanager
def server(folder, *options):
    """A server of the small model: its address and its process."""
    small.save_nano(folder)
    command = ["-m", "serve", "--system", str(folder), "--image-size", str(small.SIZE), "--port", "0", *options]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(found.group() for line in lines if (found := re.search(r"http://\S+(?=/,)", line))), process
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def memory(process):
    """Bytes that a process holds."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) << 10


def test_eight_clients_get_their_own_masks_and_memory_stays(tmp_path):
    contents = [png(seed, (40 + seed % 3, 60)) for seed in range(PICTURES)]
    predictor = Predictor(*small.nano(), slots=Slots((1, 4)))
    pictures = [predictor.encode(pixels) for _, pixels in contents]

    def truth(index, box):
        return predictor.predict_stable(box=box, jitters=JITTERS, picture=pictures[index]).mask

    def ask(client, rng):
        index = int(rng.integers(PICTURES))
        x, y, width, height = rng.integers([0, 0, 15, 15], [40, 20, 25, 20])
        box = [int(x), int(y), int(x + width), int(y + height)]
        digest = client.post("/v1/pictures", content=contents[index][0]).json()["picture"]
        answer = client.post("/v1/masks", json={"picture": digest, "box": box})
        assert answer.status_code == 200, answer.text
        lengths = answer.json()["masks"][0]["rle"]
        return index, box, mask_api.decode(lengths).astype(bool)

    def run(address, seed):
        rng = np.random.default_rng(seed)
        with httpx.Client(base_url=address, timeout=300) as client:
            return [ask(client, rng) for _ in range(REQUESTS)]

    options = ("--jitters", str(JITTERS), "--pictures", str(KEPT), "--threads", "8")
    with server(tmp_path / "nano", *options) as (address, process):
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
            found = [one for part in clients.map(lambda seed: run(address, seed), range(CLIENTS)) for one in part]
            before = memory(process)
            list(clients.map(lambda seed: run(address, seed), range(100, 100 + CLIENTS)))
        grown = memory(process) - before
        assert process.poll() is None
    assert len(found) == CLIENTS * REQUESTS
    for index, box, mask in found:
        np.testing.assert_array_equal(mask, truth(index, box))
    masks = {(index, mask.tobytes()) for index, _, mask in found}
    assert len(masks) > PICTURES  # of different pictures and boxes, else equality would show nothing
    print(f"memory grew by {grown / 2**20:.1f} MB in the second {CLIENTS * REQUESTS} requests")
    assert grown < MORE


def test_the_command_refuses_in_one_line(tmp_path):
    for options, line in (
        (["--host", "0.0.0.0"], "error: --host 0.0.0.0: other machines reach it; give a --token"),
        (["--system", str(tmp_path / "absent")], f"error: {tmp_path / 'absent'}: neither a shipped model"),
        (["--port", "1", "--host", "127.0.0.1", "--port", "2"], "error: --port: is given twice;"),
    ):
        done = subprocess.run([sys.executable, "-m", "serve", *options], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(line)
        assert "Traceback" not in done.stderr


def test_threads_that_click_on_one_new_picture_encode_it_once(monkeypatch):
    predictor = Predictor(*small.nano(), slots=Slots((1, 4)))
    service = Service(predictor, "small", jitters=JITTERS)
    encoded = []
    encode = Predictor.encode
    monkeypatch.setattr(Predictor, "encode", lambda *given: encoded.append(1) or encode(*given))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: service.pictures.add(png()[0])[0], range(32)))
    assert len(set(keys)) == 1
    assert len(encoded) == 1
