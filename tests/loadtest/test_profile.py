"""Processor time by thread and by step: figures that decide what is changed must be those of the right threads."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from loadtest.costs import least_ms, steps
from loadtest.profile import page_faults, spent, thread_clocks
from service.threads import name_thread


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_work_is_counted_for_the_thread_that_did_it() -> None:
    begin, worked, end = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        name_thread("pixels")
        begin.wait(10)
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
        worked.set()
        end.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    before = thread_clocks(os.getpid())
    begin.set()
    assert worked.wait(60)
    time.sleep(0.05)  # the system accounts at its ticks
    after = spent(before, thread_clocks(os.getpid()), pictures=2)
    end.set()
    thread.join()
    assert after["pixels"] == pytest.approx(50, abs=15)
    assert after["event loop"] < 30
    assert page_faults(os.getpid()) > 0


def test_a_step_costs_its_processor_time_not_its_waiting() -> None:
    def work() -> None:
        time.sleep(0.01)
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass

    assert 2 <= least_ms(work, 0.01) < 8


def test_every_step_runs_on_what_it_gets_in_the_service() -> None:
    for work in steps(people=2, size=(320, 240)).values():
        work()
