// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `xdp-proxy`: a layer-4 load balancer at XDP. The library holds everything
//! but `main`, so that tests and benchmarks can link it.

pub mod abi;
pub mod attach;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod excerpt;
pub mod flows;
pub mod health;
pub mod inspect;
pub mod log;
pub mod maglev;
pub mod manager;
pub mod neighbour;
pub mod privilege;
pub mod repeats;
pub mod service;
pub mod stats;
pub mod status;
pub mod tables;
pub mod terminal;
pub mod vlan;
