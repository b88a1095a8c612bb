from __future__ import annotations

import pytest

from mgpu.core.effects import Finish, Grant, LockReleased, Phases, SwapMeasured
from mgpu.core.model import Outcome
from tests.core.playbook import Playbook, absent, resident

# The lease


def test_a_job_of_a_resident_consumer_computes_at_once() -> None:
    play = Playbook(resident("tts"))
    assert play.arrive("1", "tts") == ["grant 1"]
    assert play.facts(Grant)[0].gpus == (0,)
    assert play.end("1") == ["done 1"]


def test_one_consumer_computes_at_a_time_under_the_exclusive_lock() -> None:
    play = Playbook(resident("tts"), resident("stt"))
    play.arrive("1", "tts")
    assert play.arrive("2", "stt") == []
    play.after(4.0)
    assert play.end("1") == ["done 1", "grant 2"]
    assert play.facts(LockReleased) == [LockReleased(0, "tts", 4.0)]


def test_resident_consumers_compute_together_under_the_shared_lock() -> None:
    play = Playbook(resident("tts"), resident("stt"), lock="shared")
    assert play.arrive("1", "tts") == ["grant 1"]
    assert play.arrive("2", "stt") == ["grant 2"]


def test_one_hold_of_the_lock_carries_as_many_jobs_as_the_consumer_can_take() -> None:
    play = Playbook(resident("tts", concurrency=2))
    assert play.arrive("1", "tts") == ["grant 1"]
    assert play.arrive("2", "tts") == ["grant 2"]
    assert play.arrive("3", "tts") == []
    assert play.end("2") == ["done 2", "grant 3"]
    assert play.facts(LockReleased) == []


def test_tokens_grow_from_the_first_one_given() -> None:
    play = Playbook(resident("tts", concurrency=3))
    for job in "123":
        play.arrive(job, "tts")
    assert list(play.tokens.values()) == [1, 2, 3]


def test_an_end_with_a_stale_token_changes_nothing() -> None:
    play = Playbook(resident("tts"))
    play.arrive("1", "tts")
    assert play.end("1", token=99) == []
    play.end("1")
    assert play.end("1") == []
    play.arrive("2", "tts")
    play.arrive("3", "tts")
    assert play.end("3", token=0) == []
    assert play["tts"].running.keys() == {"2"}


# The end


def test_a_job_that_failed_by_itself_ends_as_failed() -> None:
    play = Playbook(resident("tts"))
    play.arrive("1", "tts")
    play.after(2.0)
    assert play.end("1", Outcome.FAILED) == ["failed 1"]
    assert play.ended["1"].run_s == 2.0


def test_a_job_past_its_time_is_aborted_and_keeps_its_lease_until_it_has_stopped() -> None:
    play = Playbook(resident("tts", job_timeout_s=30.0))
    play.arrive("1", "tts")
    play.arrive("2", "tts")
    assert play.after(29.9) == []
    assert play.after(0.1) == ["abort 1: job-timeout"]
    assert play.end("1", Outcome.FAILED) == ["failed 1: job-timeout", "grant 2"]


def test_a_job_that_was_told_to_stop_may_be_done_all_the_same() -> None:
    play = Playbook(resident("tts"))
    play.arrive("1", "tts")
    play.leave("1")
    assert play.end("1", Outcome.DONE) == ["done 1"]


def test_a_job_is_told_to_stop_once() -> None:
    play = Playbook(resident("tts", job_timeout_s=30.0))
    play.arrive("1", "tts")
    assert play.leave("1") == ["abort 1: client-left"]
    assert play.leave("1") == []
    assert play.after(60.0) == []
    assert play.end("1", Outcome.CANCELLED) == ["cancelled 1: client-left"]


def test_the_three_phases_of_a_wait_add_up() -> None:
    play = Playbook(resident("stt"), absent("tts"), resident("image"), total_mib=16000)
    play.arrive("0", "image")
    play.arrive("1", "tts")
    play.after(1.0)
    play.end("0")
    play.after(2.0)
    play.leaves("stt")
    play.after(4.0)
    assert play.comes("tts") == ["grant 1"]
    assert play.facts(Grant)[0].phases == Phases(queue_s=1.0, evict_s=2.0, load_s=4.0)
    assert play.facts(SwapMeasured) == [SwapMeasured("tts", 6.0)]


def test_who_joins_a_swap_late_is_told_only_what_it_waited_for_itself() -> None:
    play = Playbook(absent("tts", concurrency=3))
    play.arrive("1", "tts")
    play.after(3.0)
    play.arrive("2", "tts")
    play.after(1.0)
    assert play.comes("tts") == ["grant 1", "grant 2"]
    first, second = (grant.phases for grant in play.facts(Grant))
    assert first == Phases(load_s=4.0)
    assert second == Phases(load_s=1.0)
    play.after(5.0)
    play.arrive("3", "tts")
    assert play.facts(Grant)[0].phases == Phases()
    assert play.facts(SwapMeasured) == []


# Waiting


def test_a_job_expires_when_it_has_waited_for_as_long_as_it_may() -> None:
    play = Playbook(resident("tts"), max_wait_s=600.0)
    play.arrive("1", "tts")
    play.arrive("2", "tts", max_wait_s=5.0)
    play.arrive("3", "tts", max_wait_s=10_000.0)
    assert play.after(5.0) == ["expired 2: wait-expired"]
    assert play.ended["2"].phases.queue_s == 5.0
    assert play.ended["2"].outcome is Outcome.EXPIRED
    assert play.after(594.9) == []
    play.end("1")
    assert play.after(10.0) == []


def test_the_longest_wait_allowed_is_the_policys() -> None:
    play = Playbook(resident("tts", job_timeout_s=1e6), max_wait_s=60.0)
    play.arrive("1", "tts")
    play.arrive("2", "tts", max_wait_s=10_000.0)
    assert play.after(60.0) == ["expired 2: wait-expired"]


def test_a_client_that_leaves_while_it_waits_frees_its_place() -> None:
    play = Playbook(resident("tts", max_queue=1))
    play.arrive("1", "tts")
    play.arrive("2", "tts")
    assert play.arrive("3", "tts") == ["rejected 3: queue-full"]
    assert play.leave("2") == ["cancelled 2: client-left"]
    assert play.arrive("4", "tts") == []
    assert play.leave("2") == []


# Bounds


def test_a_consumers_queue_is_bounded() -> None:
    play = Playbook(resident("tts", max_queue=2))
    for job in "123":
        play.arrive(job, "tts")
    assert play.arrive("4", "tts") == ["rejected 4: queue-full"]
    refusal = play.ended["4"].refusal
    assert refusal is not None
    assert refusal.retry_after_s
    assert refusal.detail == "2 jobs wait for tts already"


def test_the_whole_queue_is_bounded() -> None:
    play = Playbook(resident("tts"), resident("stt"), max_queue=2)
    for job in "123":
        play.arrive(job, "tts")
    assert play.arrive("4", "stt") == ["rejected 4: queue-full"]


def test_a_job_that_need_not_wait_needs_no_place_in_the_queue() -> None:
    play = Playbook(resident("tts", max_queue=0), resident("stt", max_queue=0), max_queue=1)
    assert play.arrive("1", "tts") == ["grant 1"]
    assert play.arrive("2", "tts") == ["rejected 2: queue-full"]
    assert play.arrive("3", "stt") == ["rejected 3: queue-full"]


def test_a_job_that_could_compute_but_must_not_overtake_needs_a_place_after_all() -> None:
    play = Playbook(
        resident("tts", max_queue=0),
        absent("llm", 20000),
        resident("stt"),
        lock="shared",
        order="arrival",
    )
    play.arrive("1", "stt")
    assert play.arrive("2", "llm") == []
    assert play.arrive("3", "tts") == ["rejected 3: queue-full"]


def test_a_thousand_clients_of_one_absent_consumer_cause_one_load() -> None:
    play = Playbook(absent("tts", concurrency=64), max_queue=512)
    for number in range(1000):
        play.arrive(str(number), "tts")
    assert len(play["tts"].waiting) == 64
    full = [f for f in play.ended.values() if f.refusal and f.refusal.code == "queue-full"]
    assert len(full) == 936
    assert all(f.refusal and f.refusal.retry_after_s for f in full)
    assert play.comes("tts") == [f"grant {number}" for number in range(64)]
    assert play.state.loads == 1


# Refusals at the door


def test_a_consumer_too_large_for_every_gpu_is_refused_at_once() -> None:
    play = Playbook(absent("llm", 24400), cushion_mib=256)
    assert play.arrive("1", "llm") == ["rejected 1: never-fits"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail == (
        "llm needs 24400 MiB and a cushion of 256 MiB; there is GPU 0: 24576 MiB"
    )


def test_a_gpu_that_does_not_answer_admits_nothing_until_it_does() -> None:
    play = Playbook(resident("tts"))
    play.gpus_lost("driver mismatch")
    assert play.arrive("1", "tts") == ["rejected 1: gpu-unhealthy"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail == "GPU 0: driver mismatch"
    assert play.memory(16576) == []
    assert play.arrive("2", "tts") == ["grant 2"]


def test_without_a_single_reading_ever_the_reason_is_told() -> None:
    play = Playbook(resident("tts"), blind=True)
    play.gpus_lost("no driver")
    assert play.arrive("1", "tts") == ["rejected 1: gpu-unhealthy"]
    refusal = play.ended["1"].refusal
    assert refusal is not None
    assert refusal.detail == "no driver"


def test_who_comes_before_the_first_reading_waits_for_it() -> None:
    play = Playbook(resident("tts"), absent("stt"), blind=True)
    assert play.arrive("1", "tts") == []
    assert play.arrive("2", "stt") == []
    assert play.memory(16576) == ["grant 1"]
    assert play.end("1") == ["done 1", "load stt"]


def test_a_waiting_job_of_a_resident_consumer_waits_for_its_gpu_to_recover() -> None:
    play = Playbook(resident("tts"))
    play.arrive("1", "tts")
    play.arrive("2", "tts")
    play.gpus_lost()
    assert play.end("1") == ["done 1"]
    assert play.memory(16576) == ["grant 2"]


def test_a_consumer_whose_gpus_do_not_exist_is_refused() -> None:
    play = Playbook(resident("tts", gpus=(3,)), resident("own", gpus=(3,), vram_managed=True))
    assert play.arrive("1", "tts") == ["rejected 1: never-fits"]
    assert play.arrive("2", "own") == ["rejected 2: gpu-unhealthy"]


# Loads as jobs


def test_a_load_job_ends_when_its_consumer_is_resident_and_computes_nothing() -> None:
    play = Playbook(absent("tts"))
    assert play.load("1", "tts") == ["load tts"]
    assert play.comes("tts") == ["done 1"]
    assert play.load("2", "tts") == ["done 2"]
    assert play.facts(Finish)[0].refusal is None


@pytest.mark.parametrize("leaver", ["1", "2"])
def test_a_load_job_and_a_job_share_one_load(leaver: str) -> None:
    play = Playbook(absent("tts"))
    play.load("1", "tts")
    play.arrive("2", "tts")
    play.leave(leaver)
    assert play.comes("tts") == (["done 1"] if leaver == "2" else ["grant 2"])
