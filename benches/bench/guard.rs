// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Fails where the program has become much bigger or much slower: benches/bounds.toml.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::Effort;
use crate::packets;
use crate::results::Results;

/// How often a bound that was crossed is measured again: noise passes.
const TRIES: u32 = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    verified_instructions: u32,
    jited_bytes: u32,
    /// Of an empty program, by the case's name.
    multiples: BTreeMap<String, f64>,
}

impl Bounds {
    fn read() -> Result<Bounds> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bounds.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// What is beyond its bound.
    fn crossed(&self, results: &Results) -> Result<Vec<String>> {
        let program = results.program;
        let mut crossed = Vec::new();
        let mut check = |what: &str, is: f64, bound: f64| {
            println!("{what:44} {is:>9.1} {bound:>9.1}");
            if is > bound {
                crossed.push(format!("{what} is {is:.1}, and its bound {bound:.1}"));
            }
        };
        println!("{:44} {:>9} {:>9}", "", "is", "bound");
        check(
            "verified instructions",
            program.verified_instructions.into(),
            self.verified_instructions.into(),
        );
        check(
            "jited bytes",
            program.jited_bytes.into(),
            self.jited_bytes.into(),
        );
        for (case, bound) in &self.multiples {
            let is = results.multiple(case);
            check(
                case,
                is.with_context(|| format!("no case is called {case:?}"))?,
                *bound,
            );
        }
        Ok(crossed)
    }
}

pub fn check(effort: &Effort) -> Result<()> {
    let bounds = Bounds::read()?;
    ensure!(
        !bounds.multiples.is_empty(),
        "benches/bounds.toml bounds no case"
    );
    let mut crossed = Vec::new();
    for _ in 0..TRIES {
        let results = Results {
            program: packets::program()?,
            packets: packets::measure(effort)?,
            ..Default::default()
        };
        crossed = bounds.crossed(&results)?;
        if crossed.is_empty() {
            return Ok(());
        }
    }
    bail!(
        "{}; if that is meant, raise it in benches/bounds.toml",
        crossed.join("; ")
    )
}
