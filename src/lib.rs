// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `xdp-proxy`: a layer-4 load balancer at XDP. The library holds everything
//! but `main`, so that tests and benchmarks can link it.

pub mod neighbour;
pub mod service;
