import subprocess
import sys

from m3po_dagster.device_use import DeviceUse, processor, resident_peak

MEGABYTE = 1_000_000


def test_a_step_says_where_it_ran_and_the_most_it_held():
    use = DeviceUse()
    held = b"x" * (64 * MEGABYTE)
    facts = use.facts()
    assert facts["device"] == processor() and "cores" in facts["device"] and facts["devices"] == 1
    assert facts["peak memory"] >= len(held)


def test_the_next_step_does_not_carry_the_memory_of_the_last():
    """In a process of its own: what the tests hold would hide it."""
    script = (
        "from m3po_dagster.device_use import DeviceUse\n"
        "first = DeviceUse(); held = b'x' * 200_000_000; one = first.facts()['peak memory']; del held\n"
        "two = DeviceUse().facts()['peak memory']\n"
        "print(one, two)"
    )
    one, two = map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert one >= 200 * MEGABYTE
    assert two < one - 150 * MEGABYTE or two == one  # where the system may not be told to forget


def test_of_a_server_nothing_is_known():
    assert DeviceUse(served=True).facts() == {"device": "a server", "devices": 1, "peak memory": None}


def test_no_torch_is_loaded_for_it():
    script = (
        "import sys; from m3po_dagster.device_use import DeviceUse; DeviceUse().facts(); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_gpu_is_asked_once_it_is_in_use(monkeypatch):
    peaks, reset = [5, 9], []

    class Gpu:
        is_available = is_initialized = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        get_device_name = staticmethod(lambda number: f"GPU {number}")
        reset_peak_memory_stats = staticmethod(lambda number: reset.append(number))
        max_memory_allocated = staticmethod(lambda number: peaks[number])

    monkeypatch.setitem(sys.modules, "torch", type("torch", (), {"cuda": Gpu}))
    use = DeviceUse()
    assert reset == [0, 1]
    assert use.facts() == {"device": "GPU 0", "devices": 2, "peak memory": 9}
    peaks[:] = [0, 0]
    assert use.facts()["device"] == processor() and use.facts()["peak memory"] == resident_peak()
