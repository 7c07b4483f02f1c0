"""RWLayer.run(): what a command inside cannot change of the machine, as root of the box and as another user."""

import os
import socket
import stat
from pathlib import Path

import pytest
import sandboxes
import tarkit

RIGHTS = 0x405FB         # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT
HOSTILE = (
    tarkit.dir("dev/"), tarkit.node("dev/kmsg", "c", 1, 11, mode=0o666), tarkit.node("dev/mem", "c", 1, 1, mode=0o666), tarkit.node("tmp/null", "c", 1, 3, mode=0o666),
    tarkit.node("tmp/disk", "b", 254, 0, mode=0o666), tarkit.file("suid/id", Path(sandboxes.BUSYBOX).read_bytes() if os.path.exists(sandboxes.BUSYBOX) else b"", mode=0o4755),
    tarkit.hardlink("suid/touch", "suid/id", mode=0o4755), tarkit.hardlink("suid/cat", "suid/id", mode=0o4755),
)  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


@pytest.fixture
def box(store):
    return store.create_rw_layer("box", store.register(sandboxes.layer_tar(*HOSTILE)))


def settings():
    """What a command may be after: settings of the kernel, and the devices that are shown inside."""
    names = ["core_pattern", "hostname", "domainname", "modprobe", "panic", "sysrq", "pid_max"]
    found = {name: Path("/proc/sys/kernel", name).read_text() for name in names if os.path.exists(f"/proc/sys/kernel/{name}")}
    for name in DEVICES:
        about = os.stat(f"/dev/{name}")
        found[name] = (about.st_mode, about.st_uid, about.st_gid, about.st_rdev)
    found["bwrap"] = [os.stat(f"{place}/bwrap").st_mode for place in os.get_exec_path() if os.path.exists(f"{place}/bwrap")]
    return found | {"name": socket.gethostname()}


@pytest.fixture(autouse=True)
def machine_unchanged():
    before = settings()
    yield
    assert settings() == before


def refused(box, *scripts, user=None, **how):
    """Each script fails, with something to say about it."""
    done = {script: box.run(["sh", "-c", script], user=user, **how) for script in scripts}
    assert [script for script, each in done.items() if each.returncode == 0 or not each.stderr] == []


WRITES = [f"echo 1 >/proc/{name}" for name in ("sys/kernel/core_pattern", "sys/kernel/hostname", "sys/kernel/panic", "sys/vm/drop_caches", "sys/net/ipv4/ip_forward", "sysrq-trigger", "irq/default_smp_affinity")]


@pytest.mark.parametrize("user", [None, "joe"])
def test_no_setting_of_the_kernel_can_be_written(box, user):
    refused(box, *WRITES, user=user)
    refused(box, *WRITES, user=user, network=True)


def test_what_is_writable_below_proc_is_of_the_commands_own(box):
    """Each file below /proc that root may write, opened for writing: it is read-only, or needs a capability that is not there."""
    find = "find /proc -path '/proc/[0-9]*' -prune -o -path /proc/self -prune -o -path /proc/thread-self -prune -o -type f -perm /222 -print"
    script = find + " | while read f; do (: >>$f) 2>/dev/null && echo $f; done"
    opened = box.run(["sh", "-c", script]).stdout.decode().split()
    assert [name for name in opened if not name.startswith("/proc/pressure/")] == []      # a trigger there is its opener's own


def test_read_only_mounts_cannot_be_taken_away(box):
    refused(
        box, "mount -o remount,rw /proc/sys", "umount /proc/sys", "umount -l /proc/sys", "umount /dev/null", "mount -t proc proc /tmp", "mount -t tmpfs t /tmp", "mount -o bind / /tmp",
        "unshare -m true", "unshare -Um umount /proc/sys", "unshare -Um umount -l /dev/null", "unshare -Urm mount -o remount,bind,rw /dev/null", "unshare -Urm mount -t sysfs s /tmp", "unshare -Urpmf mount -t proc p /tmp",
    )  # fmt: skip


def test_no_device_can_be_made_and_none_of_the_box_opened(box):
    refused(box, "mknod /tmp/m c 1 3", "mknod /dev/m c 1 3", "mknod /tmp/m b 254 0", "cat /tmp/null", "echo x >/tmp/null", "cat /tmp/disk", "unshare -Ur mknod /tmp/m c 1 3")
    refused(box, "cat /tmp/null", "cat /tmp/disk", user="joe")
    inside = box.run(["ls", "/dev"]).stdout.decode().split()
    assert set(DEVICES) <= set(inside) and not {"kmsg", "mem", "vda", "console", "fuse", "kvm"} & set(inside)


@pytest.mark.parametrize("user", [None, "joe"])
def test_devices_can_be_used_and_not_changed(box, user):
    script = "echo x >/dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c && ! echo x >/dev/full && echo ok"
    assert box.run(["sh", "-c", script], user=user).stdout.decode().split() == ["3", "3", "ok"]
    for name in DEVICES:
        refused(box, f"chmod 600 /dev/{name}", f"chown 5:5 /dev/{name}", f"rm /dev/{name}", f"mv /dev/{name} /dev/x", f"touch -d 2020-01-01 /dev/{name}", user=user)


def test_descriptors_are_no_way_to_them_either(box):
    """Standard input is the sandbox's own /dev/null: a chmod of it by the descriptor would be the host's."""
    refused(box, "chmod 600 /proc/self/fd/0", "chown 5 /dev/stdin", "chmod 600 /dev/null")


def test_the_programs_of_the_host_are_out_of_reach(box):
    """Pid 1 is a program of the host: neither its file, nor its root, nor its memory."""
    refused(box, "cat /proc/1/exe", "chmod 755 /proc/1/exe", "ls /proc/1/root/", "ls /proc/1/cwd/", "cat /proc/1/environ", "cat /proc/1/fd/2", "echo >/proc/1/fd/2", "echo x >/proc/1/mem", "echo >/proc/1/oom_score_adj")
    assert box.run(["sh", "-c", "kill -9 1; kill -TERM 1; echo still here"]).stdout == b"still here\n"


def test_capabilities_are_those_that_are_promised(box):
    def rights(**how):
        lines = box.run(["grep", "^Cap", "/proc/self/status"], check=True, **how).stdout.decode().split()
        return {name: int(value, 16) for name, value in zip(lines[::2], lines[1::2], strict=True)}

    assert rights() == {"CapInh:": 0, "CapPrm:": RIGHTS, "CapEff:": RIGHTS, "CapBnd:": RIGHTS, "CapAmb:": 0}
    assert set(rights(user="joe").values()) == {0}
    assert set(rights(user="0:5").values()) == {0, RIGHTS}
    assert box.run(["grep", "^NoNewPrivs", "/proc/self/status"]).stdout.split()[1] == b"1"


def test_setuid_programs_of_the_box_gain_nothing(box):
    assert box.run(["/suid/id", "-u"], user="joe").stdout == b"1000\n"
    refused(box, "/suid/cat /secret/none", "/suid/touch /etc/x", user="joe")


def test_root_of_the_box_does_what_chroot_and_chown_need(box):
    box.run(["sh", "-c", "mkdir -p /tmp/r/bin && cp /bin/busybox /tmp/r/bin/sh 2>/dev/null || ln /bin/busybox /tmp/r/bin/sh; chroot /tmp/r /bin/sh -c 'echo in >/here'"], check=True)
    box.run(["sh", "-c", "chown 1000:1000 /secret; chmod 2750 /secret; echo x >/secret/x; chown 7 /secret/x"], check=True)
    with box.mounted() as path:
        assert Path(path, "tmp/r/here").read_text() == "in\n"
        assert stat.S_IMODE(Path(path, "secret").stat().st_mode) == 0o2750
        assert Path(path, "secret/x").stat().st_uid == 7


def test_the_host_is_not_seen(box):
    lines = box.run(["sh", "-c", "ls /sys /oldroot /newroot 2>&1; ps | wc -l; cat /proc/mounts"]).stdout.decode()
    assert lines.count("No such file") == 3
    assert int(lines.split("\n")[3]) < 8
    sources = {line.split()[2] for line in lines.split("\n")[4:] if line}
    assert sources <= {"overlay", "proc", "tmpfs", "devtmpfs", "devpts"}
    assert box.run(["sh", "-c", f"kill -0 {os.getpid()}"]).returncode != 0


def test_the_ipc_and_the_host_name_are_its_own(box):
    assert box.run(["hostname"]).stdout.decode().strip() == socket.gethostname()
    refused(box, "hostname other")
    links = box.run(["sh", "-c", "for n in ipc uts pid net cgroup mnt user; do readlink /proc/self/ns/$n; done"]).stdout.decode().split()
    ours = [os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "uts", "pid", "net", "cgroup", "mnt", "user")]
    assert [mine == other for mine, other in zip(links, ours, strict=True)] == [False] * 6 + [True]


def test_nothing_of_ours_is_inherited(box):
    read, write = os.pipe()
    try:
        for fd in (read, write):
            os.set_inheritable(fd, True)
        for fd in (200, 300):
            os.dup2(read, fd)
        inside = box.run(["sh", "-c", "ls /proc/$$/fd; ls /proc/self/fd | wc -l"]).stdout.decode().split()
        assert inside == ["0", "1", "2", "4"]        # the last is what ls itself opens
        tty = box.run(["sh", "-c", ": </dev/tty"], input=b"x")
        assert tty.returncode != 0
    finally:
        for fd in (read, write, 200, 300):
            os.close(fd)
