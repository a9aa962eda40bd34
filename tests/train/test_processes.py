"""A run in processes of its own: spread over several hosts, or killed at any moment."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from stablesam_jax.files import checkpoint
from stablesam_jax.files.plugin_file import load_plugin
from tests.reference import small
from train.main import STOP_EVERY

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 20
KILLS = int(os.environ.get("KILLS", "3"))  # 50 take minutes


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    small.save_nano(folder / "base")
    small.save_pairs(folder / "pairs", 10)
    return folder


def start(work, output, *options, script=("-m", "train.main"), devices=1, steps=STEPS, batch_size=4):
    """The program, on its way."""
    command = [
        sys.executable, *script, "stable-sam", "--model", str(work / "base"), "--image-size", str(small.SIZE),
        "--data-dir", str(work / "pairs"), "--output", str(output), "--steps", str(steps),
        "--batch-size", str(batch_size), "--prompts-per-picture", "2", "--scale-range", "0.8", "1.2",
        "--held-out", "0", *options,
    ]  # fmt: skip
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    environment = os.environ | cache | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=work, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(*processes):
    """What they print; all of them must end well."""
    texts = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    return [text for text, _ in texts]


def digest(text):
    (line,) = [line for line in text.splitlines() if line.startswith("digest ")]
    return line


def measurements(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# several hosts


def test_one_device_two_devices_and_two_processes_give_the_same_losses(work):
    script = (str(ROOT / "tests" / "reference" / "host.py"),)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    outputs = [work / name for name in ("one", "two", "hosts")]
    finish(start(work, outputs[0], script=script))
    finish(start(work, outputs[1], script=script, devices=2))
    hosts = [
        start(work, outputs[2], "--coordinator", address, "--hosts", "2", "--host", str(host), script=script)
        for host in range(2)
    ]
    first, second = finish(*hosts)
    assert digest(first) == digest(second)  # replicas are equal to the bit
    assert '"hosts": 2' in first
    assert f"asked {STEPS // STOP_EVERY} times" in first  # no other step waits for a host, but for the sum of gradients
    assert not [line for line in second.splitlines() if line.startswith("{")]  # the other host says nothing
    losses = [[record["loss"] for record in measurements(output)] for output in outputs]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-4)


def test_what_eight_devices_have_saved_one_two_and_eight_continue(work):
    script = (str(ROOT / "tests" / "reference" / "host.py"),)
    options = ("--save-every", "2")
    finish(start(work, work / "eight", *options, script=script, devices=8, steps=4, batch_size=8))
    losses = [record["loss"] for record in measurements(work / "eight")]
    for devices in (1, 2, 8):
        folder = work / f"on_{devices}"
        shutil.copytree(work / "eight" / "checkpoints" / "00000002", folder / "checkpoints" / "00000002")
        shutil.copy(work / "eight" / "config.json", folder)
        (text,) = finish(start(work, folder, *options, script=script, devices=devices, steps=4, batch_size=8))
        assert "continuing after step 2" in text
        np.testing.assert_allclose([record["loss"] for record in measurements(folder)], losses[2:], rtol=2e-4)


@pytest.mark.parametrize(("hosts", "devices"), [(1, 1), (1, 2), (1, 8), (2, 1)])
def test_both_engines_train_to_the_same_bits_and_one_continues_the_other(work, hosts, devices):
    def run(folder, engine):
        """What the first host prints."""
        options = ("--engine", engine, "--save-every", "2")
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        spread = [("--coordinator", address, "--hosts", str(hosts), "--host", str(host)) for host in range(hosts)]
        script = (str(ROOT / "tests" / "reference" / "host.py"),)
        processes = [
            start(
                work,
                folder,
                *options,
                *(own if hosts > 1 else ()),
                script=script,
                devices=devices,
                steps=4,
                batch_size=8,
            )
            for own in spread
        ]
        texts = finish(*processes)
        assert len({digest(text) for text in texts}) == 1
        assert f"{hosts * devices} device(s)" in texts[0]
        return texts[0]

    pmap, jit, both = (work / f"{hosts}_{devices}_{name}" for name in ("pmap", "jit", "both"))
    run(pmap, "pmap")
    shutil.copytree(pmap, both, ignore=lambda folder, names: {"00000004", "metrics.jsonl"})
    run(jit, "jit")
    assert "continuing after step 2" in run(both, "jit")

    assert saved_steps(pmap) == saved_steps(jit) == saved_steps(both) == [2, 4]
    for step in (2, 4):  # what trains and the optimizer's state
        assert saved(jit, step) == saved(both, step) == saved(pmap, step)
    assert len(measurements(pmap)) == 4
    assert measurements(jit) == measurements(pmap)
    assert measurements(both) == measurements(pmap)[2:]


def test_an_evaluation_on_two_hosts_gives_the_results_of_one(work):
    def evaluate(output, *options):
        command = [
            sys.executable, "-m", "eval.main", "hq", "--system", str(work / "base"), "--data-dir", str(work / "pairs"),
            "--prompts", "gt-box", "noisy-box", "--count", "2", "--output", str(work / output), *options,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=work, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    finish(evaluate("alone"))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    spread = ("--coordinator", address, "--hosts", "2", "--host")
    first, second = finish(*[evaluate("together", *spread, str(host)) for host in range(2)])
    assert "(this host's share of 2)" in first
    assert "pictures" not in second  # the other host says nothing
    results = [json.loads((work / name / "results.json").read_text()) for name in ("alone", "together")]
    for one in results:
        del one["meta"]["run"]
    assert results[0] == results[1]
    assert (work / "alone" / "per_image.csv").read_bytes() == (work / "together" / "per_image.csv").read_bytes()
    assert not list((work / "together").glob("*journal*"))


def test_hosts_that_do_not_fit_together_are_told_so_in_one_line(work):
    cases = {
        ("--coordinator", "localhost"): "write HOST:PORT of the first host",
        (
            "--coordinator",
            "localhost:1",
            "--hosts",
            "2",
        ): "--hosts 2, --host None: with --coordinator give their",
        ("--coordinator", "localhost:1", "--hosts", "2", "--host", "2"): "--hosts 2, --host 2",
        ("--coordinator", "auto"): "the hosts did not connect",
    }
    started = {words: start(work, work / "nowhere", *options) for options, words in cases.items()}
    for words, process in started.items():
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2
        assert error.startswith("error: ")
        assert words in error
        assert error.count("\n") == 1
    assert not (work / "nowhere").exists()


# kill -9


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())


def saved(folder, step):
    """The bits of a checkpoint by path."""
    tree, _ = checkpoint.load_tree(folder / "checkpoints" / f"{step:08d}")
    return {jax.tree_util.keystr(key): leaf.tobytes() for key, leaf in jax.tree.leaves_with_path(tree)}


def test_a_run_that_is_killed_at_random_moments_ends_as_an_undisturbed_one(work):
    options = ("--save-every", "2", "--cache", str(work / "cache"))
    finish(start(work, work / "undisturbed", *options, steps=2 * STEPS))
    rng = random.Random(0)
    killed = work / "killed"
    for _ in range(KILLS):
        before = saved_steps(killed)
        process = start(work, killed, *options, steps=2 * STEPS)
        shutil.rmtree(work / "cache")  # as another would leave it: what is missing is made anew, to the same bits
        while '"event": "started"' not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        if rng.random() < 0.7:  # else it may not even have taken a step
            while process.poll() is None and saved_steps(killed) == before:
                time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, 1.0))
        process.kill()
        text, errors = process.communicate()
        assert errors == ""  # nothing was damaged, nothing passed over
        if '"event": "cache"' in text:
            assert (f"continuing after step {max(before, default=0)}" in text) == bool(before)
        assert max(saved_steps(killed), default=0) >= max(before, default=0)
        if (killed / "plugin.safetensors").exists():  # it came to its end
            shutil.rmtree(killed)
    finish(start(work, killed, *options, steps=2 * STEPS))
    assert measurements(killed) == measurements(work / "undisturbed")
    assert saved_steps(killed) == saved_steps(work / "undisturbed")
    assert saved(killed, 2 * STEPS) == saved(work / "undisturbed", 2 * STEPS)
    plugins = [load_plugin(work / name / "plugin.safetensors")[0] for name in ("killed", "undisturbed")]
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), *plugins)
    assert all(jax.tree.leaves(same))
