// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Where clients come in: a thread that accepts connections, and one for each guest until he
//! has shown that he is trusted.
//!
//! Everybody may connect, say nothing, or send descriptors whose closing takes as long as he
//! likes (a TCP connection that lingers), in whatever thread they are closed. So the daemon's
//! loop has no part in it, nothing of a guest's is closed but by his own thread, guests are
//! few, and he who keeps still longest has to go for the next one: a signal wakes his thread,
//! whatever it waits for. A client of ours says all that it has to say at once, and comes again
//! if it had to go.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::libc::c_int;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{MsgFlags, getsockopt, sockopt::PeerCredentials};
use tokio::sync::mpsc;

use super::{Greeting, Response, rights, trust};
use crate::privilege;

/// How long a guest may say nothing.
const GUEST_DEADLINE: Duration = Duration::from_secs(2);
/// Guests at a time, of one user and of all.
const GUESTS_OF_USER: usize = 16;
const GUESTS: usize = 64;
/// With those that were told to go and have not yet.
const GUESTS_WITH_GOING: usize = 128;
/// How often, and how long, room for a guest is waited for.
const ROOM_TRIES: usize = 1000;
const ROOM_PAUSE: Duration = Duration::from_millis(1);
/// Wakes a guest's thread from whatever it waits for.
const WAKE: Signal = Signal::SIGUSR2;
/// Where no descriptor is left, others have to close theirs first.
const ACCEPT_PAUSE: u16 = 100;
const STACK_BYTES: usize = 128 << 10;

/// The thread at the door; it ends when this is dropped.
pub(super) struct Door {
    shared: Arc<Shared>,
    /// Rung, and the thread looks at what is shared.
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    guests: Guests,
}

struct State {
    listener: Arc<UnixListener>,
    /// What a trusted client is told first.
    greeting: Greeting,
    is_open: bool,
    is_over: bool,
}

impl Door {
    /// A door that is closed. Trusted clients' conversations go to `visitors`.
    ///
    /// # Errors
    /// There is no thread to be had, or its privileges can't be given up.
    pub fn new(
        interface: &str,
        listener: UnixListener,
        visitors: mpsc::UnboundedSender<UnixStream>,
    ) -> Result<Door> {
        let doing = "opening the control socket";
        listener.set_nonblocking(true).context(doing)?;
        let wakes = SigHandler::Handler(do_nothing);
        let wakes = SigAction::new(wakes, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, and nobody else has a use for this signal.
        unsafe { sigaction(WAKE, &wakes) }.context(doing)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags).context(doing)?);
        let rung = bell.clone();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                listener: Arc::new(listener),
                greeting: Greeting::of(interface),
                is_open: false,
                is_over: false,
            }),
            guests: Guests::default(),
        });
        let (begun, beginning) = sync_channel(1);
        let attends = {
            let shared = shared.clone();
            move || {
                let limited = privilege::limit();
                let may_go_on = limited.is_ok();
                let _ = begun.send(limited);
                if may_go_on {
                    shared.attend(&rung, &visitors);
                }
            }
        };
        let thread = spawn("door", attends).context(doing)?;
        beginning.recv().context(doing)??;
        Ok(Door {
            shared,
            bell,
            thread: Some(thread),
        })
    }

    pub fn listener(&self) -> Arc<UnixListener> {
        self.shared.state().listener.clone()
    }

    pub fn open(&self, is_open: bool) {
        self.change(|state| state.is_open = is_open);
    }

    /// Has clients come by another socket from now on.
    pub fn move_to(&self, interface: &str, listener: UnixListener) {
        let mut old = None;
        self.change(|state| {
            old = Some(mem::replace(&mut state.listener, Arc::new(listener)));
            state.greeting = Greeting::of(interface);
        });
        // With it go those who have not been let in.
        let _ = spawn("old door", move || drop(old));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state());
        // It needs no memory, as a byte in a socket would, and rings until it is heard.
        let _ = self.bell.write(1);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.change(|state| state.is_over = true);
        self.shared.guests.dismiss();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Those who have not been let in go when the process ends, which waits for nothing.
        mem::forget(self.listener());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attend(self: &Arc<Shared>, bell: &EventFd, visitors: &mpsc::UnboundedSender<UnixStream>) {
        let mut pause = PollTimeout::NONE;
        loop {
            let (listener, greeting) = match &*self.state() {
                state if state.is_over => return,
                state => (
                    state.is_open.then(|| state.listener.clone()),
                    state.greeting.clone(),
                ),
            };
            // While it pauses it listens to the bell alone.
            let listener = listener.filter(|_| pause == PollTimeout::NONE);
            let mut both = vec![PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            both.extend(
                listener
                    .iter()
                    .map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)),
            );
            let _ = poll(&mut both, pause);
            let rings = both[0].any().unwrap_or(false);
            pause = PollTimeout::NONE;
            if rings {
                let _ = bell.read();
                continue;
            }
            let Some(listener) = listener else { continue };
            match listener.accept() {
                Ok((stream, _)) => self.let_in(stream, greeting, visitors.clone()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!("a client of the control socket is to wait: {error}");
                    pause = PollTimeout::from(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn let_in(
        self: &Arc<Shared>,
        stream: UnixStream,
        greeting: Greeting,
        visitors: mpsc::UnboundedSender<UnixStream>,
    ) {
        let Some(guest) = self.guests.admit(&stream) else {
            return;
        };
        let shared = self.clone();
        let talk = {
            let guest = guest.clone();
            move || {
                let _ = guest.thread.set(pthread_self());
                // He may have been told to go before a signal could have come.
                let talked = guest.stays().then(|| welcome(&stream, &greeting));
                match talked {
                    Some(Ok(visitor)) => drop(visitors.send(visitor)),
                    Some(Err(error)) => {
                        tracing::debug!("a client of the control socket left: {error:#}");
                    }
                    None => {}
                }
                // As long as this takes he is one of them.
                drop(stream);
                shared.guests.forget(&guest);
            }
        };
        if let Err(error) = spawn("guest", talk) {
            tracing::debug!("a client of the control socket is sent away: {error}");
            self.guests.forget(&guest);
        }
    }
}

extern "C" fn do_nothing(_: c_int) {}

/// Returns the daemon's end of a conversation with a trusted client.
fn welcome(guest: &UnixStream, greeting: &Greeting) -> Result<UnixStream> {
    guest.set_read_timeout(Some(GUEST_DEADLINE))?;
    let (_, descriptors) = rights::receive(guest, &mut [0; 64], 1, MsgFlags::empty())?;
    let door = descriptors.into_iter().next();
    let Some(door) = door.filter(|door| trust::is_marked(door)) else {
        // Of versions before this one too, which wait for a line.
        let word = "only an xdp-proxy of this version with CAP_NET_ADMIN is listened to";
        let line = serde_json::to_string(&Response::Error(word.into()))? + "\n";
        rights::send(guest, line.as_bytes(), &[], MsgFlags::MSG_DONTWAIT)?;
        anyhow::bail!("{word}");
    };
    let (visitor, given) = trust::pair()?;
    let line = serde_json::to_string(greeting)? + "\n";
    (&visitor).write_all(line.as_bytes())?;
    rights::send(&door, b"\n", &[given.into()], MsgFlags::MSG_DONTWAIT)?;
    Ok(visitor)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.into());
    thread.stack_size(STACK_BYTES).spawn(work)
}

/// Clients who have not shown yet who they are, the oldest first.
#[derive(Default)]
struct Guests(Mutex<Vec<Arc<Guest>>>);

struct Guest {
    user: u32,
    /// It was told to go.
    goes: AtomicBool,
    /// Known once it runs.
    thread: OnceLock<Pthread>,
}

impl Guest {
    fn stays(&self) -> bool {
        !self.goes.load(Ordering::Relaxed)
    }

    /// To be called while he is among the guests, so that his thread is there.
    fn dismiss(&self) {
        self.goes.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.get() {
            let _ = pthread_kill(*thread, WAKE);
        }
    }
}

impl Guests {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Guest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: nobody goes for him.
    fn admit(&self, stream: &UnixStream) -> Option<Arc<Guest>> {
        let user = getsockopt(stream, PeerCredentials).ok()?.uid();
        self.make_room(user);
        for _ in 0..ROOM_TRIES {
            let mut all = self.all();
            if all.len() < GUESTS_WITH_GOING {
                let guest = Arc::new(Guest {
                    user,
                    goes: AtomicBool::new(false),
                    thread: OnceLock::new(),
                });
                all.push(guest.clone());
                return Some(guest);
            }
            // A signal may have come before what it was to wake him from.
            let going = all.iter().filter(|guest| !guest.stays());
            going.for_each(|guest| guest.dismiss());
            drop(all);
            thread::sleep(ROOM_PAUSE);
        }
        None
    }

    /// Has one go, if there are as many as may stay.
    fn make_room(&self, user: u32) {
        let all = self.all();
        let mut of_users: BTreeMap<u32, usize> = BTreeMap::new();
        for guest in all.iter().filter(|guest| guest.stays()) {
            *of_users.entry(guest.user).or_default() += 1;
        }
        let most = of_users.iter().max_by_key(|(_, count)| **count);
        let most = most.map(|(user, _)| *user);
        let from = match of_users.get(&user) {
            Some(count) if *count >= GUESTS_OF_USER => Some(user),
            _ if of_users.values().sum::<usize>() >= GUESTS => most,
            _ => None,
        };
        let mut staying = all.iter().filter(|guest| guest.stays());
        let oldest = staying.find(|guest| Some(guest.user) == from);
        if let Some(oldest) = oldest {
            oldest.dismiss();
        }
    }

    fn forget(&self, guest: &Arc<Guest>) {
        self.all().retain(|other| !Arc::ptr_eq(other, guest));
    }

    fn dismiss(&self) {
        self.all().iter().for_each(|guest| guest.dismiss());
    }
}

/// Another handle of a listener.
pub(super) fn handle(listener: &UnixListener) -> Result<OwnedFd> {
    let handle = listener.as_fd().try_clone_to_owned();
    handle.context("handing over the control socket")
}
