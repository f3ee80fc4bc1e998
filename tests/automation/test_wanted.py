"""The decisions of the automation by themselves: any order of edits, ticks, ends and crashes comes to rest."""

from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from m3po_dagster.automation.settings import AutomationSettings
from m3po_dagster.automation.wanted import (
    MOST_INTERRUPTIONS,
    Ask,
    Ending,
    Held,
    asks,
    changed_outside,
    decide,
    in_the_way,
    obsolete,
    study_version,
    wanted_now,
)
from m3po_dagster.graph import STAGES, Head, all_parts, due, inputs_of, made_from, not_settled, part_fingerprint
from m3po_dagster.study import load_study

STUDY = load_study(Path(__file__).parents[2] / "studies" / "easy_scenes.yaml")
OUTSIDE = [part for part in all_parts(STUDY) if STAGES[part[0]].outside]
PART = ("mas_table", "s0")


class World:
    """What lies outside, by name; edited at will."""

    def __init__(self):
        self.now = {}

    def __getattr__(self, name):
        return lambda study, *key: {"is": self.now.get("_".join((name, *key)), 0)}


class Simulation:
    """The daemon without time: sensors tick, runs start, look, end or die in any order."""

    def __init__(self):
        self.world, self.heads = World(), {}
        self.waiting, self.started = {}, {}
        self.endings, self.made, self.mixed, self.now = {}, [], [], 0.0

    @property
    def busy(self):
        return {*self.waiting, *self.started}

    def tick(self):
        self.now += 10_000
        todo, _ = changed_outside(STUDY, self.world, self.heads, self.busy, OUTSIDE)
        self.ask(todo)
        for part in obsolete(STUDY, self.heads, {**self.waiting, **self.started}):
            wanted = self.waiting.pop(part, None) or self.started.pop(part)
            self.end(wanted, "obsolete")
        todo = [part for part in due(STUDY, None, self.heads, self.busy) if not STAGES[part[0]].outside]
        self.ask([(part, wanted_now(part, STUDY, self.heads)) for part in todo])

    def ask(self, todo):
        found, _ = asks(todo, lambda wanted: self.endings.get(wanted, []), lambda _: False, STUDY, self.now)
        self.waiting |= {item.part: item.wanted for item in found}

    def end(self, wanted, how):
        ended = self.endings.setdefault(wanted, [])
        ended.insert(0, Ending(how, self.now, f"{wanted} {len(ended)}", study_version(STUDY)))

    def start(self, part):
        """The step's look at the heads: it goes on only with what it was asked for."""
        wanted = self.waiting.pop(part)
        if STAGES[part[0]].outside:
            self.started[part] = wanted
            return
        changed = any(
            STAGES[name].outside and self.heads[name, key].fingerprint != self.fingerprint((name, key))
            for name, key in self.heads
            if (name, key) in inputs_of(*part, STUDY)
        )
        if changed or wanted_now(part, STUDY, self.heads) != wanted:
            self.end(wanted, "obsolete")
            return
        if STAGES[part[0]].fan_in and not_settled(part, STUDY, self.heads):
            self.mixed.append(part)
        self.started[part] = wanted

    def fingerprint(self, part):
        if STAGES[part[0]].observed:
            return made_from(part, STUDY, self.world, self.heads, found=str(self.world.now.get("answers", 0)))
        return part_fingerprint(part, STUDY, self.world, self.heads)

    def finish(self, part, ending="made"):
        wanted = self.started.pop(part)
        self.end(wanted, ending)
        if ending != "made":
            return
        fingerprint = self.fingerprint(part)
        if not STAGES[part[0]].outside and not fingerprint.startswith(wanted):
            # Its inputs moved while it ran: what it makes is what it read.
            return
        answers = str(self.world.now.get("answers", 0))
        self.heads[part] = Head(fingerprint, answers if STAGES[part[0]].observed else fingerprint)
        self.made.append((part, fingerprint))

    def rest(self):
        """Ticks, and lets every run succeed, until two ticks in a row find nothing to do."""
        for _ in range(200):
            self.tick()
            if not self.busy:
                return
            for part in list(self.waiting):
                self.start(part)
            for part in list(self.started):
                self.finish(part)
        raise AssertionError("never comes to rest")


EDITED = ["judge", "recipe_m3po", "recipe_sft", "model", "dataset"]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("edit"),
            st.sampled_from(["judge", "recipe_m3po", "recipe_sft", "model", "dataset"]),
            st.integers(0, 2),
        ),
        st.tuples(st.just("tick")),
        st.tuples(st.just("start"), st.integers(0, 50)),
        st.tuples(st.just("finish"), st.integers(0, 50)),
        st.tuples(st.just("crash"), st.integers(0, 50)),
        st.tuples(st.just("fail"), st.integers(0, 50)),
        st.tuples(st.just("crash_all")),
    ),
    max_size=60,
)


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(STEPS)
def test_any_interleaving_comes_to_rest_with_everything_fresh(steps):
    world = Simulation()
    world.rest()
    for what, *given_ in steps:
        if what == "edit":
            world.world.now[given_[0]] = given_[1]
        elif what == "tick":
            world.tick()
        elif what == "start" and world.waiting:
            world.start(sorted(world.waiting)[given_[0] % len(world.waiting)])
        elif what == "finish" and world.started:
            world.finish(sorted(world.started)[given_[0] % len(world.started)])
        elif what == "crash" and world.started:
            world.finish(sorted(world.started)[given_[0] % len(world.started)], "interrupted")
        elif what == "fail" and world.started:
            part = sorted(world.started)[given_[0] % len(world.started)]
            before = world.endings.get(world.started[part], [])
            if [ending.how for ending in before].count("failed") < AutomationSettings().max_failures - 1:
                world.finish(part, "failed")
        elif what == "crash_all":
            world.waiting.clear()
            world.started.clear()
    world.rest()
    assert not due(STUDY, world.world, world.heads)
    for part in all_parts(STUDY):
        assert world.heads[part].fingerprint == part_fingerprint(part, STUDY, world.world, world.heads)
    assert not world.mixed
    if not any(step[0] == "edit" and step[1] in ("model", "dataset") for step in steps):
        assert [entry[0][0] for entry in world.made].count("candidates") == len(STUDY.shards)


def test_first_looks_come_before_anything_else():
    world = Simulation()
    world.tick()
    assert set(world.waiting) == set(OUTSIDE) - {("judge_identity", "")}


def test_the_same_content_touches_nothing():
    world = Simulation()
    world.rest()
    before = len(world.made)
    world.world.now["judge"] = 0
    world.rest()
    assert len(world.made) == before


def test_another_answer_of_a_served_judge_is_another_judge():
    world = Simulation()
    world.rest()
    before = len(world.made)
    world.world.now["answers"] = 7
    world.rest()
    assert len(world.made) == before, "nobody asked the judge yet"
    world.waiting["judge_probe", ""] = "by schedule"
    world.rest()
    assets = [part[0] for part, _ in world.made[before:]]
    assert assets.count("judge_probe") == assets.count("judge_identity") == 1
    assert assets.count("mas_table") == len(STUDY.shards) and "candidates" not in assets


SETTINGS = AutomationSettings(max_failures=3, retry_after=60, look_every=30)


def history(*endings, at=0.0, study="now"):
    """Endings of one thing, the newest first, all at one time."""
    return [Ending(how, at, f"run{number}", study) for number, how in enumerate(endings)]


def decided(endings, now=1e6):
    return decide(PART, "abc", endings, SETTINGS, "now", now)


@pytest.mark.parametrize(
    ("endings", "why"),
    [
        (["failed"] * 3, "3 runs failed"),
        (["failed", "obsolete", "failed", "interrupted", "failed"], "3 runs failed"),
        (["cancelled", "failed"], "cancelled by hand"),
        (["interrupted"] * MOST_INTERRUPTIONS, "ended without a word"),
    ],
)
def test_what_keeps_failing_or_was_cancelled_is_held(endings, why):
    held = decided(history(*endings))
    assert isinstance(held, Held) and why in held.why and not held.later
    # Under an edited study it may work: what mends it is often a setting that is no part of the result.
    assert isinstance(decided(history(*endings, study="before")), Ask)


def test_what_is_held_is_asked_for_all_the_same_when_the_store_has_it():
    endings = history(*["failed"] * 3, study=study_version(STUDY))
    for there in (False, True):
        found, held = asks([(PART, "abc")], lambda _: endings, lambda _, there=there: there, STUDY, 1e6)
        assert ([item.part for item in found], [item.part for item in held]) == (
            ([PART], []) if there else ([], [PART])
        )


@pytest.mark.parametrize(
    "endings",
    [["failed", "failed"], ["made", "failed", "failed", "failed"], ["obsolete"] * 20, ["made", "cancelled"]],
)
def test_what_may_still_work_is_tried_under_a_key_of_its_own(endings):
    ask = decided(history(*endings))
    assert ask == Ask(PART, "abc", "run0")
    assert ask.run_key == "mas_table[s0]:abc:after run0"
    assert decided([]).run_key != ask.run_key


@pytest.mark.parametrize(
    ("endings", "seconds"),
    [
        (["failed"], 60),
        (["failed", "failed"], 240),
        (["failed", "obsolete", "failed"], 240),
        (["obsolete"], 30),
        (["interrupted"] * 2, 0),
        (["interrupted"] * 3, 60),
        (["interrupted"] * 5, 960),
        (["interrupted"] * 9, 3600),
        (["made"], 0),
    ],
)
def test_how_long_it_waits_before_it_tries_again(endings, seconds):
    if seconds:
        early = decided(history(*endings, at=1000.0), now=1000.0 + seconds - 1)
        assert isinstance(early, Held) and early.later
    assert isinstance(decided(history(*endings, at=1000.0), now=1000.0 + seconds), Ask)


def test_a_first_look_that_failed_is_tried_again_when_the_study_is_edited():
    first = changed_outside(STUDY, World(), {}, (), OUTSIDE)[0]
    edited = STUDY.model_copy(update={"description": "another path, say"})
    second = changed_outside(edited, World(), {}, (), OUTSIDE)[0]
    assert [part for part, _ in first] == [part for part, _ in second]
    assert not {wanted for _, wanted in first} & {wanted for _, wanted in second}
    assert len({wanted for _, wanted in first}) == len(first)


def test_a_run_for_what_the_study_no_longer_has_is_obsolete():
    world = Simulation()
    world.rest()
    part = ("lora_adapter", "m3po")
    without = STUDY.model_copy(update={"recipes": {k: v for k, v in STUDY.recipes.items() if k != "m3po"}})
    running = {part: wanted_now(part, STUDY, world.heads)}
    assert obsolete(without, world.heads, running) == [part]


def test_a_training_makes_way_for_the_scores_that_would_tell_whether_it_is_obsolete():
    world = Simulation()
    world.rest()
    training, scoring = ("lora_adapter", "m3po"), ("mas_table", "s0")
    running = [training, ("benchmark_scores", "sft"), ("candidates", "s1"), ("selection_sweep", "")]
    assert in_the_way(STUDY, world.heads, running, [scoring]) == [], "asked for by hand: it will give what is there"
    world.heads["judge_identity", ""] = Head("another", "another judge")
    assert obsolete(STUDY, world.heads, {training: wanted_now(training, STUDY, world.heads)}) == []
    assert in_the_way(STUDY, world.heads, running, [scoring]) == running[:2]
    assert in_the_way(STUDY, world.heads, running, [("preference_pairs", "m3po|s0")]) == [], "it needs no place"
    assert in_the_way(STUDY, world.heads, running, []) == []


def test_a_run_is_obsolete_only_once_an_input_has_other_content():
    world = Simulation()
    world.rest()
    part = ("lora_adapter", "m3po")
    running = {part: wanted_now(part, STUDY, world.heads)}
    pairs = ("preference_pairs", "m3po|s0")
    assert obsolete(STUDY, world.heads, running) == []
    world.heads[pairs] = Head("made anew", world.heads[pairs].data_version)
    assert obsolete(STUDY, world.heads, running) == []
    world.heads[pairs] = Head("made anew", "other content")
    assert obsolete(STUDY, world.heads, running) == [part]


@pytest.mark.parametrize("how", ["failed", "interrupted", "obsolete"])
def test_a_clock_that_was_set_back_makes_nothing_wait_for_days(how):
    """The last run ended a day from now, as this clock has it: how long ago that was nobody knows."""
    endings = history(*[how] * (2 if how == "failed" else 4), at=1e6 + 86400)
    assert isinstance(decided(endings, now=1e6), Ask)
    # However often: it is held all the same once too many runs failed.
    assert isinstance(decided(history(*["failed"] * 3, at=1e6 + 86400), now=1e6), Held)
