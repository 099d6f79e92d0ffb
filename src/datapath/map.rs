// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One map of the kernel's by its descriptor, whoever made it, and its values by
//! their types.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, anyhow, ensure};
use libbpf_rs::{MapCore, MapInfo, MapType};

/// Entries that are read at a time.
const BATCH: u32 = 4096;

/// A map whose keys are `u32`, as of arrays.
pub(super) struct Map {
    fd: OwnedFd,
    /// As the kernel has it: cut to 15 characters.
    name: String,
    pub id: u32,
    pub value_bytes: usize,
    pub max_entries: u32,
    per_cpu: bool,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Map {
    pub fn new(fd: OwnedFd) -> Result<Map> {
        let info = MapInfo::new(fd.as_fd()).context("asking what a map is")?;
        let name = info.name().context("asking for a map's name")?.to_owned();
        Ok(Map {
            name,
            id: info.info.id,
            value_bytes: info.info.value_size as usize,
            max_entries: info.info.max_entries,
            per_cpu: info.map_type() == MapType::PercpuArray,
            fd,
        })
    }

    /// Another handle of a map.
    pub fn of(map: &impl MapCore) -> Result<Map> {
        let fd = map.as_fd().try_clone_to_owned();
        Map::new(fd.with_context(|| format!("holding the map {:?}", map.name()))?)
    }

    /// An array of tables' entries, which begins at a page.
    pub fn create(name: &str, value_bytes: usize, entries: usize) -> Result<Map> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            map_flags: libbpf_sys::BPF_F_MMAPABLE,
            ..Default::default()
        };
        let c_name = CString::new(name)?;
        // SAFETY: the name ends with a NUL; the options carry their size.
        let fd = unsafe {
            libbpf_sys::bpf_map_create(
                libbpf_sys::BPF_MAP_TYPE_ARRAY,
                c_name.as_ptr(),
                size_of::<u32>() as u32,
                value_bytes as u32,
                entries as u32,
                &options,
            )
        };
        Map::new(owned(fd).with_context(|| format!("making the map {name:?}"))?)
    }

    pub fn from_id(id: u32) -> Result<Map> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) };
        Map::new(owned(fd).with_context(|| format!("opening the map with id {id}"))?)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A value, of one CPU.
    pub fn get<T: plain::Plain + Copy + Default>(&self, index: u32) -> Result<T> {
        ensure!(
            !self.per_cpu,
            "the map {:?} has a value for each CPU",
            self.name
        );
        from_bytes(&self.lookup(index)?)
    }

    /// A value's bytes, of all CPUs one after the other.
    pub fn lookup(&self, index: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes_per_entry()?];
        // SAFETY: the key is a u32, and the value has the room that the kernel fills.
        let error = unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                self.fd.as_raw_fd(),
                (&raw const index).cast(),
                bytes.as_mut_ptr().cast(),
            )
        };
        self.check(error, "reading", index)?;
        Ok(bytes)
    }

    /// A value for each CPU.
    pub fn per_cpu<T: plain::Plain + Copy + Default>(&self, index: u32) -> Result<Vec<T>> {
        let bytes = self.lookup(index)?;
        let stride = self.value_bytes.next_multiple_of(8);
        bytes.chunks_exact(stride).map(from_bytes).collect()
    }

    /// Hands on every value, in the order of the indexes.
    pub fn each<T: plain::Plain + Copy + Default>(
        &self,
        mut take: impl FnMut(u32, &T),
    ) -> Result<()> {
        let stride = self.bytes_per_entry()?;
        let mut keys = vec![0u32; BATCH as usize];
        let mut values = vec![0; stride * BATCH as usize];
        let (mut token, mut done) = (0u32, 0);
        while done < self.max_entries {
            let mut count = BATCH;
            let begin = match done {
                0 => std::ptr::null_mut(),
                _ => (&raw mut token).cast(),
            };
            // SAFETY: keys and values have room for `count` entries, and the token
            // that for a key.
            let error = unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    self.fd.as_raw_fd(),
                    begin,
                    (&raw mut token).cast(),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &mut count,
                    std::ptr::null(),
                )
            };
            // ENOENT: these were the last.
            if error != 0 && error != -nix::libc::ENOENT {
                self.check(error, "reading", done)?;
            }
            let entries = values.chunks_exact(stride).zip(&keys);
            for (value, key) in entries.take(count as usize) {
                take(*key, &from_bytes(&value[..self.value_bytes])?);
            }
            done += count;
            if error != 0 || count == 0 {
                break;
            }
        }
        Ok(())
    }

    pub fn put<T: plain::Plain>(&self, index: u32, value: &T) -> Result<()> {
        // SAFETY: plain data has no padding that is not explicit.
        self.update(index, unsafe { plain::as_bytes(value) })
    }

    /// Writes a value, of all CPUs one after the other.
    pub fn update(&self, index: u32, bytes: &[u8]) -> Result<()> {
        ensure!(
            bytes.len() == self.bytes_per_entry()?,
            "{} bytes are no value of the map {:?}",
            bytes.len(),
            self.name
        );
        // SAFETY: the key is a u32, and the value has the size that the kernel reads.
        let error = unsafe {
            libbpf_sys::bpf_map_update_elem(
                self.fd.as_raw_fd(),
                (&raw const index).cast(),
                bytes.as_ptr().cast(),
                0,
            )
        };
        self.check(error, "writing", index)
    }

    /// Of a map of maps.
    pub fn remove(&self, index: u32) -> Result<()> {
        // SAFETY: the key is a u32.
        let error = unsafe {
            libbpf_sys::bpf_map_delete_elem(self.fd.as_raw_fd(), (&raw const index).cast())
        };
        match error {
            error if error == -nix::libc::ENOENT => Ok(()),
            error => self.check(error, "removing", index),
        }
    }

    /// All CPUs' values become 0.
    pub fn clear(&self, index: u32) -> Result<()> {
        self.update(index, &vec![0; self.bytes_per_entry()?])
    }

    fn bytes_per_entry(&self) -> Result<usize> {
        if !self.per_cpu {
            return Ok(self.value_bytes);
        }
        let cpus = libbpf_rs::num_possible_cpus()
            .context("counting the CPUs, whose number stands in /sys: is it mounted?")?;
        Ok(self.value_bytes.next_multiple_of(8) * cpus)
    }

    fn check(&self, error: i32, doing: &str, index: u32) -> Result<()> {
        if error == 0 {
            return Ok(());
        }
        Err(std::io::Error::from_raw_os_error(-error))
            .with_context(|| format!("{doing} entry {index} of the map {:?}", self.name))
    }
}

/// Gives a program or a map a name in a bpffs.
pub(super) fn pin(object: BorrowedFd, path: &CStr) -> io::Result<()> {
    // SAFETY: the name ends with a NUL, and both live across the call.
    match unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// What has this name in a bpffs.
pub(super) fn pinned(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a NUL and lives across the call.
    owned(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

/// What libbpf returns for a descriptor.
pub(super) fn owned(fd: i32) -> std::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel gave the descriptor to the caller, who owns it alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn from_bytes<T: plain::Plain + Copy + Default>(bytes: &[u8]) -> Result<T> {
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes)
        .map_err(|error| anyhow!("a map's value is not of the expected shape: {error:?}"))?;
    Ok(value)
}
