"""The Batch API over real HTTP: every request reaches it once and every reply its asker, whatever stops on the way."""

import fcntl
import json
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from unittest.mock import patch

import batch_world
import pytest
from batch_world import (
    ASKER,
    MODEL,
    N_KEYS,
    STEPS,
    Caller,
    HeldRecord,
    Stopped,
    body_of,
    queue_of,
    reply_to,
    stopping_before,
    text_of,
)

from m3po_dagster.method.alignment import batch_service
from m3po_dagster.method.alignment.batch_api import BatchFailure
from m3po_dagster.method.alignment.batch_lines import CANCELLED, EXPIRED, NO_LINE, TOO_LARGE, write_requests
from m3po_dagster.method.alignment.batch_record import BatchRecords
from m3po_dagster.method.alignment.batch_service import BatchRejected
from m3po_dagster.method.endpoint import EndpointError
from tests.loopback import Reply, error
from tests.served_batches import ServedBatches, completion

KEYS = [f"key-{number}" for number in range(10)]
SECRET = "sk-not-for-any-log-0123456789"


@pytest.fixture
def service():
    with ServedBatches() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger" / "batches"


def bodies_of(keys=KEYS) -> dict[str, dict]:
    return {key: body_of(key) for key in keys}


def asked(service, folder, keys=KEYS, **changed) -> dict[str, bytes | BatchFailure]:
    given = list(queue_of(service.base_url, folder, **changed).ask(bodies_of(keys), ASKER))
    assert len(dict(given)) == len(given) == len(keys)
    return dict(given)


def assert_all_replied(found, keys=KEYS) -> None:
    assert {key: text_of(outcome) for key, outcome in found.items()} == {key: reply_to(key) for key in keys}


def assert_each_paid_once(service, keys=KEYS) -> None:
    assert service.paid == Counter(keys)


def sent_lines(service) -> list[list[dict]]:
    """The lines of every batch, in the order of the batches."""
    return [batch.lines for batch in service.batches.values()]


def test_every_key_gets_its_own_reply_and_the_service_what_it_documents(service, folder):
    seen = []
    found = dict(queue_of(service.base_url, folder, lambda *told: seen.append(told)).ask(bodies_of(), ASKER))
    assert_all_replied(found)
    assert_each_paid_once(service)
    assert json.loads(found["key-3"]) == completion(body_of("key-3"))
    (batch,) = service.batches.values()
    assert batch.lines == [
        {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body_of(key)} for key in KEYS
    ]
    (record,) = BatchRecords(folder).all(service.base_url, MODEL)
    assert (batch.window, batch.metadata) == ("24h", {"m3po": record.id})
    assert (record.step, record.status, record.count, record.answered) == ("collected", "completed", 10, 10)
    assert record.asker == ASKER and record.batch_id == batch.id and record.holds_just(KEYS)
    assert service.files[record.file_id][0] == record.file_name
    # What was uploaded takes no disk any more.
    assert {path.name for path in (folder / record.id).iterdir()} == {
        "lock",
        "record.json",
        "keys",
        "replied",
        "output.jsonl",
    }
    # Half of it runs by the first look.
    assert list(dict.fromkeys(seen)) == [(5, 10), (10, 10)]
    assert service.calls["POST", "/batches"] == service.calls["POST", "/files"] == 1


def test_a_reply_is_kept_and_its_key_never_asked_again(service, folder):
    assert_all_replied(asked(service, folder))
    before = service.requests
    assert_all_replied(asked(service, folder, KEYS[2:5]), KEYS[2:5])
    assert service.requests == before
    more = [*KEYS[5:], "key-new"]
    assert_all_replied(asked(service, folder, more), more)
    assert [line["custom_id"] for line in sent_lines(service)[1]] == ["key-new"]


def test_another_model_or_endpoint_has_batches_of_its_own(service, folder):
    asked(service, folder, KEYS[:2])
    with ServedBatches() as other:
        asked(other, folder, KEYS[:2])
        assert_each_paid_once(other, KEYS[:2])
    assert_each_paid_once(service, KEYS[:2])


class Lazy(Mapping):
    """Bodies made when they are looked up."""

    def __init__(self, keys):
        self.keys_in_order, self.made = keys, Counter()

    def __getitem__(self, key):
        self.made[key] += 1
        return body_of(key, 100_000)

    def __iter__(self):
        return iter(self.keys_in_order)

    def __len__(self):
        return len(self.keys_in_order)


def test_requests_are_split_by_count(service, folder):
    assert_all_replied(asked(service, folder, max_requests=4))
    assert [len(lines) for lines in sent_lines(service)] == [4, 4, 2]
    assert_each_paid_once(service)


def test_requests_are_split_by_bytes_and_what_no_file_holds_is_not_sent(service, folder):
    lengths = {"a": 10, "b": 2000, "c": 10, "d": 300, "e": 300, "f": 10}
    bodies = {key: body_of(key, length) for key, length in lengths.items()}
    found = dict(queue_of(service.base_url, folder, max_bytes=1000).ask(bodies, ASKER))
    assert found.pop("b") == BatchFailure(TOO_LARGE)
    assert {key: text_of(reply) for key, reply in found.items()} == {key: reply_to(key, lengths[key]) for key in found}
    assert [[line["custom_id"] for line in lines] for lines in sent_lines(service)] == [["a", "c", "d"], ["e", "f"]]
    inputs = [service.files[batch.input_file_id][1] for batch in service.batches.values()]
    assert all(len(content) <= 1000 for content in inputs)
    assert_each_paid_once(service, list(found))


def test_only_requests_that_no_file_holds_make_no_batch(service, folder):
    found = dict(queue_of(service.base_url, folder, max_bytes=10).ask(bodies_of(), ASKER))
    assert set(found.values()) == {BatchFailure(TOO_LARGE)}
    assert service.requests == 0 and list(BatchRecords(folder).all(service.base_url, MODEL)) == []


def test_a_body_is_looked_up_once_and_not_kept(service, folder, tmp_path):
    bodies = Lazy(KEYS)
    for _ in range(2):
        assert len(list(queue_of(service.base_url, folder).ask(bodies, ASKER))) == len(KEYS)
    assert bodies.made == Counter(KEYS)
    many = Lazy([f"key-{number}" for number in range(200)])
    tracemalloc.start()
    fitting, _ = write_requests(tmp_path / "requests", many, many, 100_000_000)
    assert len(fitting) == 200 and tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_text_survives_the_line_breaks_of_unicode(service, folder):
    text = "a\u2028b\u2029c\x85d\ne é 漢 \U0001f600"
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    ((_, reply),) = queue_of(service.base_url, folder).ask({"k": body}, ASKER)
    assert text_of(reply) == f"reply to {text}"


def test_the_expired_are_asked_again_and_only_they(service, folder):
    service.expiring.update(KEYS[3:6])
    assert_all_replied(asked(service, folder))
    assert [{line["custom_id"] for line in lines} for lines in sent_lines(service)] == [{*KEYS}, {*KEYS[3:6]}]
    assert_each_paid_once(service)


def test_the_expired_are_asked_again_a_bounded_number_of_times(service, folder):
    service.expiring.update({"key-0": 9, "key-1": 2})
    found = asked(service, folder, KEYS[:3], re_asks=2)
    assert found.pop("key-0").reason == EXPIRED
    assert_all_replied(found, KEYS[1:3])
    assert len(service.batches) == 3
    # A failure is no reply: the next run asks again.
    service.expiring.clear()
    assert_all_replied(asked(service, folder, KEYS[:3]), KEYS[:3])
    assert_each_paid_once(service, KEYS[:3])


def test_a_line_that_failed_says_why_and_a_busy_one_is_asked_again(service, folder):
    service.spoiled |= {"key-1": [400], "key-2": [429], "key-3": [500, 503], "key-4": [500] * 9}
    service.missing = {"key-5"}
    found = asked(service, folder, re_asks=2)
    failures = {key: found.pop(key) for key in ("key-1", "key-4", "key-5")}
    assert failures["key-1"] == BatchFailure("HTTP 400", 400, "no: 400, Bearer None")
    assert failures["key-4"] == BatchFailure("HTTP 500", 500, "no: 500, Bearer None")
    assert failures["key-5"] == BatchFailure(NO_LINE)
    assert_all_replied(found, [key for key in KEYS if key not in failures])
    assert_each_paid_once(service, list(found))
    tries = Counter(line["custom_id"] for lines in sent_lines(service) for line in lines)
    assert tries == Counter(KEYS) + Counter({"key-2": 1, "key-3": 2, "key-4": 2})


def test_lines_that_are_none_leave_their_requests_without_one(service, folder, monkeypatch):
    odd = [b"", b"not JSON", b"[]", b'{"custom_id": 3}', b'{"custom_id": "key-0"}', b'{"custom_id": "of-another"}']
    odd.append(json.dumps({"custom_id": "of-another", "response": {"status_code": 200, "body": {}}}).encode())
    odd.append(json.dumps({"custom_id": "key-0", "response": {"status_code": 200}}).encode())
    stored = service._stored
    monkeypatch.setattr(service, "_stored", lambda name, lines: _rewritten(service, stored(name, lines), odd))
    found = asked(service, folder, KEYS[:2])
    assert found["key-0"] == BatchFailure("HTTP 200", 200) and found["key-1"] == BatchFailure(NO_LINE)


def _rewritten(service, file_id: str, lines: list[bytes]) -> str:
    service.files[file_id] = (service.files[file_id][0], b"\n".join(lines))
    return file_id


def test_a_batch_that_fails_as_a_whole_names_the_line(service, folder):
    service.invalid = lambda line: (
        {"code": "invalid_image", "message": "not an image", "param": "body.messages"}
        if line["custom_id"] in ("key-2", "key-4", "key-5", "key-6")
        else None
    )
    with pytest.raises(BatchRejected) as raised:
        asked(service, folder)
    said = str(raised.value)
    assert "scorer 'judge'" in said and service.base_url in said and next(iter(service.batches)) in said
    assert "line 3 (request key-2), body.messages invalid_image: not an image" in said
    assert "line 7" not in said and "and 1 more" in said
    assert not service.paid
    # Nothing of it stands in the way once it is corrected.
    service.invalid = lambda line: None
    assert_all_replied(asked(service, folder))
    assert_each_paid_once(service)


def test_a_full_queue_is_waited_for_as_long_as_a_batch_of_ours_is_in_it(service, folder):
    service.room = 4
    assert_all_replied(asked(service, folder, max_requests=3))
    assert_each_paid_once(service)
    statuses = Counter(batch.status for batch in service.batches.values())
    # All four are tried at once; from then on one at a time, as many as there was room for.
    assert statuses == {"completed": 4, "failed": 3}


def test_a_queue_that_is_full_of_others_is_an_error(service, folder):
    service.room = 4
    with pytest.raises(BatchRejected, match=r"token_limit_exceeded.*max_requests"):
        asked(service, folder, KEYS[:5])
    assert not service.paid
    assert_all_replied(asked(service, folder, KEYS[:4]), KEYS[:4])


def test_a_batch_that_is_cancelled_gives_what_was_run(service, folder):
    service.running = 10**6
    outcomes = []

    def cancel(done, total):
        if done == 5:
            service.cancel(next(iter(service.batches.values())))

    outcomes = dict(queue_of(service.base_url, folder, cancel).ask(bodies_of(), ASKER))
    assert_all_replied({key: outcomes[key] for key in KEYS[:5]}, KEYS[:5])
    assert {outcomes[key].reason for key in KEYS[5:]} == {CANCELLED} and len(service.batches) == 1
    service.running = 1
    assert_all_replied(asked(service, folder))
    assert_each_paid_once(service)


CALLS = [("POST", "/files"), ("POST", "/batches"), ("GET", "/batches/*"), ("GET", "/files/*/content")]


@pytest.mark.parametrize("what", ["before", "after", 500, 429])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call))
def test_trouble_with_a_call_changes_nothing(service, folder, call, what):
    # What got through without a reply is found when it is looked for, so it goes wrong once.
    made = what == "after" and call[0] == "POST"
    service.trouble.extend([(*call, what)] * (1 if made else 2))
    assert_all_replied(asked(service, folder))
    assert_each_paid_once(service)
    assert not service.trouble
    # A batch that was made without a reply is found, not made again; nor is its file.
    assert len(service.batches) == 1
    assert len([name for name, _ in service.files.values() if name.startswith("m3po-")]) == 1


def test_the_last_try_may_have_got_through_too(service, folder):
    service.trouble.extend([("POST", "/batches", 503)] * 3 + [("POST", "/batches", "after")])
    assert_all_replied(asked(service, folder, max_retries=3))
    assert len(service.batches) == 1


def test_a_download_that_breaks_off_in_the_middle_is_taken_again(service, folder, monkeypatch):
    real, cuts = service._do, [100, 300]

    def cut(method, kind, *rest):
        reply = real(method, kind, *rest)
        if kind == "/files/*/content" and cuts:
            return Reply(reply.status, reply.body, reply.headers, cut=cuts.pop())
        return reply

    monkeypatch.setattr(service, "_do", cut)
    assert_all_replied(asked(service, folder))
    assert not cuts


def test_a_service_that_asks_to_be_left_alone_is(service, folder, monkeypatch):
    real, slept, busy = service._do, [], [error(429, "busy", retry_after="7"), error(429, "busy", retry_after="9999")]
    monkeypatch.setattr(
        service,
        "_do",
        lambda method, kind, *rest: (
            busy.pop(0) if busy and (method, kind) == ("POST", "/batches") else real(method, kind, *rest)
        ),
    )
    monkeypatch.setattr(batch_service.time, "sleep", slept.append)
    assert_all_replied(asked(service, folder))
    assert [seconds for seconds in slept if seconds > 1] == [7, batch_service.LONGEST_WAIT]


def test_a_service_that_is_down_is_an_error_and_nothing_is_lost(service, folder):
    service.trouble.extend([("POST", "/batches", 503)] * 4)
    with pytest.raises(EndpointError, match="HTTP 503"):
        asked(service, folder, max_retries=3)
    assert_all_replied(asked(service, folder))
    assert_each_paid_once(service)
    assert service.calls["POST", "/files"] == 1  # the file that was uploaded is used


def test_an_outage_during_the_wait_is_sat_out_but_not_for_ever(service, folder):
    service.trouble.extend([("GET", "/batches/*", 503)] * 9)
    assert_all_replied(asked(service, folder, max_retries=0))
    service.trouble.extend([("GET", "/batches/*", 503)] * 10)
    with pytest.raises(EndpointError, match="HTTP 503"):
        asked(service, folder, ["other"], max_retries=0)
    assert_all_replied(asked(service, folder, ["other"]), ["other"])
    assert_each_paid_once(service, [*KEYS, "other"])


def test_what_is_wrong_for_good_is_an_error_at_once(service, folder, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    service.key = SECRET
    with pytest.raises(EndpointError, match=r"HTTP 401: .*\*\*\*"):
        asked(service, folder, api_key_env="JUDGE_KEY")
    assert service.requests == 1


def test_a_service_without_a_batch_api_is_told_so(service, folder, monkeypatch):
    monkeypatch.setattr(service, "_do", lambda *_: Reply(404, b'{"detail": "Not Found"}'))
    with pytest.raises(BatchRejected, match="has it a Batch API"):
        asked(service, folder)
    monkeypatch.setattr(service, "_do", lambda *_: Reply(400, b'{"error": {"message": "file too large"}}'))
    with pytest.raises(BatchRejected, match="HTTP 400: file too large; lower the batch's max_bytes"):
        asked(service, folder, ["other"])
    monkeypatch.setattr(service, "_do", lambda *_: Reply(200, b"<html>welcome</html>"))
    with pytest.raises(EndpointError, match="no reply of a Batch API: <html>"):
        asked(service, folder, ["third"], max_retries=1)


def test_a_batch_that_the_service_forgot_is_an_error_that_names_its_record(service, folder):
    service.running = 10**6
    with pytest.raises(EndpointError, match="max_wait_hours"):
        asked(service, folder, max_wait_hours=1e-9)
    service.batches.clear()
    (record,) = BatchRecords(folder).all(service.base_url, MODEL)
    with pytest.raises(EndpointError, match=rf"{record.batch_id}.*HTTP 404.*remove .*{record.id}: its 10 requests"):
        asked(service, folder)
    shutil.rmtree(folder / record.id)
    service.running = 1
    assert_all_replied(asked(service, folder))


def test_a_wait_that_is_too_long_is_an_error_and_the_next_run_goes_on_waiting(service, folder):
    service.running = 50
    with pytest.raises(EndpointError, match=r"batch_\d+ is still 'in_progress' after .* hours \(max_wait_hours\)"):
        asked(service, folder, max_wait_hours=0.01 / 3600)
    assert_all_replied(asked(service, folder))
    assert_each_paid_once(service)
    assert len(service.batches) == 1


@pytest.mark.parametrize("key", ["", "k" * 65, "with space", "line\nbreak", "ключ"])
def test_a_key_that_no_custom_id_can_be_is_refused(service, folder, key):
    with pytest.raises(ValueError, match="can't name a request"):
        asked(service, folder, [key])
    assert service.requests == 0


def test_the_key_of_the_endpoint_is_nowhere(service, folder, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    service.key = SECRET
    service.answer_line = lambda body: completion({"messages": [{"content": f"I was sent Bearer {SECRET}"}]})
    service.spoiled |= {"key-1": [400], "key-2": [500] * 9}
    texts = [str(outcome) for outcome in asked(service, folder, api_key_env="JUDGE_KEY").values()]
    service.invalid = lambda line: {"code": "c", "message": f"with {SECRET}", "param": None}
    with pytest.raises(BatchRejected) as raised:
        asked(service, folder, ["other"], api_key_env="JUDGE_KEY")
    texts.append(str(raised.value))
    service.trouble.extend([("POST", "/batches", 500)] * 9)
    with pytest.raises(EndpointError) as raised:
        asked(service, folder, ["third"], api_key_env="JUDGE_KEY")
    texts.append(str(raised.value))
    texts += [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert sum("Bearer ***" in text for text in texts) >= 12
    assert not [text for text in texts if SECRET in text]


@contextmanager
def stopping_before_save(step: str):
    """A caller that dies between what the service did for a step and its record."""
    real = HeldRecord.save

    def save(held, **changed):
        if changed.get("step") == step:
            raise Stopped
        real(held, **changed)

    with patch.object(HeldRecord, "save", save):
        yield


def test_a_batch_that_was_made_unrecorded_is_found_on_whatever_page_it_is(service, folder, tmp_path):
    service.page = 2
    with pytest.raises(Stopped), stopping_before_save("submitted"):
        asked(service, folder, KEYS[:4])
    for number in range(5):
        asked(service, tmp_path / "another", [f"foreign-{number}"])
    listed = service.calls["GET", "/batches"]
    assert_all_replied(asked(service, folder, KEYS[:4]), KEYS[:4])
    assert service.calls["GET", "/batches"] - listed == 3
    assert service.paid["key-0"] == 1 and len(service.batches) == 6


def test_a_file_that_was_uploaded_unrecorded_is_deleted(service, folder):
    with pytest.raises(Stopped), stopping_before_save("uploaded"):
        asked(service, folder)
    assert len(service.files) == 1
    assert_all_replied(asked(service, folder))
    assert len(service.files) == 2 and service.calls["DELETE", "/files/*"] == 1  # the new input and the output


@pytest.mark.parametrize("wanted", [KEYS[:6], [*KEYS[6:], "more"]], ids=["fewer", "others too"])
def test_an_uploaded_file_with_requests_that_are_wanted_no_more_is_not_run(service, folder, wanted):
    service.trouble.extend([("POST", "/batches", 503)] * 4)
    with pytest.raises(EndpointError):
        asked(service, folder)
    assert_all_replied(asked(service, folder, wanted), wanted)
    assert_each_paid_once(service, wanted)
    assert service.calls["DELETE", "/files/*"] == 1


def test_an_uploaded_file_that_the_service_holds_no_more_is_uploaded_anew(service, folder):
    service.trouble.extend([("POST", "/batches", 503)] * 4)
    with pytest.raises(EndpointError):
        asked(service, folder)
    service.files.clear()
    assert_all_replied(asked(service, folder))
    assert_each_paid_once(service)


def test_an_asker_who_stops_listening_gets_the_rest_later(service, folder):
    replies = queue_of(service.base_url, folder).ask(bodies_of(), ASKER)
    first = dict(next(replies) for _ in range(3))
    replies.close()
    rest = [key for key in KEYS if key not in first]
    assert_all_replied(first | asked(service, folder, rest))
    assert_each_paid_once(service)


def test_replies_that_somebody_removed_are_missed(service, folder):
    asked(service, folder)
    (record,) = BatchRecords(folder).all(service.base_url, MODEL)
    (folder / record.id / "output.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"{record.id} has lost 10 replies"):
        asked(service, folder)


def test_a_record_that_can_not_be_read_stops_the_work_and_an_unfinished_one_does_not(service, folder):
    (folder / "20250101T000000-half").mkdir(parents=True)
    (folder / "20250101T000000-half" / "keys").write_text("key-0\n")
    assert_all_replied(asked(service, folder))
    assert not (folder / "20250101T000000-half").exists()
    (folder / "20250101T000001-torn").mkdir()
    (folder / "20250101T000001-torn" / "record.json").write_text('{"id": ')
    with pytest.raises(ValueError, match=r"20250101T000001-torn.*is no record of a batch"):
        asked(service, folder)


def test_a_lock_on_a_folder_that_is_gone_is_no_lock(service, folder, monkeypatch):
    """Between opening the lock and locking it, its holder may take the record away."""
    records = BatchRecords(folder)
    with records.claiming():
        held = records.new(service.base_url, MODEL, ASKER, KEYS)
    assert records.hold(held.id) is None
    real = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        held.remove()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert records.hold(held.id) is None and records.read(held.id) is None


def test_a_caller_stopped_before_any_step_goes_on_in_the_same_process(service, tmp_path):
    def stop(name):
        raise Stopped(name)

    for number in range(200):
        place = tmp_path / str(number)
        place.mkdir()
        caller = Caller(service.base_url, place, [f"{number}-{index}" for index in range(3)], max_requests=2)
        try:
            with stopping_before(number, stop):
                caller.run()
        except Stopped:
            caller.run()
        else:
            break
        finally:
            assert set(caller.ledger.values()) == {reply_to(key, long(key)) for key in caller.keys}
    assert number > 25
    assert set(service.paid.values()) == {1}


def long(key: str) -> int:
    return 400 if key.endswith("1") else 0


def outcome_of(task: str, service: ServedBatches, place) -> list[dict]:
    """Runs the callers from a process of their own, which forks before it has threads."""
    command = [sys.executable, batch_world.__file__, task, service.base_url, str(place)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def assert_paid_once_and_given(service, outcomes) -> None:
    assert outcomes[-1]["codes"] == [0, 0]
    assert {tuple(one["codes"]) for one in outcomes[:-1]} == {(-9, 0)}
    for one in outcomes:
        assert one["ledger"] == {key: reply_to(key, long(key)) for key in one["keys"]}, one
        assert [service.paid[key] for key in one["keys"]] == [1] * len(one["keys"]), one
    used = {batch.input_file_id for batch in service.batches.values()}
    assert {file_id for file_id, (name, _) in service.files.items() if name.startswith("m3po-")} == used


def test_a_caller_killed_before_any_step_pays_once_and_gets_all(service, tmp_path):
    outcomes = outcome_of("kill", service, tmp_path)
    assert_paid_once_and_given(service, outcomes)
    assert len(outcomes) > 40
    # These two are for what a killed caller left.
    assert {one["step"] for one in outcomes[:-1]} == {name for _, name in STEPS} - {"remove", "delete"}


def test_a_caller_killed_again_as_it_starts_again_pays_once_and_gets_all(service, tmp_path):
    outcomes = outcome_of("kill again", service, tmp_path)
    assert_paid_once_and_given(service, outcomes)
    assert {one["step"] for one in outcomes[:-1]} == {name for _, name in STEPS}


def test_two_callers_at_once_share_what_both_want(service, tmp_path):
    outcomes = outcome_of("race", service, tmp_path)
    assert [one["codes"][0] for one in outcomes] == [0, -9] * 4
    for one in outcomes:
        assert one["codes"][1:] == [0, 0], one
        for ledger in one["ledgers"]:
            assert len(ledger) == N_KEYS
            assert ledger == {key: reply_to(key, long(key)) for key in ledger}
    assert set(service.paid.values()) == {1}
    assert len(service.paid) == len(outcomes) * 3 * N_KEYS // 2


def test_two_threads_share_as_processes_do(service, folder):
    found = [{}, {}]

    def ask(side):
        found[side] = asked(service, folder, KEYS[2 * side : 8 + 2 * side], max_requests=3)

    threads = [threading.Thread(target=ask, args=(side,)) for side in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert_all_replied(found[0], KEYS[:8])
    assert_all_replied(found[1], KEYS[2:])
    assert_each_paid_once(service)


def test_a_request_that_its_file_had_no_room_for_is_no_failure_to_others(service, folder, monkeypatch):
    """One caller claims more than its file holds and gives the rest back, after another has begun to wait for all."""
    seen, real_hold, real_narrow = threading.Event(), BatchRecords.hold, HeldRecord.narrow

    def hold(records, record_id):
        held = real_hold(records, record_id)
        if held is None:
            seen.set()
        return held

    def narrow(held, keys):
        assert seen.wait(20)
        real_narrow(held, keys)

    monkeypatch.setattr(BatchRecords, "hold", hold)
    monkeypatch.setattr(HeldRecord, "narrow", narrow)
    found = []
    callers = [threading.Thread(target=lambda: found.append(asked(service, folder, max_bytes=500))) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert len(found) == 2
    for one in found:
        assert_all_replied(one)
    assert_each_paid_once(service)
