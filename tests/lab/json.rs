// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What `--json` prints is what docs/json.md says, key by key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::http::Connection;
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB};

/// The keys of each object, by the heading above its table.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md");
    let text = fs::read_to_string(page).unwrap();
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut heading = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ").or(line.strip_prefix("### ")) {
            heading = title.to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let keys = row.split('|').next().unwrap();
            let keys = keys.split([',', '`', ' ']).filter(|key| !key.is_empty());
            let object = all.entry(heading.clone()).or_default();
            object.extend(keys.map(ToOwned::to_owned));
        }
    }
    all
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn every_key_that_is_printed_is_documented_and_the_other_way_round() {
    let test = "every_key_that_is_printed_is_documented_and_the_other_way_round";
    let Some(lab) = crate::lab(test) else { return };
    let documented = documented();
    assert_eq!(documented.len(), 8, "{documented:?}");
    let file = format!(
        "[[service]]\nlisten = \"{LB}:80\"\nhealth = {{ type = \"tcp\" }}\n\
         [[service.backend]]\naddress = \"{HTTP1}\"\n[[service.backend]]\naddress = \"{HTTP2}\"\n"
    );
    let file = lab.write("web.toml", &file);
    let lb = lab.balance(&format!("-c {file}"));
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    connection.host().unwrap();
    let printed = |command: &str| -> Value {
        let text = lab.at("lb", &format!("{BINARY} {command} --json"));
        serde_json::from_str(&text).unwrap()
    };
    let is = |heading: &str, object: &Value| {
        assert_eq!(keys(object), documented[heading], "{heading}");
    };
    for daemon in [Some(lb), None] {
        let status = printed("status");
        let service = &status["services"][0];
        let backend = &service["backends"][0];
        is("status", &status);
        is("status, services", service);
        is("status, backends", backend);
        is("status, packets", &status["packets"]);
        let flows = printed("flows");
        is("flows", &flows);
        is("flows, flows", &flows["flows"][0]);
        is("flows, counters", &flows["flows"][0]["counters"]);
        match daemon {
            Some(lb) => {
                is("status, health", &backend["health"]);
                assert!(status["pid"].is_u64());
                lb.signal(nix::sys::signal::Signal::SIGKILL);
                lb.wait();
            }
            None => assert_eq!(
                (&status["pid"], &backend["health"]),
                (&Value::Null, &Value::Null)
            ),
        }
    }
}
