"""RWLayer.run(): what a command is given, what comes out of it, and what is wrong with a call."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import disk
import machine
import pytest
import sandboxes
import tarkit
from another import ENVIRONMENT, command

import layerstore
from layerstore import NotSupportedError


@pytest.fixture
def layer(store):
    return store.register(sandboxes.layer_tar())


@pytest.fixture
def box(store, layer):
    return store.create_rw_layer("box", layer)


def changes(box):
    return [str(change) for change in box.changes()]


def out(box, *argv, **how):
    done = box.run(argv, check=True, **how)
    assert done.stderr == b""
    return done.stdout.decode()


def shell(box, script, **how):
    return out(box, "sh", "-c", script, **how)


# ---- what it returns ----


def test_a_command_is_run_and_its_output_returned(box):
    done = box.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (["sh", "-c", "echo out; echo err >&2; exit 7"], 7, b"out\n", b"err\n")


def test_what_it_writes_is_in_the_box_and_nothing_stays_mounted(box, root):
    box.run(["sh", "-c", "echo a >/tmp/a; rm /etc/passwd"], check=True)
    assert changes(box) == ["C /etc", "D /etc/passwd", "C /tmp", "A /tmp/a"]
    assert disk.mounts_below(root) == []
    with box.mounted() as path:
        assert Path(path, "tmp/a").read_text() == "a\n"


def test_a_command_that_writes_nothing_leaves_no_change(box):
    box.run(["true"], check=True)
    box.run(["true"], check=True, network=True, binds={"/mnt/deep/one": "/usr", "/etc/file": "/etc/hostname"})
    assert changes(box) == []


def test_a_box_on_nothing_and_a_box_that_is_mounted(store, box):
    path = box.mount()
    Path(path, "tmp/from outside").write_text("x")
    assert out(box, "cat", "/tmp/from outside") == "x"
    box.run(["sh", "-c", "echo y >/tmp/inside"], check=True)
    assert Path(path, "tmp/inside").read_text() == "y\n"
    assert os.path.ismount(path)
    box.unmount()
    bare = store.create_rw_layer("bare")
    bare.apply_diff(sandboxes.layer_tar())
    assert out(bare, "ls", "/") == "bin\ndev\netc\nhome\nproc\nsecret\ntmp\n"
    assert not {"proc", "dev"} & set(os.listdir(bare.mount()))


def test_one_box_runs_many_commands_at_a_time(box, root):
    from stored import at_once

    jobs = [lambda i=i: shell(box, f"echo {i} >/tmp/{i}; sleep 0.2; cat /tmp/{i}") for i in range(8)]
    assert at_once(*jobs) == [f"{i}\n" for i in range(8)]
    assert disk.mounts_below(root) == []


KEEPS = "cat /proc/self/comm >/tmp/{0} && sleep 0.{0} && cat /proc/self/comm </dev/null && ls /dev/null && ls /mnt/x"


def test_the_mount_points_of_one_run_outlive_another_that_made_them(box, room):
    """Removing a mount point takes away what is mounted there in every namespace: the last run alone may."""
    from stored import at_once

    shared = {"/mnt/x": str(room), "/etc/one": "/etc/hostname"}
    for _ in range(3):
        jobs = [lambda i=i: shell(box, KEEPS.format(i), binds=shared | {f"/own/{i}": str(room)}) for i in (1, 5, 3, 2, 4)]
        assert set(at_once(*jobs)) == {"cat\n/dev/null\ndocker\n"}
    assert changes(box) == ["C /tmp", *(f"A /tmp/{i}" for i in range(1, 6))]


def test_mount_points_outlive_those_of_another_process(box, root, room):
    code = "import sys, layerstore\nwith layerstore.Store(sys.argv[1]) as store: print(store.get_rw_layer('box').run(['sh', '-c', sys.argv[2]], binds={'/mnt/x': sys.argv[3]}).stdout)"
    with box.mounted():
        others = [sandboxes.caller(code, root, KEEPS.format(i), room) for i in (2, 9, 5)]
        outs = [shell(box, KEEPS.format(i), binds={"/mnt/x": str(room)}) for i in (1, 3, 1, 3)]
        said = [other.communicate()[0] for other in others]
    assert set(outs) == {"cat\n/dev/null\ndocker\n"}
    assert {text.strip() for text in said} == {repr(outs[0].encode()).encode()}
    assert [each for each in changes(box) if "/tmp" not in each] == []


def test_mount_points_that_a_killed_caller_left_are_removed_by_the_next_run(box, room):
    child = os.fork()
    if child == 0:
        box.run(["sleep", "60"], binds={"/mnt/deep/x": str(room), "/etc/file": "/etc/hostname"})
        os._exit(1)
    with box.mounted() as path:
        until = time.monotonic() + 20
        while not os.path.exists(f"{path}/etc/file") and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert os.path.exists(f"{path}/mnt/deep/x")
        box.run(["true"], binds={"/mnt/deep/x": str(room), "/etc/file": "/etc/hostname"})
        assert not os.path.exists(f"{path}/proc") and not os.path.exists(f"{path}/mnt")
    assert changes(box) == []


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -6 $$", 134)])
def test_return_codes_are_a_shells(box, script, code):
    assert box.run(["sh", "-c", script]).returncode == code
    if code:
        with pytest.raises(subprocess.CalledProcessError) as error:
            box.run(["sh", "-c", f"echo o; echo e >&2; {script}"], check=True)
        assert (error.value.returncode, error.value.stdout, error.value.stderr) == (code, b"o\n", b"e\n")


def test_both_pipes_and_the_input_are_used_at_once_and_every_byte_arrives(box):
    data = os.urandom(1 << 16) * 160
    script = "cat /tmp/big >&2 & cat; wait"
    with box.mounted() as path:
        Path(path, "tmp/big").write_bytes(data[::-1])
    done = box.run(["sh", "-c", script], input=data, check=True)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data[::-1]).digest()


def test_input_may_be_a_descriptor(box, room):
    (room / "given").write_bytes(b"one\ntwo\n")
    with open(room / "given", "rb") as file:
        file.seek(4)
        assert box.run(["cat"], input=file.fileno(), user=1000).stdout == b"two\n"
        assert not file.closed and os.fstat(file.fileno())
    read, write = os.pipe()
    try:
        os.write(write, b"piped")
        os.close(write)
        assert box.run(["cat"], input=read).stdout == b"piped"
    finally:
        os.close(read)
    with pytest.raises(ValueError, match=f"{read} is no open descriptor"):
        box.run(["cat"], input=read)


def test_the_hosts_null_device_is_not_handed_in(box):
    before = os.stat("/dev/null").st_mode
    with open("/dev/null", "rb") as null:
        done = box.run(["sh", "-c", "cat; chmod 600 /proc/self/fd/0; chmod 600 /dev/stdin; echo"], input=null.fileno())
    assert done.stdout == b"\n" and os.stat("/dev/null").st_mode == before


def test_input_may_be_left_unread_or_empty(box):
    assert box.run(["true"], input=bytes(1 << 22)).returncode == 0
    assert box.run(["cat"], input=b"").stdout == b""
    assert box.run(["cat"]).stdout == b""
    assert box.run(["cat"], input=bytearray(b"ab")).stdout == b"ab"
    assert box.run(["cat", "/dev/stdin"], input=b"ab", user=1000).stdout == b"ab"


def test_without_capture_it_writes_to_this_process(box, capfd):
    done = box.run(["sh", "-c", "echo to out; echo to err >&2"], capture=False)
    assert (done.stdout, done.stderr, done.returncode) == (None, None, 0)
    assert capfd.readouterr() == ("to out\n", "to err\n")


def test_a_time_limit_ends_it_and_keeps_the_output(box):
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as error:
        box.run(["sh", "-c", "echo so far; echo and so >&2; sleep 61"], timeout=0.5)
    assert 0.4 < time.monotonic() - began < 10
    assert (error.value.cmd[0], error.value.timeout, error.value.stdout, error.value.stderr) == ("sh", 0.5, b"so far\n", b"and so\n")
    assert sandboxes.processes_with("sleep 61") == []
    for at_once in (0, -1, 0.001):
        with pytest.raises(subprocess.TimeoutExpired):
            box.run(["sleep", "61"], timeout=at_once)
    assert box.run(["true"], timeout=60).returncode == 0
    assert sandboxes.children() == []


# ---- what it is given ----


def test_the_environment_is_its_own(box, monkeypatch):
    monkeypatch.setenv("SECRET", "of ours")
    plain = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=xterm"}
    assert set(out(box, "env").splitlines()) == plain
    given = out(box, "env", env={"A": "b=c", "HOME": "/x", "UMLAUT": "ä\n"})
    assert set(given.splitlines()) == plain - {"HOME=/root"} | {"A=b=c", "HOME=/x", "UMLAUT=ä", ""}
    assert "HOME=/home/joe\n" in out(box, "env", user="joe")
    assert "HOME=/\n" in out(box, "env", user=4242)


def test_a_name_is_looked_for_in_the_path_that_it_gets(box):
    with box.mounted() as path:
        for place in ("a", "b"):
            Path(path, "tmp", place).mkdir()
            Path(path, "tmp", place, "tool").write_text(f"#!/bin/sh\necho {place} $0\n")
        Path(path, "tmp/b/tool").chmod(0o755)
        Path(path, "tmp/c").mkdir()
    found = {"PATH": "/none:/etc/passwd:/tmp/c:/tmp/a:/tmp/b:/bin"}
    assert out(box, "tool", env=found) == "b /tmp/b/tool\n"      # the first one may not be executed
    with pytest.raises(PermissionError) as error:
        box.run(["tool"], env={"PATH": "/tmp/a:/bin"})
    assert error.value.filename == "tool"
    with pytest.raises(FileNotFoundError) as error:
        box.run(["tool"])
    assert error.value.filename == "tool"
    assert out(box, "./tool", cwd="/tmp/b") == "b ./tool\n"
    with pytest.raises(FileNotFoundError):
        box.run(["sh"], env={"PATH": ""})


@pytest.mark.parametrize(("argv0", "error"), [
    ("/bin/none", FileNotFoundError), ("", FileNotFoundError), ("/etc/passwd", PermissionError), ("/bin", PermissionError),
    ("/etc/passwd/x", NotADirectoryError), ("none", FileNotFoundError), ("x" * 300, FileNotFoundError), ("/" + "x" * 300, OSError),
    ("/tmp/dynamic", FileNotFoundError), ("/tmp/text", OSError),
])  # fmt: skip
def test_what_cannot_be_executed_is_an_error_that_names_it(box, root, argv0, error):
    with box.mounted() as path:
        for name, content in {"dynamic": b"#!/no/such/interpreter\n", "text": b"no program\n"}.items():
            Path(path, "tmp", name).write_bytes(content)
            Path(path, "tmp", name).chmod(0o755)
    with pytest.raises(error) as raised:
        box.run([argv0, "x"])
    assert raised.value.filename == argv0
    assert disk.mounts_below(root) == []


def test_the_working_directory(box):
    assert out(box, "pwd", cwd="/home/joe") == "/home/joe\n"
    assert out(box, "pwd", cwd="etc") == "/etc\n"
    for cwd, error in {"/none": FileNotFoundError, "/etc/passwd": NotADirectoryError}.items():
        with pytest.raises(error) as raised:
            box.run(["true"], cwd=cwd)
        assert raised.value.filename == cwd
    with pytest.raises(PermissionError) as raised:
        box.run(["true"], cwd="/secret", user=1000)
    assert raised.value.filename == "/secret"
    assert out(box, "pwd", cwd="/secret") == "/secret\n"


def test_the_mask_of_new_files_and_the_signals_are_plain(box):
    before = os.umask(0o077)
    try:
        script = "umask; grep -E 'Sig(Ign|Blk)' /proc/self/status; mkdir /tmp/new; stat -c %a /tmp/new"
        assert shell(box, script).split() == ["0022", "SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "755"]
    finally:
        os.umask(before)


# ---- who it is ----


@pytest.mark.parametrize(("user", "ids"), [
    (None, "0 0"), (0, "0 0"), ("root", "0 0"), ("joe", "1000 100"), (1000, "1000 100"), ("1000", "1000 100"), ("1000:7", "1000 7"), ("7:8", "7 8"), (4242, "4242 4242"), ("ann", "1001 1001"),
])  # fmt: skip
def test_the_user_is_really_that(box, user, ids):
    script = "echo $(id -u) $(id -g); grep -E '^(Uid|Gid|Groups)' /proc/self/status; touch /tmp/mine"
    lines = shell(box, script, user=user).splitlines()
    uid, gid = ids.split()
    assert [line.split() for line in lines] == [[uid, gid], ["Uid:", *[uid] * 4], ["Gid:", *[gid] * 4], ["Groups:"]]
    with box.mounted() as path:
        found = Path(path, "tmp/mine").stat()
        assert (found.st_uid, found.st_gid) == (int(uid), int(gid))


def test_another_user_may_not_do_what_root_may(box):
    for script in ("cat /secret/x", "touch /etc/x", "chown 1000 /etc/passwd", "chmod 777 /etc", "echo x >/etc/passwd", "kill -9 1"):
        assert box.run(["sh", "-c", script], user="joe").returncode != 0, script
    box.run(["sh", "-c", "echo hi >/tmp/x; chown 1000:100 /tmp/x; chmod 4755 /tmp/x; mkdir /var; su joe -c 'touch /tmp/by-joe'"], check=True)
    with box.mounted() as path:
        assert (Path(path, "tmp/x").stat().st_uid, Path(path, "tmp/x").stat().st_mode & 0o7777) == (1000, 0o4755)
        assert Path(path, "tmp/by-joe").stat().st_uid == 1000


@pytest.mark.parametrize("user", ["nobody-here", "joe:users", "worse", "broken", "", "1:2:3", "+5", "٣"])
def test_an_unknown_name_is_a_lookup_error(box, root, user):
    with box.mounted() as path, open(f"{path}/etc/passwd", "ab") as file:
        file.write(b"broken\nworse:x:no:0::/:\n:x:1:1::/:\n" + bytes(100))
    with pytest.raises(LookupError, match="etc/passwd"):
        box.run(["true"], user=user)
    assert disk.mounts_below(root) == []


def test_the_names_are_those_of_the_box(box, victim):
    with box.mounted() as path:
        Path(path, "etc/passwd").unlink()
        Path(path, "etc/passwd").symlink_to("../../../../../../" + str(victim / "hello"))
    with pytest.raises(LookupError):
        box.run(["true"], user="root")
    assert out(box, "id", "-u", user=12) == "12\n"
    with box.mounted() as path:
        Path(path, "etc/passwd").unlink()
        Path(path, "etc/passwd").symlink_to("/../../deep/../tmp/users")
        Path(path, "tmp/users").write_text("eve:x:66:67::/h:/bin/sh\n")
        Path(path, "deep").symlink_to("/home/joe")
    with pytest.raises(LookupError):        # /home/tmp/users
        box.run(["true"], user="eve")
    with box.mounted() as path:
        Path(path, "home/tmp").mkdir()
        Path(path, "tmp/users").rename(Path(path, "home/tmp/users"))
    assert out(box, "id", "-u", user="eve") == "66\n"


def test_a_box_whose_users_are_a_fifo_or_a_loop_has_none(box):
    for make in (os.mkfifo, lambda p: os.symlink("passwd", p), os.mkdir):
        with box.mounted() as path:
            place = Path(path, "etc/passwd")
            place.unlink() if not place.is_dir() else place.rmdir()
            make(place)
        with pytest.raises(LookupError):
            box.run(["true"], user="joe")
        assert out(box, "echo", "runs") == "runs\n"


# ---- what is mounted ----


def test_binds_are_there_and_are_gone(box, room):
    shared, single = room / "shared", room / "single"
    shared.mkdir()
    single.write_text("one\n")
    binds = {"/mnt/a": str(shared), "/mnt/ro": f"ro:{shared}", "/tmp/file": str(single), "/etc/passwd": f"ro:{single}"}
    assert shell(box, "echo hi >/mnt/a/x; cat /mnt/ro/x /tmp/file /etc/passwd; echo two >/tmp/file; ls -A /mnt", binds=binds) == "hi\none\none\na\nro\n"
    assert (shared / "x").read_text() == "hi\n"
    assert single.read_text() == "two\n"
    for script in ("touch /mnt/ro/y", "echo >/etc/passwd", "rm /mnt/ro/x"):
        assert box.run(["sh", "-c", script], binds=binds).returncode != 0
    assert changes(box) == []


def test_a_mount_point_that_is_no_longer_empty_stays(box, room):
    script = "rmdir /mnt/b 2>/dev/null; touch /mnt/beside"
    shell(box, script, binds={"/mnt/a": str(room), "/mnt/b": str(room)})
    assert changes(box) == ["A /mnt", "A /mnt/beside"]


def test_binds_in_binds_come_in_order(box, room):
    outer, inner, other = room / "outer", room / "inner", room / "other"
    for place in (outer, inner, other):
        place.mkdir()
        (place / place.name).write_text("")
    binds = {"/x": str(outer), "/x/y/z": str(inner), "/x/outer": f"ro:{room / 'other' / 'other'}"}
    assert shell(box, "ls /x /x/y/z", binds=binds) == "/x:\nouter\ny\n\n/x/y/z:\ninner\n"
    assert sorted(os.listdir(outer)) == ["outer"]
    with pytest.raises(FileNotFoundError) as error:
        box.run(["true"], binds={"/x": f"ro:{outer}", "/x/y": str(inner)})
    assert error.value.filename == "/x/y"
    assert changes(box) == []


def test_mount_points_lie_in_the_box_wherever_its_links_lead(box, victim, room):
    with box.mounted() as path:
        Path(path, "out").symlink_to(victim)
        Path(path, "up").symlink_to("../../../../.." + str(victim))
        Path(path, "here").symlink_to("/home/joe")
        Path(path, "dangling").symlink_to("/home/new/place")
        Path(path, "loop").symlink_to("loop")
    (room / "data").write_text("data")
    binds = {f"/{name}/point": str(room) for name in ("out", "up", "here", "dangling")}
    assert shell(box, "ls /here/point /home/joe/point /home/new/place/point", binds=binds).split().count("data") == 3
    with pytest.raises(OSError, match="loop"):
        box.run(["true"], binds={"/loop/x": str(room)})
    assert changes(box) == ["A /dangling", "A /here", "A /loop", "A /out", "A /up"]


@pytest.mark.parametrize("target", ["/oldroot", "/oldroot/tmp", "../oldroot/etc", "etc", "missing/deep"])
def test_proc_and_dev_lie_in_the_box_wherever_its_links_lead(store, target):
    links = tarkit.symlink("proc", target) + tarkit.symlink("dev", "tmp/" + "../" * 20 + "newroot")
    box = store.create_rw_layer("linked", store.register(sandboxes.layer_tar(links)))
    box.run(["cat", "/proc/self/status"])
    assert changes(box) in ([], ["C /"])
    assert not os.path.exists("/oldroot") and not os.path.exists("/newroot")


def test_nothing_is_mounted_over_the_root_of_the_box(box, store, room):
    with box.mounted() as path:
        Path(path, "top").symlink_to("home/..")
    for point in ("/top", "/top/."):
        with pytest.raises(OSError, match="root of the layer") as error:
            box.run(["true"], binds={point: str(room)})
        assert (error.value.errno, error.value.filename) == (errno.EBUSY, "/top")
    linked = store.create_rw_layer("linked", store.register(sandboxes.layer_tar(tarkit.symlink("proc", "/"))))
    with pytest.raises(OSError, match="root of the layer"):
        linked.run(["true"])
    assert (changes(box), changes(linked)) == (["A /top"], [])


@pytest.mark.parametrize(("binds", "error"), [
    ({"/x": "/none/such"}, FileNotFoundError), ({"/x": "ro:/none/such"}, FileNotFoundError), ({"relative": "/usr"}, ValueError), ({"/": "/usr"}, ValueError), ({"/../.": "/usr"}, ValueError),
    ({"/x": ""}, ValueError), ({"/x": "ro:"}, ValueError), ({"/x\0": "/usr"}, ValueError), ({"/x": "/usr\0"}, ValueError), ({"/x": 3}, TypeError), ({3: "/usr"}, TypeError),
    ([("/x", "/usr")], TypeError), ({"/etc/passwd": "/usr"}, NotADirectoryError), ({"/etc": "/etc/hostname"}, IsADirectoryError), ({"/etc/passwd/x": "/usr"}, NotADirectoryError),
])  # fmt: skip
def test_wrong_binds(box, root, binds, error):
    with pytest.raises(error):
        box.run(["true"], binds=binds)
    assert disk.mounts_below(root) == []
    assert changes(box) == []


def test_a_source_that_may_not_be_read_is_told(room):
    from layerstore.running import command

    place = room / "closed"
    place.mkdir(mode=0o700)
    (place / "x").write_text("")
    child = os.fork()
    if child == 0:
        os.setuid(1000)
        try:
            command.checked(["true"], binds={"/x": f"{place}/x"})
        except PermissionError as error:
            os._exit(0 if error.filename == f"{place}/x" else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_network_is_none_or_ours(box):
    assert shell(box, "grep -o '^ *[a-z0-9]*:' /proc/net/dev").split() == ["lo:"]
    assert "LOOPBACK,UP" in out(box, "ip", "link", "show", "lo")
    ours = {line.split(":")[0].strip() + ":" for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    assert set(shell(box, "grep -o '^ *[a-z0-9]*:' /proc/net/dev", network=True).split()) == ours


def test_the_names_of_hosts_are_looked_up_as_here_unless_the_box_says_how(store, box):
    host = Path("/etc/resolv.conf")
    assert box.run(["cat", "/etc/resolv.conf"]).returncode == 1
    if host.exists():
        assert out(box, "cat", "/etc/resolv.conf", network=True) == host.read_text()
        assert box.run(["sh", "-c", "echo >>/etc/resolv.conf"], network=True).returncode != 0
        with box.mounted() as path:
            Path(path, "etc/resolv.conf").symlink_to("../run/resolved/stub.conf")
        assert out(box, "cat", "/etc/resolv.conf", network=True) == host.read_text()
    with box.mounted() as path:
        Path(path, "etc/resolv.conf").unlink(missing_ok=True)
        Path(path, "etc/resolv.conf").write_text("its own\n")
    assert out(box, "cat", "/etc/resolv.conf", network=True) == "its own\n"
    assert changes(box) == ["C /etc", "A /etc/resolv.conf"]


# ---- what is wrong with a call ----


@pytest.mark.parametrize(("argv", "error"), [("true", TypeError), (b"true", TypeError), (None, TypeError), ([], ValueError), ((), ValueError), (["a\0b"], ValueError), (["true", "\0"], ValueError), ([1], TypeError), (["true", None], TypeError)])
def test_wrong_argv(box, root, argv, error):
    with pytest.raises(error):
        box.run(argv)
    assert disk.mounts_below(root) == []


@pytest.mark.parametrize(("how", "error"), [
    ({"cwd": 3}, TypeError), ({"cwd": "/\0"}, ValueError), ({"env": [("A", "b")]}, TypeError), ({"env": {"A": 3}}, TypeError), ({"env": {"A": "\0"}}, ValueError), ({"env": {"": "b"}}, ValueError),
    ({"env": {"A=B": "c"}}, ValueError), ({"user": 1.5}, TypeError), ({"user": True}, TypeError), ({"user": -1}, ValueError), ({"user": 2**32 - 1}, ValueError), ({"user": "4294967295"}, ValueError),
    ({"user": "0:4294967295"}, ValueError), ({"user": "a\0b"}, ValueError), ({"timeout": "soon"}, ValueError), ({"timeout": float("nan")}, ValueError), ({"timeout": []}, TypeError), ({"input": "text"}, TypeError), ({"input": True}, TypeError), ({"input": -1}, ValueError),
])  # fmt: skip
def test_wrong_arguments(box, root, how, error):
    with pytest.raises(error):
        box.run(["true"], **how)
    assert disk.mounts_below(root) == []


@pytest.mark.parametrize("version", [None, "bubblewrap 0.3.3", "bubblewrap 0.1.8", "something else", "exit 1"])
def test_without_bubblewrap_or_with_an_old_one_nothing_is_mounted(box, root, room, monkeypatch, version):
    place = room / "programs"
    place.mkdir()
    if version:
        (place / "bwrap").write_text(f"#!/bin/sh\necho {version}\ntouch {room}/asked\n" if version != "exit 1" else "#!/bin/sh\nexit 1\n")
        (place / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}")
    if version:
        monkeypatch.setenv("PATH", f"{place}:/bin:/usr/bin")
    with pytest.raises(NotSupportedError, match="package `bubblewrap`"):
        box.run(["true"])
    assert disk.mounts_below(root) == []


def test_a_bubblewrap_that_fails_is_quoted(box, root, room, monkeypatch):
    (room / "bwrap").write_text('#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit\necho "bwrap: no luck today" >&2; exit 1\n')
    (room / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{room}:/bin:/usr/bin")
    with pytest.raises(NotSupportedError, match="bwrap: no luck today"):
        box.run(["true"])
    assert disk.mounts_below(root) == []
    assert sandboxes.children() == []


def test_a_released_box_and_a_closed_store_run_nothing(store, box):
    box.release()
    with pytest.raises(layerstore.LayerNotRetainedError):
        box.run(["true"])
    store.close()
    with pytest.raises(layerstore.StoreClosedError):
        box.run(["true"])


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_long_argument_lists_arrive_whole(box, size):
    words = [f"{i:09}" for i in range(size // 10)]
    assert hashlib.sha256(box.run(["echo", *words]).stdout).hexdigest() == hashlib.sha256(" ".join(words).encode() + b"\n").hexdigest()
    long = {f"V{i}": "x" * 60_000 for i in range(15)}
    assert len(out(box, "env", env=long)) > 900_000


def test_more_arguments_than_the_kernel_takes_are_an_error(box, root):
    with pytest.raises(OSError) as error:
        box.run(["echo", "x" * (1 << 18)])
    assert (error.value.errno, error.value.filename) == (errno.E2BIG, "echo")
    assert disk.mounts_below(root) == []


def test_names_that_are_not_utf8_arrive_as_they_are(box):
    word = os.fsdecode(b"\xff\xfe")
    assert box.run(["printf", "%s", word], env={"X": word}).stdout == b"\xff\xfe"
    assert sys.getfilesystemencodeerrors() == "surrogateescape"


def test_a_program_needs_a_library_of_the_box_and_gets_it(store):
    """Of this machine: a dynamic program with its loader and libraries."""
    machine.needs("ldd")
    said = subprocess.run(["ldd", "/bin/cat"], capture_output=True, check=True, text=True).stdout
    files = {"/bin/cat", *(word for word in said.split() if word.startswith("/"))}
    tar = b"".join(tarkit.file(path[1:], Path(path).read_bytes(), mode=0o755) for path in sorted(files)) + tarkit.end()
    box = store.create_rw_layer("dynamic", store.register(tar))
    assert box.run(["cat"], input=b"through\n", check=True).stdout == b"through\n"
    assert box.run(["cat", "/proc/self/comm"], user=1000, check=True).stdout == b"cat\n"


ROOTLESS = """
import sys, layerstore, sandboxes
with layerstore.Store(sys.argv[1]) as store:
    box = store.create_rw_layer("box", store.register(sandboxes.layer_tar()))
    print(box.run(["sh", "-c", "id -u; touch /tmp/x; chmod 600 /dev/null; echo x >/proc/sys/kernel/hostname; grep CapEff /proc/self/status"]))
    try:
        box.run(["true"], user=1000)
    except OSError as error:
        print(error.errno, error)
    print([str(change) for change in box.changes()])
"""


@pytest.mark.only("overlay2", "no image is mounted in a user namespace")
def test_a_user_namespace_runs_commands_too(root):
    machine.needs("unshare")
    done = subprocess.run(command(ROOTLESS, root, front=("unshare", "-Urm")), capture_output=True, check=True, text=True, env=ENVIRONMENT).stdout
    assert "stdout=b'0\\nCapEff:\\t00000000000405fb\\n'" in done and done.count("Read-only file system") == 2
    assert f"{errno.EINVAL} " in done and "cannot become uid 1000" in done
    assert done.endswith("['C /tmp', 'A /tmp/x']\n")
