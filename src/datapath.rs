// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The loaded program and its maps: open, load, attach, detach. With `abi` the
//! only place that knows libbpf.

mod found;
mod hook;
mod host;
mod map;
mod maps;
mod pins;
mod routes;
mod sources;
mod words;

use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::skel::{OpenSkel as _, Skel as _, SkelBuilder as _};
use libbpf_rs::{Program, ProgramInput, ProgramMut};

pub use found::Found;
pub use hook::{
    Attached, Hook, Undecided, attach_fd, attached, attached_id, detach_fd, is_gone, replace_fd,
};
pub use host::{cpus, jiffies_now, knows_several_buffers, tick};
pub use maps::Maps;
pub use pins::{Pins, remove_pins_of_gone};

use crate::abi::{self, types};
use crate::tables::{Tables, with_room};
use map::Map;
use sources::Transition;
use words::{explain_load, explain_memory, keep_libbpf_quiet, take_libbpf_words};

/// The maps that flows live in, beside their tables.
const FLOW_MAPS: [&str; 3] = ["groups", "fragments", "outcome_counters"];
/// How long the decision on a first fragment is kept for the others.
const FRAGMENT_LIFE: Duration = Duration::from_secs(2);

/// What is compiled into the program when it is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Secret of the hash over clients' tuples.
    pub hash_seed: u64,
    /// The interface can carry packets whose checksum is still to be completed.
    pub partial_checksums: bool,
    /// Nobody completes them after the program (native mode).
    pub complete_checksums: bool,
    /// Frames may carry VLAN tags; else such frames go to the host.
    pub handles_vlan: bool,
    /// The outermost tag may be out of the program's sight.
    pub tags_may_hide: bool,
    /// Frames come in one buffer each, also where the kernel knows of several.
    pub one_buffer: bool,
    /// Load onto the card of the interface with this index.
    pub offload_to: Option<u32>,
}

/// The program and its maps in the kernel; gone when dropped, unless attached.
pub struct Datapath {
    skeleton: abi::XdpProxySkel<'static>,
    maps: Maps,
    settings: Settings,
    transition: Transition,
    /// The last sweep saw all slots, and noted all flows in their homes.
    swept_whole: bool,
}

/// What is read and written while it runs is in the maps.
impl Deref for Datapath {
    type Target = Maps;

    fn deref(&self) -> &Maps {
        &self.maps
    }
}

impl Datapath {
    /// Loads the program with maps as large as the tables need, and fills them.
    ///
    /// # Errors
    /// The kernel's reason: no privilege, no memory, or the verifier's word.
    pub fn load(tables: &Tables, settings: &Settings) -> Result<Datapath> {
        Datapath::load_after(None, tables, settings)
    }

    /// The same with the flows of another datapath, whose indexes the tables keep
    /// (`Tables::followed_by`): both may run at once.
    ///
    /// # Errors
    /// As above; or the maps are of another version.
    pub fn load_after(
        old: Option<&Maps>,
        tables: &Tables,
        settings: &Settings,
    ) -> Result<Datapath> {
        keep_libbpf_quiet();
        // The object must outlive the skeleton, which must be movable.
        let object = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = abi::XdpProxySkelBuilder::default()
            .open(object)
            .context("reading the program that is built in")?;

        let rodata = open
            .maps
            .rodata_data
            .as_mut()
            .context("the program has no settings")?;
        let several_buffers =
            !settings.one_buffer && settings.offload_to.is_none() && knows_several_buffers();
        let packing = tables.packing();
        let notes = tables.notes(rodata.layout, settings.hash_seed);
        let notes = serde_json::to_vec(&notes).context("writing notes")?;
        rodata.hash_seed = settings.hash_seed;
        rodata.address_mask = tables.addresses.len() as u32 - 1;
        rodata.listener_mask = tables.listeners.entries.len() as u32 - 1;
        rodata.port_filter = tables.port_filter();
        rodata.first_port = tables.first_port();
        rodata.several_sources = tables.has_several_sources().into();
        rodata.avoids_ports = tables.avoids_ports().into();
        rodata.relisted = tables.is_relisted().into();
        rodata.sources_v4 = tables.sources_of(false);
        rodata.sources_v6 = tables.sources_of(true);
        rodata.place_bits = packing.bits;
        rodata.places_bytes = packing.places_bytes() as u32;
        rodata.serves_ipv6 = tables.serves_ipv6.into();
        rodata.serves_udp = tables.serves_udp.into();
        rodata.counts_loads = tables.counts_loads.into();
        rodata.counts_in_flows = tables.counts_in_flows.into();
        rodata.serves_port_ranges = (!tables.listeners.port_maps.is_empty()).into();
        rodata.asks_sockets = settings.offload_to.is_none().into();
        rodata.partial_checksums = settings.partial_checksums.into();
        rodata.complete_checksums = settings.complete_checksums.into();
        rodata.several_buffers = several_buffers.into();
        rodata.handles_vlan = settings.handles_vlan.into();
        rodata.tags_may_hide = settings.tags_may_hide.into();
        rodata.cpus = cpus() as u32;
        rodata.fragment_life = abi::jiffies(FRAGMENT_LIFE, tick()?);
        rodata.second_ticks = abi::jiffies(Duration::from_secs(1), tick()?);
        let layout = rodata.layout;

        let backends = with_room(tables.backends.len() + 1) as u32;
        let services = tables.services.len() as u32;
        let maps = &mut open.maps;
        for (map, entries) in [
            (&mut maps.addresses, tables.addresses.len() as u32),
            (&mut maps.listeners, tables.listeners.entries.len() as u32),
            (&mut maps.services, services),
            (&mut maps.turns, services),
            (&mut maps.loads, backends),
            (
                &mut maps.port_maps,
                tables.listeners.port_maps.len().max(1) as u32,
            ),
            (&mut maps.backends, tables.backends.len() as u32 + 1),
            (&mut maps.backend_counters, backends),
            (&mut maps.earlier, backends),
            (&mut maps.vips, tables.vips.len() as u32),
            (&mut maps.fibs, tables.vips.len() as u32),
            (&mut maps.maglevs, with_room(tables.maglevs()) as u32),
            (&mut maps.flows, tables.flow_records(0) as u32),
            (&mut maps.flow_counters, tables.flow_counters(0) as u32),
        ] {
            map.set_max_entries(entries)
                .with_context(|| format!("sizing the map {:?}", map.name()))?;
        }
        for (map, bytes) in [
            (&mut maps.notes, notes.len()),
            (&mut maps.maglevs, packing.value_bytes()),
        ] {
            map.set_value_size(bytes as u32)
                .with_context(|| format!("sizing the values of the map {:?}", map.name()))?;
        }
        if let Some(old) = old {
            old.check_layout(layout)?;
            hand_over(old, &mut open, tables)?;
        }
        if let Some(interface) = settings.offload_to {
            open.progs.xdp_proxy.set_ifindex(interface);
            open.progs.xdp_proxy_steer.set_autoload(false);
            open.progs.xdp_proxy_sweep.set_autoload(false);
            open.progs.xdp_proxy_regroup.set_autoload(false);
            for mut map in open.open_object_mut().maps_mut() {
                map.set_map_ifindex(interface);
            }
        }

        if several_buffers {
            open.progs
                .xdp_proxy
                .set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let maps_bytes = tables.memory_bytes(cpus());
        take_libbpf_words();
        let skeleton = open
            .load()
            .map_err(|error| explain_load(&error, maps_bytes))?;
        let maps = skeleton.object().maps().map(|map| Map::of(&map));
        let mut datapath = Datapath {
            maps: Maps::new(maps.collect::<Result<_>>()?),
            skeleton,
            settings: *settings,
            transition: Transition::default(),
            swept_whole: false,
        };
        datapath.write_notes(&notes)?;
        if settings.offload_to.is_none() {
            datapath.bind(
                datapath.program().as_fd(),
                &["earlier", "neighbours", "notes"],
            )?;
        }
        datapath
            .place_sources(tables, old)
            .and_then(|()| datapath.write_routes(&tables.routes))
            .and_then(|()| datapath.fill(tables, old))
            .map_err(|error| explain_memory(error, maps_bytes))
            .context("filling the maps")?;
        Ok(datapath)
    }

    fn fill(&self, tables: &Tables, old: Option<&Maps>) -> Result<()> {
        let vips = tables.vips.iter().copied();
        let sources = tables.sources.iter().map(|source| source.address);
        for (name, addresses) in [
            ("vips", Vec::from_iter(vips)),
            ("sources", Vec::from_iter(sources)),
        ] {
            for (address, index) in addresses.into_iter().zip(0..) {
                let entry = types::ip_address {
                    address: abi::address_words(address),
                };
                self.named(name)?.put(index, &entry)?;
            }
        }
        for index in 1..=tables.backends.len() {
            self.write_backend(tables, index)?;
        }
        let shared = |name| old.filter(|old| self.share(old, name));
        let tables_stay = shared("maglevs").is_some();
        let (same, new): (Vec<usize>, Vec<usize>) = (0..tables.services.len())
            .partition(|index| tables_stay && !tables.services[*index].fresh);
        self.write_maglevs(tables, &new)?;
        for index in same {
            self.write_service(tables, index)?;
        }
        if shared("backend_counters").is_some() {
            for index in &tables.recycled {
                self.clear_counters(*index)?;
            }
        }
        if let Some(old) = old.filter(|_| tables.counts_loads)
            && !(old.notes()?.counts_loads && shared("loads").is_some())
        {
            self.fill_loads(old)?;
        }
        for (map, index) in tables.listeners.port_maps.iter().zip(0..) {
            self.named("port_maps")?.put(index, map)?;
        }
        // These two make packets ours, so they come last.
        for (entry, index) in tables.listeners.entries.iter().zip(0..) {
            self.named("listeners")?.put(index, entry)?;
        }
        for place in 0..tables.addresses.len() {
            self.write_address(tables, place)?;
        }
        Ok(())
    }

    /// As many flows as the backends have, which nobody counted here.
    fn fill_loads(&self, old: &Maps) -> Result<()> {
        let backends = old.backends()?.min(self.backends()?);
        for (counters, index) in old.counters(backends)?.backends.iter().zip(1..) {
            self.named("loads")?.put(index, &counters.flows())?;
        }
        Ok(())
    }

    /// Tells the program which frames the interface receives: its MAC, and the
    /// MTU, above which a packet is a GSO packet.
    pub fn write_interface(&mut self, mac: [u8; 6], mtu_bytes: u32) -> Result<()> {
        let bss = self
            .skeleton
            .maps
            .bss_data
            .as_mut()
            .context("the program has no data")?;
        bss.interface_mac[..6].copy_from_slice(&mac);
        bss.interface_mtu_bytes = mtu_bytes;
        Ok(())
    }

    /// Attaches to an interface that has no program.
    ///
    /// # Errors
    /// The kernel's word, as text: the driver can't, or a program is there.
    pub fn attach(&self, interface: u32, hook: Hook) -> Result<()> {
        attach_fd(interface, self.program().as_fd(), hook)
    }

    /// A datapath with other tables, to which this one's flows belong as well.
    ///
    /// # Errors
    /// As of [`Datapath::load`].
    pub fn successor(&mut self, tables: &Tables, handles_vlan: bool) -> Result<Datapath> {
        self.end_transition()?;
        let settings = Settings {
            handles_vlan,
            ..self.settings
        };
        Datapath::load_after(Some(&self.maps), tables, &settings)
    }

    /// What detaches the program: opening it by its id would take CAP_SYS_ADMIN.
    pub fn program_fd(&self) -> Result<OwnedFd> {
        let fd = self.program().as_fd().try_clone_to_owned();
        fd.context("holding the program")
    }

    /// The number the kernel gave the program.
    pub fn program_id(&self) -> Result<u32> {
        Program::id_from_fd(self.program().as_fd()).context("asking for the program's id")
    }

    /// Ends the flows of every source address whose time is over. Where the sweep before
    /// has seen all flows, it also lets groups forget those that went far and have ended.
    pub fn sweep(&mut self) -> Result<()> {
        self.regroup()?;
        let lowers_reach = std::mem::take(&mut self.swept_whole);
        if let Some(bss) = self.skeleton.maps.bss_data.as_mut() {
            bss.news_since = u32::MAX;
            (bss.lowers_reach, bss.unnoted) = (lowers_reach.into(), 0);
        }
        for source in self.sources_to_sweep() {
            if let Some(bss) = self.skeleton.maps.bss_data.as_mut() {
                bss.sweep_source = source as u32;
            }
            let frame = [0; 64];
            let input = ProgramInput {
                data_in: Some(&frame),
                repeat: abi::PORTS as u32 / abi::SWEEP_ROUND,
                ..Default::default()
            };
            let program = &self.skeleton.progs.xdp_proxy_sweep;
            match program.test_run(input) {
                // By a signal: the next sweep goes on where this one stopped.
                Err(error) if error.kind() == libbpf_rs::ErrorKind::Interrupted => return Ok(()),
                swept => swept.context("sweeping the flow table")?,
            };
        }
        let bss = self.skeleton.maps.bss_data.as_ref();
        self.swept_whole = bss.is_some_and(|bss| bss.unnoted == 0);
        self.has_swept()
    }

    /// What is left of it when another one has its place: its counts.
    pub fn into_maps(self) -> Maps {
        self.maps
    }

    /// The program that packets meet.
    pub fn program(&self) -> &ProgramMut<'static> {
        &self.skeleton.progs.xdp_proxy
    }
}

/// Lets the maps that flows live in be the old ones, and those with counters and
/// look-up tables where they have room.
fn hand_over(old: &Maps, open: &mut abi::OpenXdpProxySkel<'_>, tables: &Tables) -> Result<()> {
    let backends = tables.backends.len() + 1;
    let wanted = [
        ("backend_counters", backends),
        ("earlier", backends),
        ("loads", backends),
        ("maglevs", tables.maglevs()),
        ("flows", tables.flow_records(0)),
        ("flow_counters", tables.flow_counters(0)),
    ];
    let starts_anew = tables.sources.first().is_some_and(|source| source.fresh);
    let wanted: Vec<_> = FLOW_MAPS
        .map(|name| (name, 0))
        .into_iter()
        .chain(wanted)
        .collect();
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let Some((_, entries)) = wanted.iter().find(|(wanted, _)| *wanted == name) else {
            continue;
        };
        let old = old.named(&name)?;
        let same_value = old.value_bytes == map.value_size() as usize;
        ensure!(
            same_value || name == "maglevs",
            "a value of the running map {name:?} has {} bytes, not {}",
            old.value_bytes,
            map.value_size()
        );
        // Flows that began uncounted must not be given the counts of others.
        let fits = same_value
            && match &*name {
                "flows" | "flow_counters" => !starts_anew && old.max_entries as usize == *entries,
                _ => old.max_entries as usize >= *entries,
            };
        if fits {
            map.reuse_fd(old.as_fd())
                .with_context(|| format!("handing over the map {name:?}"))?;
        }
    }
    Ok(())
}
