// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The loaded program and its maps: open, load, attach, detach, and typed
//! access to what they hold. With `abi` the only place that knows libbpf.

mod hook;
mod host;
mod words;

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{MapCore, MapFlags, MapMut, Program, ProgramInput, ProgramMut, XdpFlags};

pub use hook::{Attached, Hook, attached, detach, detach_fd, replace_fd};
pub use host::{cpus, tick};

use crate::abi::{self, types};
use crate::stats::{BackendCounters, Counters};
use crate::tables::{Tables, with_room};
use hook::{attach_fd, open_program};
use host::raise_memlock_limit;
use words::{explain, explain_load, keep_libbpf_quiet, take_libbpf_words};

/// Of so many ports, one may have a flow that its client has not confirmed.
const UNCONFIRMED_SHARE: u32 = 2;
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
    /// Load onto the card of the interface with this index.
    pub offload_to: Option<u32>,
}

/// The program and its maps in the kernel; gone when dropped, unless attached.
pub struct Datapath {
    skeleton: abi::XdpProxySkel<'static>,
    settings: Settings,
    sources: usize,
    counts_loads: bool,
    /// What was counted in maps that this datapath does not have any more.
    earlier: Counters,
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
    /// As above; or the flows do not fit, since there are other source addresses.
    fn load_after(
        old: Option<&Datapath>,
        tables: &Tables,
        settings: &Settings,
    ) -> Result<Datapath> {
        keep_libbpf_quiet();
        raise_memlock_limit();
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
        rodata.hash_seed = settings.hash_seed;
        rodata.address_mask = tables.addresses.len() as u32 - 1;
        rodata.listener_mask = tables.listeners.entries.len() as u32 - 1;
        let buckets = old.map_or(tables.buckets(), Datapath::buckets);
        rodata.bucket_mask = buckets as u32 - 1;
        rodata.serves_ipv6 = tables.serves_ipv6.into();
        rodata.serves_udp = tables.serves_udp.into();
        rodata.counts_loads = tables.counts_loads.into();
        rodata.serves_port_ranges = (!tables.listeners.port_maps.is_empty()).into();
        rodata.partial_checksums = settings.partial_checksums.into();
        rodata.complete_checksums = settings.complete_checksums.into();
        rodata.handles_vlan = settings.handles_vlan.into();
        rodata.tags_may_hide = settings.tags_may_hide.into();
        rodata.cpus = cpus() as u32;
        rodata.fragment_life = abi::jiffies(FRAGMENT_LIFE, tick()?);

        let sources = tables.source_ports.len();
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
            (&mut maps.vips, tables.vips.len() as u32),
            (&mut maps.maglevs, with_room(tables.maglevs()) as u32),
            (&mut maps.flows, (sources * abi::PORTS) as u32),
            (&mut maps.buckets, buckets as u32),
            (&mut maps.ports, sources as u32),
        ] {
            map.set_max_entries(entries)
                .with_context(|| format!("sizing the map {:?}", map.name()))?;
        }
        if let Some(old) = old {
            old.hand_over(maps, tables)?;
        }
        if let Some(interface) = settings.offload_to {
            open.progs.xdp_proxy.set_ifindex(interface);
            open.progs.xdp_proxy_sweep.set_autoload(false);
            for mut map in open.open_object_mut().maps_mut() {
                map.set_map_ifindex(interface);
            }
        }

        take_libbpf_words();
        let skeleton = open.load().map_err(|error| explain_load(&error))?;
        let datapath = Datapath {
            skeleton,
            settings: *settings,
            sources,
            counts_loads: tables.counts_loads,
            earlier: Counters::default(),
        };
        if old.is_none() {
            datapath.fill_ports(tables).context("filling the ports")?;
        }
        datapath.fill(tables, old).context("filling the maps")?;
        Ok(datapath)
    }

    /// Lets the maps that flows live in be those of this datapath, and those with
    /// counters and look-up tables where they have room.
    fn hand_over(&self, maps: &mut abi::OpenXdpProxyMaps<'_>, tables: &Tables) -> Result<()> {
        ensure!(
            tables.source_ports.len() == self.sources,
            "flows come from {} source addresses now and would from {}, which can't be changed \
             while it runs: start again",
            self.sources,
            tables.source_ports.len()
        );
        let ours = &self.skeleton.maps;
        let backends = tables.backends.len() + 1;
        for (map, our, wanted) in [
            (&mut maps.flows, &ours.flows, 0),
            (&mut maps.buckets, &ours.buckets, 0),
            (&mut maps.ports, &ours.ports, 0),
            (&mut maps.fragments, &ours.fragments, 0),
            (&mut maps.outcome_counters, &ours.outcome_counters, 0),
            (&mut maps.backend_counters, &ours.backend_counters, backends),
            (&mut maps.loads, &ours.loads, backends),
            (&mut maps.maglevs, &ours.maglevs, tables.maglevs()),
        ] {
            if our.max_entries() as usize >= wanted {
                map.reuse_fd(our.as_fd())
                    .with_context(|| format!("handing over the map {:?}", our.name()))?;
            }
        }
        Ok(())
    }

    fn buckets(&self) -> usize {
        self.skeleton.maps.buckets.max_entries() as usize
    }

    fn fill_ports(&self, tables: &Tables) -> Result<()> {
        for source in 0..self.sources {
            let seed = self.settings.hash_seed.wrapping_add(source as u64);
            let ports = tables.shuffled_ports(source, seed);
            put(
                &self.skeleton.maps.ports,
                source as u32,
                &*port_queue(&ports),
            )?;
        }
        Ok(())
    }

    fn fill(&self, tables: &Tables, old: Option<&Datapath>) -> Result<()> {
        for (vip, index) in tables.vips.iter().zip(0..) {
            let entry = types::ip_address {
                address: abi::address_words(*vip),
            };
            put(&self.skeleton.maps.vips, index, &entry)?;
        }
        for (source, index) in tables.sources.iter().zip(0..) {
            let entry = types::ip_address {
                address: abi::address_words(*source),
            };
            put(&self.skeleton.maps.sources, index, &entry)?;
        }
        for index in 1..=tables.backends.len() {
            self.write_backend(tables, index)?;
        }
        let shares = |map: fn(&abi::XdpProxyMaps<'_>) -> u32| {
            old.is_some_and(|old| map(&old.skeleton.maps) == map(&self.skeleton.maps))
        };
        let has_tables = shares(|maps| map_id(&maps.maglevs));
        for (index, service) in tables.services.iter().enumerate() {
            if service.fresh || !has_tables {
                self.write_maglev(tables, index)?;
            }
            self.write_service(tables, index)?;
        }
        if shares(|maps| map_id(&maps.backend_counters)) {
            for index in &tables.recycled {
                self.clear_counters(*index)?;
            }
        }
        if let Some(old) = old.filter(|_| tables.counts_loads)
            && !(old.counts_loads && shares(|maps| map_id(&maps.loads)))
        {
            let counters = old.counters(old.backends())?;
            for (counters, index) in counters.backends.iter().zip(1..) {
                put(&self.skeleton.maps.loads, index, &counters.flows())?;
            }
        }
        for (map, index) in tables.listeners.port_maps.iter().zip(0..) {
            put(&self.skeleton.maps.port_maps, index, map)?;
        }
        // These two make packets ours, so they come last.
        for (entry, index) in tables.listeners.entries.iter().zip(0..) {
            put(&self.skeleton.maps.listeners, index, entry)?;
        }
        for place in 0..tables.addresses.len() {
            self.write_address(tables, place)?;
        }
        Ok(())
    }

    /// Writes the place `place` of the addresses.
    pub fn write_address(&self, tables: &Tables, place: usize) -> Result<()> {
        put(
            &self.skeleton.maps.addresses,
            place as u32,
            &tables.addresses[place],
        )
    }

    /// Writes the record of backend `index` (from 1).
    pub fn write_backend(&self, tables: &Tables, index: usize) -> Result<()> {
        put(
            &self.skeleton.maps.backends,
            index as u32,
            &tables.backend_entry(index),
        )
    }

    /// Writes the look-up table of service `index`.
    pub fn write_maglev(&self, tables: &Tables, index: usize) -> Result<()> {
        let mut bytes: Vec<u8> = tables
            .maglev(index)
            .iter()
            .flat_map(|entry| entry.to_ne_bytes())
            .collect();
        bytes.resize(size_of::<types::maglev>(), 0);
        let place = tables.services[index].entry.maglev;
        self.skeleton
            .maps
            .maglevs
            .update(&place.to_ne_bytes(), &bytes, MapFlags::ANY)
            .context("writing a look-up table")?;
        self.write_service(tables, index)
    }

    fn write_service(&self, tables: &Tables, index: usize) -> Result<()> {
        let entry = tables.service_entry(index);
        put(&self.skeleton.maps.services, index as u32, &entry)
    }

    /// Counts a backend's index from zero: another backend has it now.
    fn clear_counters(&self, index: usize) -> Result<()> {
        let zeros = vec![vec![0; size_of::<types::backend_counters>()]; cpus()];
        self.skeleton
            .maps
            .backend_counters
            .update_percpu(&(index as u32).to_ne_bytes(), &zeros, MapFlags::ANY)
            .context("clearing counters")?;
        put(&self.skeleton.maps.loads, index as u32, &0u64)
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
        take_libbpf_words();
        libbpf_rs::Xdp::new(self.program().as_fd())
            .attach(interface as i32, hook.flags() | XdpFlags::UPDATE_IF_NOEXIST)
            .map_err(|error| explain(&error))
    }

    /// Takes the place of another `xdp-proxy`'s program in one step.
    pub fn replace(&self, interface: u32, other: &Attached) -> Result<()> {
        let old = open_program(other)?;
        attach_fd(
            interface,
            Some(self.program().as_fd()),
            old.as_fd(),
            other.hook,
        )
    }

    /// A datapath with other tables, to which this one's flows belong as well.
    ///
    /// # Errors
    /// As of [`Datapath::load`]; or there are other source addresses.
    pub fn successor(&self, tables: &Tables, handles_vlan: bool) -> Result<Datapath> {
        let settings = Settings {
            handles_vlan,
            ..self.settings
        };
        Datapath::load_after(Some(self), tables, &settings)
    }

    /// Goes on with the counts of the datapath whose place this one has taken.
    pub fn count_on(&mut self, old: &Datapath) -> Result<()> {
        let maps = [&self.skeleton.maps, &old.skeleton.maps];
        let [our, their] = maps.map(|maps| map_id(&maps.backend_counters));
        self.earlier = if our == their {
            old.earlier.clone()
        } else {
            Counters {
                backends: old.counters(old.backends())?.backends,
                ..Counters::default()
            }
        };
        Ok(())
    }

    fn backends(&self) -> usize {
        self.skeleton.maps.backends.max_entries() as usize - 1
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

    /// Ends the flows of every source address whose time is over.
    pub fn sweep(&mut self) -> Result<()> {
        for source in 0..self.sources {
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
                Err(error) if error.kind() == libbpf_rs::ErrorKind::Interrupted => break,
                swept => swept.context("sweeping the flow table")?,
            };
        }
        Ok(())
    }

    /// The counters of all CPUs added up; `backends` as many as were loaded.
    pub fn counters(&self, backends: usize) -> Result<Counters> {
        let mut counters = Counters::default();
        for (counter, index) in counters.outcomes.iter_mut().zip(0u32..) {
            *counter = per_cpu::<u64>(&self.skeleton.maps.outcome_counters, index)?
                .iter()
                .sum();
        }
        for index in 1..=backends as u32 {
            let mut total = BackendCounters::default();
            for cpu in
                per_cpu::<types::backend_counters>(&self.skeleton.maps.backend_counters, index)?
            {
                total.add(&cpu.into());
            }
            if let Some(earlier) = self.earlier.backends.get(index as usize - 1) {
                total.add(earlier);
            }
            counters.backends.push(total);
        }
        Ok(counters)
    }

    /// The record in a slot (source index and port).
    pub fn flow(&self, source: usize, port: u16) -> Result<types::flow> {
        let slot = (source as u32) << abi::PORT_BITS | u32::from(port);
        let bytes = self
            .skeleton
            .maps
            .flows
            .lookup(&slot.to_ne_bytes(), MapFlags::ANY)?
            .context("no such slot")?;
        copy_from_bytes(&bytes)
    }

    /// The ports of a source address that wait for use, the next one first.
    pub fn waiting_ports(&self, source: usize) -> Result<Vec<u16>> {
        let queue = self.ports(source)?;
        let waiting = queue.tail.wrapping_sub(queue.head);
        Ok((0..waiting)
            .map(|i| queue.port[queue.head.wrapping_add(i) as usize % abi::PORTS])
            .collect())
    }

    /// How many flows from a source address no client has confirmed yet, and how
    /// many of them made room for others so far.
    pub fn unconfirmed(&self, source: usize) -> Result<(u32, u64)> {
        let queue = self.ports(source)?;
        Ok((queue.unconfirmed, queue.evicted))
    }

    fn ports(&self, source: usize) -> Result<Box<types::ports>> {
        let bytes = self
            .skeleton
            .maps
            .ports
            .lookup(&(source as u32).to_ne_bytes(), MapFlags::ANY)?
            .context("no such source address")?;
        let mut queue = port_queue(&[]);
        plain::copy_from_bytes(&mut *queue, &bytes)
            .map_err(|error| anyhow!("the queue of ports is not of its shape: {error:?}"))?;
        Ok(queue)
    }

    /// The slots that a bucket of the flow table names.
    pub fn bucket(&self, index: usize) -> Result<Vec<u32>> {
        let bytes = self
            .skeleton
            .maps
            .buckets
            .lookup(&(index as u32).to_ne_bytes(), MapFlags::ANY)?
            .context("no such bucket")?;
        let bucket: types::bucket = copy_from_bytes(&bytes)?;
        let used = bucket.entry.iter().filter(|entry| **entry != 0);
        Ok(used.map(|entry| entry & abi::SLOT_MASK).collect())
    }

    /// The program that packets meet.
    pub fn program(&self) -> &ProgramMut<'static> {
        &self.skeleton.progs.xdp_proxy
    }
}

fn map_id(map: &MapMut<'_>) -> u32 {
    map.info().map_or(0, |info| info.info.id)
}

fn put<T: plain::Plain>(map: &impl MapCore, index: u32, value: &T) -> Result<()> {
    // SAFETY: plain data has no padding that is not explicit.
    let bytes = unsafe { plain::as_bytes(value) };
    map.update(&index.to_ne_bytes(), bytes, MapFlags::ANY)
        .with_context(|| format!("writing entry {index} of the map {:?}", map.name()))
}

fn per_cpu<T: plain::Plain + Copy + Default>(map: &impl MapCore, index: u32) -> Result<Vec<T>> {
    map.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
        .context("reading counters of each CPU (their number stands in /sys: is it mounted?)")?
        .with_context(|| format!("entry {index} of the map {:?} is not there", map.name()))?
        .iter()
        .map(|bytes| copy_from_bytes(bytes))
        .collect()
}

fn copy_from_bytes<T: plain::Plain + Copy + Default>(bytes: &[u8]) -> Result<T> {
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes)
        .map_err(|error| anyhow!("a map's value is not of the expected shape: {error:?}"))?;
    Ok(value)
}

/// A queue that holds the given ports.
fn port_queue(ports: &[u16]) -> Box<types::ports> {
    let mut queue = Box::new(types::ports {
        lock: Default::default(),
        head: 0,
        tail: ports.len() as u32,
        hand: 0,
        unconfirmed: 0,
        unconfirmed_max: (ports.len() as u32 / UNCONFIRMED_SHARE).max(1),
        begun_head: 0,
        begun_tail: 0,
        evicted: 0,
        port: [0; abi::PORTS],
        begun: [0; abi::PORTS],
    });
    queue.port[..ports.len()].copy_from_slice(ports);
    queue
}
