// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The control socket outlives clients that mean no good.

#[path = "common/mod.rs"]
mod common;

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xdp_proxy::control::{Control, Request, Response, find};

use common::root_or_skip;

fn ask(name: &str, request: Request) -> Result<Option<Response>> {
    let daemon = find(Some(name))?.daemons.into_iter().next();
    daemon.expect("a daemon is there").ask(request)
}

/// Serves until one request came, and answers it.
fn serve(name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut control = Control::bind(name).unwrap();
        let call = tokio::time::timeout(Duration::from_secs(20), control.call()).await;
        let (_, caller) = call.expect("a request comes through").unwrap();
        caller.answer_and_wait(Response::Stopped).await;
    });
}

#[test]
fn a_socket_that_ran_out_of_descriptors_serves_again() {
    if !root_or_skip("a_socket_that_ran_out_of_descriptors_serves_again") {
        return;
    }
    let name = format!("t{}", std::process::id());
    let address = SocketAddr::from_abstract_name(format!("xdp-proxy/{name}")).unwrap();
    let server = thread::spawn({
        let name = name.clone();
        move || serve(&name)
    });
    thread::sleep(Duration::from_millis(200));

    // Clients that say nothing, as many as this process may have. They are sent away for one
    // another, but both ends are of this process.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let mut clients = Vec::new();
    while let Ok(client) = UnixStream::connect_addr(&address) {
        clients.push(client);
    }
    thread::sleep(Duration::from_millis(300));
    drop(clients);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();

    let answer = ask(&name, Request::Stop).unwrap();
    assert!(matches!(answer, Some(Response::Stopped)), "{answer:?}");
    server.join().unwrap();
}

/// One that was killed, or that another `stop` ended meanwhile.
#[test]
fn a_daemon_that_ends_before_it_answers_is_none() {
    if !root_or_skip("a_daemon_that_ends_before_it_answers_is_none") {
        return;
    }
    let name = format!("d{}", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let control = runtime.block_on(async { Control::bind(&name).unwrap() });
    let client = thread::spawn({
        let name = name.clone();
        move || ask(&name, Request::Stop)
    });
    thread::sleep(Duration::from_millis(300));
    drop(control);
    drop(runtime);
    let answer = client.join().unwrap().unwrap();
    assert!(answer.is_none(), "{answer:?}");
}
