// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! benches/bench.bpf.c: compiled by clang when the benchmark runs, so that
//! nothing of it is in the main build, and loaded for one stream of frames.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use libbpf_rs::{Map, MapCore as _, MapFlags, Object, ObjectBuilder, ProgramInput, ProgramMut};

use xdp_proxy::datapath;

use crate::common::rig::Rig;
use crate::stream::Stream;

pub const FRAME_BYTES: usize = 96;
const LIST: usize = 65_536;
/// The kinds of frames where flows are opened and ended again, as in bench.bpf.c.
pub const OPENING: usize = 0;
pub const ENDING: usize = 1;
/// BPF_F_TEST_XDP_LIVE_FRAMES.
const LIVE_FRAMES: u32 = 2;

/// As in bench.bpf.c, where the fields are explained.
#[repr(C)]
pub struct Plan {
    pub frames: [[u8; FRAME_BYTES]; 2],
    pub restored_bytes: u32,
    pub flows: u32,
    pub out_interface: u32,
    pub port_at: u16,
    pub port_pad_at: u16,
    pub address_at: u16,
    pub address_pad_at: u16,
    pub identification_at: u16,
    pub listed: u16,
    pub ports: [u16; LIST],
    pub addresses: [u16; LIST],
}

/// What so many frames took together.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Timed {
    ns: u64,
    pub frames: u64,
}

impl Timed {
    pub fn mean_ns(&self) -> f64 {
        self.ns as f64 / self.frames as f64
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct State {
    arrived: u64,
    begun_ns: u64,
    timed: [Timed; 2],
    first: u32,
    next: u32,
    turn: u32,
    padding: u32,
}

// SAFETY: `repr(C)`, of fixed-width integers and arrays of them without padding,
// so that every bit pattern is a value.
unsafe impl plain::Plain for Plan {}
// SAFETY: the same.
unsafe impl plain::Plain for State {}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            frames: [[0; FRAME_BYTES]; 2],
            restored_bytes: 0,
            flows: 1,
            out_interface: 0,
            port_at: 0,
            port_pad_at: 0,
            address_at: 0,
            address_pad_at: 0,
            identification_at: 0,
            listed: 0,
            ports: [0; LIST],
            addresses: [0; LIST],
        }
    }
}

/// The object file, compiled once.
fn compiled() -> Result<&'static [u8]> {
    static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(object) = OBJECT.get() {
        return Ok(object);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let headers = std::env::temp_dir().join(format!("xdp-proxy-bench-{}", std::process::id()));
    fs::create_dir_all(headers.join("bpf"))
        .with_context(|| format!("making {}", headers.display()))?;
    for (name, text) in libbpf_sys::API_HEADERS {
        fs::write(headers.join("bpf").join(name), text)
            .with_context(|| format!("writing libbpf's {name}"))?;
    }
    let output = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-c", "-o", "-"])
        .args([
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Wno-sign-compare",
        ])
        .args(["-I".as_ref(), root.join("vmlinux").as_os_str()])
        .args(["-I".as_ref(), headers.as_os_str()])
        .arg(root.join("benches/bench.bpf.c"))
        .output();
    let _ = fs::remove_dir_all(&headers);
    let output = output.context("starting clang (is it installed? `make deps`)")?;
    ensure!(
        output.status.success(),
        "compiling benches/bench.bpf.c: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(OBJECT.get_or_init(|| output.stdout))
}

/// The programs of bench.bpf.c, loaded for one stream of frames.
pub struct Driver {
    object: Object,
    frame: Vec<u8>,
}

impl Driver {
    /// `tested` is called with each frame; live frames go to `out_interface`.
    ///
    /// # Errors
    /// clang or the kernel refuses the program.
    pub fn load(
        stream: &Stream,
        tested: Option<BorrowedFd<'_>>,
        out_interface: u32,
    ) -> Result<Driver> {
        let mut plan = Box::new(stream.plan());
        plan.out_interface = out_interface;
        let mut open = ObjectBuilder::default()
            .name("bench")?
            .open_memory(compiled()?)
            .context("reading the object of bench.bpf.c")?;
        open.maps_mut()
            .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
            .context("bench.bpf.c has no .rodata")?
            // SAFETY: plain data has no padding that is not explicit.
            .set_initial_value(unsafe { plain::as_bytes(&*plan) })
            .context("writing the plan")?;
        // Or the kernel lets none of them call the program that is measured.
        if datapath::knows_several_buffers() {
            for mut program in open.progs_mut() {
                program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
            }
        }
        let object = open.load().context("loading bench.bpf.c")?;
        let driver = Driver {
            object,
            frame: stream.frame.clone(),
        };
        let empty = driver.program("empty")?;
        let tested = tested.unwrap_or(empty.as_fd());
        for (slot, program) in [(0u32, tested), (1, empty.as_fd())] {
            driver
                .map("programs")?
                .update(
                    &slot.to_ne_bytes(),
                    &program.as_raw_fd().to_ne_bytes(),
                    MapFlags::ANY,
                )
                .context("naming the program that is measured")?;
        }
        Ok(driver)
    }

    pub fn program(&self, name: &str) -> Result<ProgramMut<'_>> {
        self.object
            .progs_mut()
            .find(|program| program.name() == name)
            .with_context(|| format!("bench.bpf.c has no program {name:?}"))
    }

    fn map(&self, name: &str) -> Result<Map<'_>> {
        self.object
            .maps()
            .find(|map| map.name().to_string_lossy().ends_with(name))
            .with_context(|| format!("bench.bpf.c has no map {name:?}"))
    }

    fn state(&self) -> Result<State> {
        let bytes = self
            .map(".bss")?
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?
            .context("bench.bpf.c has no state")?;
        let mut state = State::default();
        plain::copy_from_bytes(&mut state, &bytes)
            .map_err(|error| anyhow!("the state of bench.bpf.c has another shape: {error:?}"))?;
        Ok(state)
    }

    /// The next frame is of the flow with this number, and none has arrived.
    pub fn begin_at(&self, first: u32) -> Result<()> {
        let state = State {
            first,
            ..Default::default()
        };
        self.map(".bss")?
            // SAFETY: plain data has no padding that is not explicit.
            .update(
                &0u32.to_ne_bytes(),
                unsafe { plain::as_bytes(&state) },
                MapFlags::ANY,
            )
            .context("setting the first flow")
    }

    /// Frames that `count_frame` saw.
    pub fn arrived(&self) -> Result<u64> {
        Ok(self.state()?.arrived)
    }

    /// Runs a program so many times. The kernel's `duration` is in whole
    /// nanoseconds, cut off; half of one more is as often too much as too little.
    fn run(&self, program: &str, packets: u32) -> Result<f64> {
        let input = ProgramInput {
            data_in: Some(&self.frame),
            repeat: packets,
            ..Default::default()
        };
        let ran = self.program(program)?.test_run(input)?;
        Ok(ran.duration.as_nanos() as f64 + 0.5)
    }

    /// Nanoseconds for each of so many packets through the empty program.
    pub fn run_empty(&self, packets: u32) -> Result<f64> {
        self.run("call_empty", packets)
            .context("running the empty program")
    }

    /// The same through the program under test, which is a rig's.
    pub fn run_tested(&self, rig: &Rig, packets: u32) -> Result<f64> {
        self.run_rig("call_tested", rig, packets)
    }

    /// The packets that end so many flows, the first of which has this number.
    pub fn end_flows(&self, rig: &Rig, first: u32, flows: u32) -> Result<()> {
        self.begin_at(first)?;
        self.run_rig("end_tested", rig, flows)?;
        Ok(())
    }

    /// In turns a packet that opens a flow, from the one with this number on, and one
    /// that ends the oldest, through the empty program: what each kind took.
    pub fn turns_empty(&self, first: u32, packets: u32) -> Result<[Timed; 2]> {
        self.begin_at(first)?;
        self.run("turns_empty", packets)
            .context("running the empty program")?;
        Ok(self.state()?.timed)
    }

    /// The same through the program under test.
    pub fn turns_tested(&self, rig: &Rig, first: u32, packets: u32) -> Result<[Timed; 2]> {
        self.begin_at(first)?;
        self.run_rig("turns_tested", rig, packets)?;
        Ok(self.state()?.timed)
    }

    fn run_rig(&self, program: &str, rig: &Rig, packets: u32) -> Result<f64> {
        let ns = self
            .run(program, packets)
            .context("running the program under test")?;
        rig.ran.set(rig.ran.get() + u64::from(packets));
        Ok(ns)
    }

    /// Sends real frames as if they had come in by `interface` (0: none).
    pub fn run_live(&self, program: &str, interface: u32, frames: u32) -> Result<()> {
        let mut context = libbpf_sys::xdp_md {
            data_end: self.frame.len() as u32,
            ingress_ifindex: interface,
            ..Default::default()
        };
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: self.frame.as_ptr().cast(),
            data_size_in: self.frame.len() as u32,
            ctx_in: (&raw mut context).cast(),
            ctx_size_in: size_of_val(&context) as u32,
            repeat: frames as i32,
            flags: LIVE_FRAMES,
            ..Default::default()
        };
        let fd = self.program(program)?.as_fd().as_raw_fd();
        // SAFETY: frame and context outlive the call.
        let code = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &mut options) };
        ensure!(
            code == 0,
            "sending live frames: {} (they take Linux 5.18)",
            std::io::Error::from_raw_os_error(-code)
        );
        Ok(())
    }
}
