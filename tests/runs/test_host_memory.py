from pathlib import Path

from workbench.runs.host_memory import available_host_memory

GIB = 1 << 30
UNLIMITED_V1 = 9223372036854771712


def machine(root: Path, *, available_gib: float, groups: str, mounts: list[str]) -> Path:
    """A fake /proc: what a kernel tells a process of its memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 99999999 kB\nMemAvailable: {int(available_gib * GIB) >> 10} kB\n"
    )
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(
        "".join(f"{30 + n} 23 0:{n} {mount}\n" for n, mount in enumerate(mounts))
    )
    return root


def group(root: Path, path: str, **files: int | str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


UNIFIED = "/ /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw"


def test_the_machine_bounds_a_process_without_limits(tmp_path: Path) -> None:
    root = machine(tmp_path, available_gib=20, groups="0::/user/me\n", mounts=[UNIFIED])
    group(root, "sys/fs/cgroup/user/me", memory__max="max", memory__current=5 * GIB)
    found = available_host_memory(root)
    assert found is not None
    assert (found.available_bytes, found.bound) == (20 * GIB, "MemAvailable")


def test_odd_mounts_do_not_hide_the_limit(tmp_path: Path) -> None:
    mounts = ["/ /media/a\u2028b rw - tmpfs tmpfs rw", "/ /mnt/unnamed rw - tmpfs  rw", UNIFIED]
    root = machine(tmp_path, available_gib=20, groups="0::/a\n", mounts=mounts)
    path = root / "proc/self/mountinfo"
    path.write_bytes(b"29 23 0:9 / /media/caf\xe9 rw - vfat /dev/sdb1 rw\n" + path.read_bytes())
    group(root, "sys/fs/cgroup/a", memory__max=9 * GIB, memory__current=6 * GIB)
    found = available_host_memory(root)
    assert found is not None
    assert found.available_bytes == 3 * GIB


def test_the_tightest_control_group_above_a_process_bounds_it(tmp_path: Path) -> None:
    root = machine(tmp_path, available_gib=20, groups="0::/a/b/c\n", mounts=[UNIFIED])
    group(root, "sys/fs/cgroup/a/b/c", memory__max="max", memory__current=1 * GIB)
    group(root, "sys/fs/cgroup/a/b", memory__max=9 * GIB, memory__current=6 * GIB,
          memory__stat=f"anon 1\ninactive_file {2 * GIB}\nactive_file 77")  # fmt: skip
    group(root, "sys/fs/cgroup/a", memory__max=16 * GIB, memory__current=7 * GIB)
    found = available_host_memory(root)
    assert found is not None
    # 9 allowed, 6 used, of which 2 are pages of files that can go
    assert found.available_bytes == 5 * GIB
    assert found.bound.endswith("sys/fs/cgroup/a/b")


def test_a_container_sees_its_group_where_it_is_mounted(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        available_gib=20,
        groups="5:cpu,cpuacct:/box/7\n4:memory:/box/7/job\n0::/\n",
        mounts=[
            "/ /sys/fs/cgroup rw - tmpfs tmpfs rw",
            "/box/7 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
            "/box/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        ],
    )
    group(root, "sys/fs/cgroup/memory/job", memory__limit_in_bytes=UNLIMITED_V1,
          memory__usage_in_bytes=GIB)  # fmt: skip
    group(root, "sys/fs/cgroup/memory", memory__limit_in_bytes=4 * GIB,
          memory__usage_in_bytes=3 * GIB,
          memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB}")  # fmt: skip
    found = available_host_memory(root)
    assert found is not None
    assert found.available_bytes == 2 * GIB
    assert found.bound.endswith("sys/fs/cgroup/memory")


def test_a_group_of_another_name_is_not_taken_for_a_part_of_the_mounted_one(
    tmp_path: Path,
) -> None:
    root = machine(
        tmp_path,
        available_gib=20,
        groups="4:memory:/box/77\n",
        mounts=["/box/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"],
    )
    group(root, "sys/fs/cgroup/memory", memory__limit_in_bytes=4 * GIB,
          memory__usage_in_bytes=3 * GIB)  # fmt: skip
    group(root, "sys/fs/cgroup/77", memory__limit_in_bytes=9, memory__usage_in_bytes=9)
    found = available_host_memory(root)
    assert found is not None
    assert found.available_bytes == GIB
