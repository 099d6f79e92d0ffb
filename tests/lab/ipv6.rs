// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Over IPv6, what arrives is what was sent too.

use std::collections::BTreeSet;

use crate::common::http;
use crate::common::lab::{HOSTS, Lab};
use crate::common::load::originals;
use crate::traffic::{download, leave_no_checksum_to_the_card, upload};

const VIP: &str = "[fd00::5]";
const DOWNLOADS: usize = 60;
/// Nothing but clients talks to the backends.
const TWO: &str = "
[[service]]
listen = '[fd00::5]:80'
health = { type = 'none' }
backend = [{ address = 'fd00::2' }, { address = 'fd00::3' }]
";

fn carries_everything(lab: &Lab) {
    let files = originals(lab);
    download(lab, VIP, &files, DOWNLOADS, true);
    download(lab, VIP, &files, DOWNLOADS, false);
    upload(lab, VIP);
    lab.checksums_were_right(&HOSTS);
}

/// The flow labels of what tcpdump saw.
fn labels(seen: &str) -> BTreeSet<&str> {
    let labels = seen.split("flowlabel ").skip(1);
    labels.filter_map(|rest| rest.split(',').next()).collect()
}

/// RFC 6437, section 3: a label that is not zero reaches the other end.
fn flow_labels_are_kept(lab: &Lab) {
    let filter = "ip6 and tcp dst port 80";
    let at_client = lab.capture("client", filter);
    let at_backends = ["http1", "http2"].map(|host| lab.capture(host, filter));
    lab.within("client", || {
        for _ in 0..10 {
            http::host(VIP).unwrap();
        }
    });
    let sent = at_client.end();
    let arrived = at_backends.map(|capture| capture.end());
    assert!(labels(&sent).len() > 5, "{sent}");
    let arrived = arrived.iter().flat_map(|seen| labels(seen)).collect();
    assert_eq!(labels(&sent), arrived);
}

fn serves(lab: &Lab, mode: &str) {
    let file = lab.write("two.toml", TWO);
    let lb = lab.balance(&format!("--mode {mode} -c {file}"));
    assert_eq!(
        lb.ready,
        format!("ready: eth0 ({mode}) [fd00::5]:80/tcp -> 2 backends")
    );
    let answers: BTreeSet<String> = (0..30)
        .map(|_| lab.at("client", "curl -gsS --max-time 5 http://[fd00::5]/"))
        .collect();
    assert_eq!(
        answers.iter().map(String::as_str).collect::<Vec<_>>(),
        ["Hostname: http1\n", "Hostname: http2\n"]
    );
    flow_labels_are_kept(lab);
    carries_everything(lab);
    leave_no_checksum_to_the_card(lab, &HOSTS);
    carries_everything(lab);
    lb.end();
}

#[test]
fn ipv6_is_carried_in_generic_mode() {
    if let Some(lab) = crate::lab_alone("ipv6_is_carried_in_generic_mode") {
        serves(&lab, "generic");
    }
}

#[test]
fn ipv6_is_carried_in_native_mode() {
    if let Some(lab) = crate::lab_alone("ipv6_is_carried_in_native_mode") {
        lab.script("native");
        serves(&lab, "native");
    }
}
