"""A process is taken for ours only where id and start agree."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bed.processes import wait_for
from machine import record
from machine.record import Record, Started


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert record.load(path) is None
    processes = {"etcd": Started(7, 9, ("/bin/etcd", "--flag"), "/logs/etcd.log")}
    written = Record("boot", "br0", {"net/ipv4/ip_forward": "0"}, ["/run/containerd"], processes)
    written.save(path)
    assert record.load(path) == written
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]


def test_the_name_of_a_process_may_hold_anything() -> None:
    rest = " ".join(["S", *map(str, range(4, 22)), "12345", "0"])
    assert record.stat_of(f"17 (a ) (S b) {rest}") == ("S", 12345)


def test_a_process_that_got_the_same_id_later_is_not_ours() -> None:
    since = record.started_at(os.getpid())
    assert since is not None
    own = Started(os.getpid(), since, (), "")
    assert record.runs(own)
    assert not record.runs(replace(own, since=since - 1))


def test_one_that_ended_and_that_nobody_waited_for_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        wait_for("the child to be a zombie", lambda: record.started_at(child.pid) is None)


def test_what_has_the_mark_is_found_with_its_children_and_that_of_another_folder_is_not(tmp_path: Path) -> None:
    code = "import subprocess; subprocess.run(['cat'])"
    env = record.environment(os.environ, tmp_path / "a")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=env) as child:
        wait_for("both", lambda: len(list(record.marked(tmp_path / "a"))) == 2)
        assert child.pid in record.marked(tmp_path / "a")
        assert list(record.marked(tmp_path / "b")) == list(record.marked(tmp_path)) == []
