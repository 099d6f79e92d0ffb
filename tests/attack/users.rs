// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! An ordinary user on a bpffs that all may write to, and what is left on one.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::http;
use crate::common::lab::{BINARY, Balancer, LB, Lab, TWO};

const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
const MEND: &str = "mount the bpffs with mode=0700";

/// A bpffs as `mount -t bpf` makes it: everybody's, with the sticky bit.
struct Bpffs<'a> {
    lab: &'a Lab,
    /// What a command begins with to have it.
    within: String,
}

impl Bpffs<'_> {
    fn mount(lab: &Lab) -> Bpffs<'_> {
        lab.script("mkdir /run/bpf; mount -t bpf bpf /run/bpf");
        let script = "set -e\nmount --bind /run/bpf /sys/fs/bpf\nexec \"$@\"\n";
        let script = lab.write("with-bpffs", script);
        Bpffs {
            lab,
            within: format!("sh {script}"),
        }
    }

    fn balance(&self) -> Balancer<'_> {
        let line = format!("{} {BINARY} run {TWO}", self.within);
        self.lab.balance_by(&line)
    }

    fn stop(&self) -> String {
        let line = format!("{} {BINARY} stop", self.within);
        self.lab.at("lb", &line)
    }

    /// Folders of programs.
    fn programs(&self) -> Vec<String> {
        let find = "find /run/bpf -mindepth 3 -maxdepth 3 -type d";
        let found = self.lab.script(find);
        found.lines().map(str::to_owned).collect()
    }
}

/// The folder that the pins of eth0 go to.
fn name(lab: &Lab) -> String {
    let namespace = lab.script("stat -Lc %i /run/netns/lb");
    let index = lab.at("lb", "cat /sys/class/net/eth0/ifindex");
    format!("{}-{}", namespace.trim(), index.trim())
}

/// Each is played by an ordinary user, but for what begins with `root`.
#[test]
fn a_link_on_a_bpffs_that_all_may_write_to_leads_root_nowhere() {
    let test = "a_link_on_a_bpffs_that_all_may_write_to_leads_root_nowhere";
    let Some(lab) = crate::lab(test) else { return };
    let bpffs = Bpffs::mount(&lab);
    let name = name(&lab);
    // As a daemon would find its own things, or those of one before.
    let victim = format!("/run/victim/{name}/7/precious");
    for (played, mends) in [
        (
            format!("mkdir /run/bpf/xdp-proxy; ln -s /run/victim/{name} /run/bpf/xdp-proxy/{name}"),
            true,
        ),
        ("ln -s /run/victim /run/bpf/xdp-proxy".into(), true),
        (
            format!(
                "root mkdir -m 777 /run/bpf/xdp-proxy
                 ln -s /run/victim/{name} /run/bpf/xdp-proxy/{name}"
            ),
            true,
        ),
        (
            format!(
                "root mkdir -m 700 /run/bpf/xdp-proxy
                 root mkdir -m 777 /run/bpf/xdp-proxy/{name}
                 root chmod 755 /run/bpf/xdp-proxy
                 ln -s /run/victim/{name}/7 /run/bpf/xdp-proxy/{name}/7"
            ),
            true,
        ),
        // Without the sticky bit he can take away what is another's.
        ("root chmod 777 /run/bpf".into(), true),
        // Nobody has come first: it is root's, and safe.
        ("true".into(), false),
    ] {
        lab.script(&format!("mkdir -p $(dirname {victim}); echo all >{victim}"));
        lab.script("chmod -R a+rwX /run/victim");
        for line in played.split(['\n', ';']).map(str::trim) {
            match line.strip_prefix("root ") {
                Some(line) => lab.at("lb", line),
                None => lab.at("lb", &format!("{NOBODY} {line}")),
            };
        }
        let lb = bpffs.balance();
        assert_eq!(lb.log().contains(MEND), mends, "{played}: {}", lb.log());
        assert_eq!(bpffs.programs().is_empty(), mends, "{played}");
        lab.within("client", || http::host(LB).unwrap());
        // Whatever he had the daemon make, it is not there for the next one to believe.
        lb.signal(Signal::SIGKILL);
        lb.wait();
        let lb = bpffs.balance();
        assert!(lb.log().contains("taking over program"), "{}", lb.log());
        lb.signal(Signal::SIGKILL);
        lb.wait();
        assert!(bpffs.stop().starts_with("detached: eth0"), "{played}");
        assert_eq!(fs::read(lab.path(&victim)).unwrap(), b"all\n", "{played}");
        lab.script("rm -rf /run/bpf/xdp-proxy; chmod 1777 /run/bpf");
    }
}

/// As the unit has it: root's bpffs, which nobody else may read, and a folder in it for the
/// user that it runs as. Root may tidy there.
#[test]
fn a_folder_that_root_has_given_to_the_daemons_user_is_good_for_pins() {
    let test = "a_folder_that_root_has_given_to_the_daemons_user_is_good_for_pins";
    let Some(lab) = crate::lab(test) else { return };
    let bpffs = Bpffs::mount(&lab);
    lab.script(
        "umount /run/bpf; mount -t bpf -o mode=0700 bpf /run/bpf; chmod a+x /run/bpf
         mkdir -m 700 /run/bpf/xdp-proxy; chown 65534 /run/bpf/xdp-proxy",
    );
    let list = "-all,+net_admin,+bpf,+perfmon,+net_raw";
    let user = format!("{NOBODY} --inh-caps={list} --ambient-caps={list} --bounding-set={list}");
    let line = format!("{} {user} {BINARY} run {TWO}", bpffs.within);
    for _ in 0..2 {
        let lb = lab.balance_by(&line);
        assert!(!lb.log().contains("WARN"), "{}", lb.log());
        assert_eq!(bpffs.programs().len(), 1);
        lb.signal(Signal::SIGKILL);
        lb.wait();
    }
    let lb = lab.balance_by(&line);
    assert!(lb.log().contains("taking over program"), "{}", lb.log());
    lb.signal(Signal::SIGKILL);
    lb.wait();
    assert!(bpffs.stop().starts_with("detached: eth0"));
    assert_eq!(lab.script("find /run/bpf -mindepth 2"), "");
}

/// Pins in the folder of an ordinary user, whom root has given it: he can't have the next
/// daemon believe in maps of his own.
#[test]
fn a_pinned_map_of_another_program_is_not_believed() {
    let Some(lab) = crate::lab("a_pinned_map_of_another_program_is_not_believed") else {
        return;
    };
    let bpffs = Bpffs::mount(&lab);
    let lb = bpffs.balance();
    let [pins] = &bpffs.programs()[..] else {
        panic!("{:?}", bpffs.programs())
    };
    lb.signal(Signal::SIGKILL);
    lb.wait();
    let other = libbpf_rs::MapHandle::create(
        libbpf_rs::MapType::Array,
        Some("backends"),
        4,
        4,
        1,
        &libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        },
    );
    let pin = lab.path(&format!("{pins}/backends"));
    fs::remove_file(&pin).unwrap();
    other.unwrap().pin(&pin).unwrap();
    // Without CAP_SYS_ADMIN there is no other way to what is attached.
    let lacks = "setpriv --inh-caps=-all --bounding-set=-sys_admin";
    let line = format!("{} {lacks} {BINARY} status", bpffs.within);
    let output = lab.try_at("lb", &line);
    let error = crate::common::lab::refusal(&output, 1);
    assert!(
        error.contains("backends: it is no map of program"),
        "{error}"
    );
    // Root asks the kernel.
    let line = format!("{} {BINARY} status", bpffs.within);
    assert!(lab.at("lb", &line).contains("10.0.0.2:80"));
    bpffs.stop();
}

#[test]
fn pins_of_a_network_namespace_that_is_gone_are_removed_by_a_daemon_of_another() {
    let test = "pins_of_a_network_namespace_that_is_gone_are_removed_by_a_daemon_of_another";
    let Some(lab) = crate::lab(test) else { return };
    let bpffs = Bpffs::mount(&lab);
    lab.script(
        "for i in 1 2; do
             ip netns add other$i
             ip -n other$i link add eth0 type veth peer name end
             ip -n other$i addr add 10.9.0.1/24 dev eth0
             ip -n other$i link set eth0 up
         done",
    );
    for other in ["other1", "other2"] {
        let line = "run --listen 10.9.0.1:80 --backend 10.9.0.2";
        let lb = lab.balance_by(&format!(
            "ip netns exec {other} {} {BINARY} {line}",
            bpffs.within
        ));
        lb.signal(Signal::SIGKILL);
        lb.wait();
    }
    assert_eq!(bpffs.programs().len(), 2);
    lab.script("ip netns del other1");
    let lb = bpffs.balance();
    let start = Instant::now();
    // That of the one that is there stays, though no daemon runs.
    while bpffs.programs().len() != 2 {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            bpffs.programs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let word = "removed pins of interfaces that are gone: 1";
    assert!(lb.log().contains(word), "{}", lb.log());
    lab.script("ip netns del other2");
    let start = Instant::now();
    loop {
        let line = format!("{} {BINARY} stop -i eth0", bpffs.within);
        let done = String::from_utf8(lab.try_at("lb", &line).stdout).unwrap();
        if done.contains("unpinned: ") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{done}");
    }
    assert_eq!(lb.wait().code(), Some(0));
    assert_eq!(bpffs.programs(), [""; 0]);
}
