"""AppArmor and SELinux: what a container asks for against what a kernel has; no such kernel is needed."""

import shutil
import subprocess
from typing import Any

import pytest

from cri.runtime import messages, wire
from cri.runtime.spec import ContainerSpec
from cri.server.container_lsm import DEFAULT_PROFILE, Labels, labels_of, profile_text
from host.errors import InputError, Unsupported
from host.lsm import SecurityModules, loaded_profiles, security_modules
from proto.cri import runtime_pb2 as pb

NONE = SecurityModules()
BOTH = SecurityModules(apparmor=True, selinux=True, profiles=frozenset({"mine"}))
KIND = pb.SecurityProfile
DEFAULT = KIND(profile_type=KIND.RuntimeDefault)
LOCAL = KIND(profile_type=KIND.Localhost, localhost_ref="mine")
LEVEL = pb.SELinuxOption(level="s0:c1,c2")


def found(modules: SecurityModules, pod: dict[str, Any] | None = None, **fields: Any) -> Labels:
    security = pb.LinuxContainerSecurityContext(**fields)
    return labels_of(security, pb.LinuxSandboxSecurityContext(**(pod or {})), modules)


@pytest.mark.parametrize(
    ("fields", "profile"),
    [
        ({}, DEFAULT_PROFILE),
        ({"privileged": True}, ""),
        ({"apparmor": DEFAULT}, DEFAULT_PROFILE),
        ({"apparmor": DEFAULT, "privileged": True}, ""),
        ({"apparmor": LOCAL}, "mine"),
        ({"apparmor": LOCAL, "privileged": True}, "mine"),
        ({"apparmor": KIND(profile_type=KIND.Unconfined)}, ""),
        ({"apparmor_profile": "localhost/mine"}, "mine"),
        ({"apparmor_profile": "runtime/default"}, DEFAULT_PROFILE),
        ({"apparmor_profile": "unconfined"}, ""),
    ],
)
def test_the_apparmor_profile(fields, profile):
    assert found(BOTH, **fields).apparmor == profile


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"apparmor": KIND(profile_type=KIND.Localhost)}, "localhost_ref"),
        ({"apparmor": KIND(profile_type=KIND.Localhost, localhost_ref="other")}, "'other' is not loaded"),
        ({"apparmor": KIND(profile_type=KIND.Unconfined, localhost_ref="mine")}, "only for profile_type"),
        ({"apparmor": KIND(profile_type=9)}, "type 9"),
        ({"apparmor_profile": "mine"}, "localhost/<name>"),
        ({"selinux_options": pb.SELinuxOption(level="s0 c1")}, "level"),
        ({"selinux_options": pb.SELinuxOption(level="s0:c1\n")}, "level"),
        ({"selinux_options": pb.SELinuxOption(type="a:b")}, "type"),
        ({"selinux_options": pb.SELinuxOption(role="a,context=b")}, "role"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        found(BOTH, **fields)


@pytest.mark.parametrize("profile", [DEFAULT, LOCAL])
def test_a_kernel_without_apparmor_is_an_error_for_who_asks(profile):
    assert found(NONE) == found(NONE, apparmor=KIND(profile_type=KIND.Unconfined)) == Labels()
    with pytest.raises(Unsupported, match="the kernel has no"):
        found(NONE, apparmor=profile)


@pytest.mark.parametrize("fields", [{"selinux_options": LEVEL}, {"pod": {"selinux_options": LEVEL}}])
def test_selinux_options_are_without_effect_where_no_policy_reads_them(fields, caplog):
    caplog.set_level("INFO")
    assert found(NONE, **fields) == Labels()
    assert "s0:c1,c2 without effect: the kernel has no SELinux" in caplog.text
    with pytest.raises(InputError, match="level"):
        found(NONE, selinux_options=pb.SELinuxOption(level="s0 c1"))


def test_selinux_labels_have_the_usual_defaults_and_come_from_the_pod():
    labels = found(BOTH, pod={"selinux_options": LEVEL})
    assert labels.selinux == "system_u:system_r:container_t:s0:c1,c2"
    assert labels.mount == "system_u:object_r:container_file_t:s0:c1,c2"
    own = pb.SELinuxOption(user="u", role="r", type="t_t", level="s0-s1:c0.c1023")
    assert (
        found(BOTH, pod={"selinux_options": LEVEL}, selinux_options=own).selinux == "u:r:t_t:s0-s1:c0.c1023"
    )
    files = Labels(mount="u:object_r:container_file_t:s0-s1:c0.c1023")
    assert found(BOTH, privileged=True, selinux_options=own) == files
    assert found(BOTH).selinux == ""


def test_what_the_kernel_has(tmp_path):
    assert security_modules(tmp_path) == NONE
    for name, text in {
        "module/apparmor/parameters/enabled": "Y\n",
        "fs/selinux/enforce": "1",
        "kernel/security/apparmor/profiles": "mine (enforce)\n/usr/bin/man (x) (complain)\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    found = security_modules(tmp_path)
    assert (found.apparmor, found.selinux) == (True, True)
    assert found.profiles == {"mine", "/usr/bin/man (x)"}
    assert loaded_profiles("") == frozenset()


def test_labels_are_written_where_the_next_exec_looks(tmp_path):
    spec = ContainerSpec(
        id="c",
        sandbox_id="s",
        argv=("x",),
        lower_dirs=(tmp_path,),
        apparmor_profile="mine",
        selinux_label="u:r:t:s0",
    )
    process = wire.decode(messages.container(spec, messages.Places(mountpoint=tmp_path, shm=None))["process"])
    assert process["labels"] == [
        [b"/proc/thread-self/attr/apparmor/exec", b"exec mine"],
        [b"/proc/thread-self/attr/exec", b"u:r:t:s0"],
    ]


def test_the_default_profile_is_one_that_the_parser_takes(tmp_path):
    text = profile_text(tmp_path)
    assert text.count("{") == text.count("}")
    parser = shutil.which("apparmor_parser", path="/sbin:/usr/sbin")
    if parser is None:
        pytest.skip("needs apparmor_parser (Debian package apparmor)")
    done = subprocess.run([parser, "-QK"], input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
