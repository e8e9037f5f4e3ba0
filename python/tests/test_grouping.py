"""How large a group may become: never more than is known to fit, and as much as that within a few runs."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from calotype_worker.grouping import SHARE, GroupSizes
from calotype_worker.job import Shape

SHAPE = Shape("model", (4, 64, 64), "", (77, 768))
MIB = 1 << 20


def test_where_no_room_is_told_the_most_that_is_worth_while_goes_together() -> None:
    sizes = GroupSizes(32)
    assert sizes.limit(SHAPE, None) == 32
    sizes.halve(SHAPE, 12)
    assert sizes.limit(SHAPE, None) == 6
    assert sizes.limit(replace(SHAPE, latent=(4, 8, 8)), None) == 32


def test_a_group_doubles_until_the_room_is_full() -> None:
    sizes, samples, seen = GroupSizes(32), 2, []
    for _ in range(8):
        sizes.ran(SHAPE, samples, samples * 100 * MIB)
        samples = max(sizes.limit(SHAPE, 2500 * MIB), 2)
        seen.append(samples)
    assert seen == [4, 8, 16, 20, 20, 20, 20, 20]


def test_the_first_run_is_of_one_job_alone() -> None:
    sizes = GroupSizes(32)
    assert sizes.limit(SHAPE, 1 << 40) == 0
    assert sizes.is_new(SHAPE, 1)
    sizes.ran(SHAPE, 2, 10 * MIB)
    assert not sizes.is_new(SHAPE, 2)
    assert sizes.is_new(SHAPE, 3)


def test_what_is_captured_needs_no_room_but_counts_as_nothing_more() -> None:
    sizes = GroupSizes(32)
    sizes.ran(SHAPE, 8, 800 * MIB)
    assert sizes.limit(SHAPE, 0) == 0
    assert sizes.limit(SHAPE, 0, captured=8) == 8
    assert sizes.limit(SHAPE, 1 << 40, captured=12) == 24
    assert GroupSizes(32).limit(SHAPE, 1 << 40, captured=6) == 6
    # The graph is gone: it is the room again that says.
    assert sizes.limit(SHAPE, 500 * MIB) == 4


def test_loras_share_what_is_known_and_other_models_do_not() -> None:
    sizes = GroupSizes(32)
    sizes.ran(SHAPE, 16, 160 * MIB)
    assert sizes.limit(replace(SHAPE, adapters="lora"), 1 << 40) == 32
    assert sizes.limit(replace(SHAPE, model="other"), 1 << 40) == 0
    sizes.forget("other")
    assert sizes.limit(SHAPE, 1 << 40) == 32
    sizes.halve(SHAPE, 4)
    sizes.forget("model")
    assert sizes.limit(SHAPE, 1 << 40) == 0
    assert sizes.limit(SHAPE, None) == 32


def test_a_run_that_was_not_seen_lets_the_group_grow_by_what_was() -> None:
    sizes = GroupSizes(32)
    sizes.ran(SHAPE, 4, None)
    assert sizes.is_new(SHAPE, 1)
    sizes.ran(SHAPE, 2, 200 * MIB)
    sizes.ran(SHAPE, 4, None)
    assert sizes.limit(SHAPE, 1 << 40) == 8
    assert sizes.limit(SHAPE, 500 * MIB) == 4


RUNS = st.lists(st.tuples(st.integers(1, 64), st.one_of(st.none(), st.integers(0, 1 << 36))), max_size=8)


@given(RUNS, st.integers(0, 1 << 40), st.integers(0, 32), st.integers(1, 64))
def test_no_limit_is_above_what_fits_what_was_tried_or_what_is_worth_while(
    runs: list[tuple[int, int | None]], room: int, captured: int, most: int
) -> None:
    sizes, largest, bytes_a_sample = GroupSizes(most), 0, 0.0
    for samples, taken in runs:
        sizes.ran(SHAPE, samples, taken)
        if samples > largest and (taken or largest):
            largest, bytes_a_sample = samples, taken / samples if taken else bytes_a_sample
    limit = sizes.limit(SHAPE, room, captured)
    assert 0 <= limit <= most
    assert limit <= 2 * max(largest, captured)
    assert limit <= captured or limit * bytes_a_sample <= room * SHARE
    # More room never means fewer.
    assert sizes.limit(SHAPE, 2 * room, captured) >= limit
    sizes.halve(SHAPE, 2)
    assert sizes.limit(SHAPE, room, captured) <= 1


@given(st.integers(1, 8), st.integers(1, 1 << 34), st.integers(1, 1 << 40))
def test_the_group_reaches_what_fits_in_a_few_runs_and_stays_there(first: int, a_sample: int, room: int) -> None:
    sizes, samples = GroupSizes(32), first
    for _ in range(6):
        sizes.ran(SHAPE, samples, samples * a_sample)
        samples = max(sizes.limit(SHAPE, room), first)
    assert samples == max(min(32, int(room * SHARE / a_sample)), first)
