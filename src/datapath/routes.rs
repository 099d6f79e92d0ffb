// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Where answers to clients go: what the program reads of it, and the run over the flows
//! that follows a change.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore, MapFlags, ProgramInput};
use nix::sys::signal::{SigSet, SigmaskHow};

use super::Datapath;
use crate::abi;
use crate::tables::Routes;

impl Datapath {
    /// Writes where the answers of flows go that begin from now on.
    ///
    /// # Errors
    /// The kernel has no memory for it: then some flows go back to where they come from.
    pub fn write_routes(&mut self, routes: &Routes) -> Result<()> {
        let maps = &mut self.skeleton.maps;
        let bss = maps.bss_data.as_mut().context("the program has no data")?;
        // Meanwhile there is no route: the run over the flows follows.
        (bss.route_count, bss.routes_in_trie) = (0, 0);
        for (place, hop) in bss.next_hops.iter_mut().zip(&routes.next_hops) {
            *place = *hop;
        }
        for (place, route) in bss.routes.iter_mut().zip(&routes.list) {
            *place = *route;
        }
        for (fib, index) in routes.fib_of_vip.iter().zip(0u32..) {
            maps.fibs
                .update(&index.to_ne_bytes(), &fib.to_ne_bytes(), MapFlags::ANY)
                .with_context(|| format!("writing the routes of VIP {index}"))?;
        }
        let trie = routes.trie.iter();
        let trie = trie.map(|(key, way)| (&key[..], way.to_ne_bytes()));
        rewrite(&maps.route_trie, trie).context("writing routes")?;
        let neighbours = routes.neighbours.iter();
        let neighbours = neighbours.map(|(key, entry)| (&key[..], plain_bytes(entry)));
        rewrite(&maps.neighbours, neighbours).context("writing neighbours")?;
        bss.several_fibs = routes.has_several_fibs().into();
        bss.has_neighbours = (!routes.neighbours.is_empty()).into();
        bss.route_count = routes.list.len() as u32;
        bss.routes_in_trie = (!routes.trie.is_empty()).into();
        Ok(())
    }

    /// Sends the answers of all flows by what [`Datapath::write_routes`] has written. Of the
    /// neighbours, those count for every flow that have changed since the number `since`.
    pub fn steer(&mut self, since: u32) -> Result<()> {
        for source in self.sources_to_sweep() {
            if let Some(bss) = self.skeleton.maps.bss_data.as_mut() {
                (bss.steer_source, bss.news_since) = (source as u32, since);
            }
            let program = &self.skeleton.progs.xdp_proxy_steer;
            // A signal would end it, and one each millisecond would do so at once each time:
            // the kernel takes some 20 ms to begin.
            let interrupted = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
            let ran = program.test_run(ProgramInput {
                data_in: Some(&[0; 64]),
                repeat: abi::PORTS as u32 / abi::SWEEP_ROUND,
                ..Default::default()
            });
            if let Ok(mask) = interrupted {
                let _ = mask.thread_set_mask();
            }
            ran.context("steering flows")?;
        }
        Ok(())
    }
}

/// Makes a map have these entries and no others.
fn rewrite<'a, const N: usize>(
    map: &impl MapCore,
    entries: impl Iterator<Item = (&'a [u8], [u8; N])>,
) -> libbpf_rs::Result<()> {
    let mut old: BTreeSet<Vec<u8>> = map.keys().collect();
    for (key, value) in entries {
        if !old.remove(key) || map.lookup(key, MapFlags::ANY)?.as_deref() != Some(&value[..]) {
            map.update(key, &value, MapFlags::ANY)?;
        }
    }
    old.iter().try_for_each(|key| map.delete(key))
}

fn plain_bytes(entry: &abi::neighbour) -> [u8; size_of::<abi::neighbour>()] {
    let mut bytes = [0; size_of::<abi::neighbour>()];
    // SAFETY: plain data without padding, which the type's asserts show.
    bytes.copy_from_slice(unsafe { plain::as_bytes(entry) });
    bytes
}
