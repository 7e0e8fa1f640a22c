"""The interpreter goes on while the compiler works, and interrupts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import Digits

import fqvit_opt


def test_other_threads_run_meanwhile(digits: Digits) -> None:
    gaps: list[float] = []
    done = threading.Event()

    def count() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    t = threading.Thread(target=count)
    t.start()
    begin = time.perf_counter()
    try:
        fqvit_opt.quantize(digits.model, digits.calibration, bench=False, progress=False)
    finally:
        took = time.perf_counter() - begin
        done.set()
        t.join()
    # With the lock held there would be one gap as long as the work.
    assert max(gaps) < max(0.5, took / 2), (max(gaps), took)
    assert len(gaps) > took * 20, (len(gaps), took)


def test_two_at_once_give_what_one_gives(digits: Digits) -> None:
    results: list[bytes] = []

    def one() -> None:
        r = fqvit_opt.quantize(digits.model, digits.calibration, fast=True, verify=False, progress=False)
        results.append(r.model)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    one()
    assert len(results) == 3 and len(set(results)) == 1


ENDLESS = """
import signal
import sys
import numpy as np
import fqvit_opt

# A shell's background jobs, and what they start, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
x = np.load(sys.argv[2])[sys.argv[3]]
begun = False

def tell(what, done, of):
    if of and not globals()["begun"]:
        globals()["begun"] = True
        print("begun", flush=True)

try:
    # Minutes of work.
    fqvit_opt.quantize(sys.argv[1], np.tile(x, (2000,) + (1,) * (x.ndim - 1)), verify=False, progress=tell)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interrupt_ends_the_work_at_once(digits: Digits) -> None:
    args: list[Any] = [sys.executable, "-c", ENDLESS, digits.model, digits.calibration_file, digits.input]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert p.stdout is not None and p.stdout.readline() == "begun\n"
        p.send_signal(signal.SIGINT)
        # The work takes minutes.
        out, err = p.communicate(timeout=60)
        assert (p.returncode, out) == (7, "interrupted\n"), err
    finally:
        p.kill()


def test_a_process_forked_after_use_works(digits: Digits) -> None:
    program = """
import os, sys, numpy as np, fqvit_opt
model, x = sys.argv[1], np.load(sys.argv[2])[sys.argv[3]][:24]
def all_of_it():
    made = fqvit_opt.quantize(model, x, bench=False)
    fqvit_opt.verify(model, made.model, x, bench=False)
    fqvit_opt.tune(model, x, metric=lambda path: 1.0, at_least=0.5, show=False)
all_of_it()
child = os.fork()
if child == 0:
    all_of_it()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    words = [sys.executable, "-c", program, str(digits.model), str(digits.calibration_file), digits.input]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "7", done.stderr
