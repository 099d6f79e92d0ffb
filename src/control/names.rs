// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The names of control sockets: `@xdp-proxy/eth0`. As everybody may take a name, a daemon
//! that finds it taken by a stranger adds a number to it, `@xdp-proxy/eth0/1f0c5b7a9d3e2468`,
//! and clients ask all that there are.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nameindex;

use crate::tables::random_seed;

const PREFIX: &str = "xdp-proxy/";
/// The kernel's IFNAMSIZ, with the NUL.
const INTERFACE_BYTES: usize = 16;
/// The longest line of the list: a name has 107 bytes at most.
const LINE_BYTES_MAX: u64 = 512;
/// As many names are looked at, of interfaces that are there and of others.
const NAMES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub interface: String,
    number: Option<String>,
}

impl Name {
    /// What clients ask first.
    ///
    /// # Errors
    /// It is no name of an interface.
    pub fn of(interface: &str) -> Result<Name> {
        let name = Name::parse(interface.as_bytes());
        name.filter(|name| name.number.is_none())
            .with_context(|| format!("{interface:?} is no name of an interface"))
    }

    /// One that nobody has.
    pub fn other(&self) -> Name {
        let number = random_seed();
        Name {
            interface: self.interface.clone(),
            number: Some(format!("{:016x}", number)),
        }
    }

    pub fn is_first(&self) -> bool {
        self.number.is_none()
    }

    /// By what stands behind the prefix: without spaces and control characters, as nothing
    /// with them is a daemon's.
    fn parse(text: &[u8]) -> Option<Name> {
        let text = std::str::from_utf8(text).ok()?;
        let (interface, number) = match text.split_once('/') {
            Some((interface, number)) => (interface, Some(number)),
            None => (text, None),
        };
        let is_interface = (1..INTERFACE_BYTES).contains(&interface.len())
            && ![".", ".."].contains(&interface)
            && !interface.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':');
        let is_number = |number: &str| {
            let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            number.len() == 16 && number.chars().all(is_digit)
        };
        (is_interface && number.is_none_or(is_number)).then(|| Name {
            interface: interface.to_owned(),
            number: number.map(Into::into),
        })
    }

    /// The bytes of the socket's address.
    pub fn bytes(&self) -> Vec<u8> {
        let tail = self.number.as_ref().map(|number| format!("/{number}"));
        let tail = tail.unwrap_or_default();
        format!("{PREFIX}{}{tail}", self.interface).into_bytes()
    }

    pub fn bind(&self) -> io::Result<UnixListener> {
        let address = SocketAddr::from_abstract_name(self.bytes())?;
        let listener = UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// That a socket has.
    pub fn of_socket(listener: &UnixListener) -> Result<Name> {
        let address = listener
            .local_addr()
            .context("asking for the socket's name")?;
        let bytes = address.as_abstract_name().unwrap_or_default();
        let text = bytes.strip_prefix(PREFIX.as_bytes());
        text.and_then(Name::parse)
            .context("the control socket has another name than a daemon's")
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", String::from_utf8_lossy(&self.bytes()))
    }
}

/// The names of an interface, or of all, that are taken in this network namespace: first
/// those without number, of interfaces that are there.
pub(super) fn taken(interface: Option<&str>) -> Result<Vec<Name>> {
    let sockets = match (File::open("/proc/thread-self/net/unix"), interface) {
        (Ok(sockets), _) => sockets,
        // Without /proc the first name is known all the same.
        (Err(_), Some(interface)) => return Ok(vec![Name::of(interface)?]),
        (Err(error), None) => return Err(error).context("reading /proc/thread-self/net/unix"),
    };
    let there: BTreeSet<String> = if_nameindex().map_or_else(
        |_| BTreeSet::new(),
        |all| {
            let names = all.iter().map(|there| there.name().to_string_lossy());
            names.map(String::from).collect()
        },
    );
    let marker = format!("@{PREFIX}").into_bytes();
    let mut sockets = BufReader::new(sockets);
    let (mut likely, mut others) = (BTreeSet::new(), BTreeSet::new());
    let mut line = Vec::new();
    loop {
        line.clear();
        let part = (&mut sockets).take(LINE_BYTES_MAX);
        let read = { part }.read_until(b'\n', &mut line);
        if read.context("reading /proc/thread-self/net/unix")? == 0 {
            break;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let place = line.windows(marker.len()).position(|part| part == marker);
        let name = place.and_then(|place| Name::parse(&line[place + marker.len()..]));
        let Some(name) = name.filter(|name| interface.is_none_or(|i| i == name.interface)) else {
            continue;
        };
        let names = match there.contains(&name.interface) {
            true => &mut likely,
            false => &mut others,
        };
        if names.len() < NAMES_MAX {
            names.insert(name);
        }
    }
    let mut names: Vec<Name> = likely.into_iter().chain(others).collect();
    names.sort_by_key(|name| (!there.contains(&name.interface), !name.is_first()));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_daemon_would_take_is_a_name() {
        for good in ["eth0", "br-0.10@x", "eth0/0123456789abcdef", "straße"] {
            let name = Name::parse(good.as_bytes()).unwrap();
            assert_eq!(name.to_string(), format!("@xdp-proxy/{good}"));
        }
        for bad in [
            "",
            "..",
            "sixteen-letters-",
            "a b",
            "a\x1b[2J",
            "a/",
            "a/1",
            "a/b/c",
            "a:1",
            "a/0123456789ABCDEF",
            "a/0123456789abcdef0",
            "a\u{9b}",
            "\n",
        ] {
            assert_eq!(Name::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Name::parse(b"\xff"), None);
    }

    #[test]
    fn another_name_is_of_the_same_interface() {
        let name = Name::of("eth0").unwrap();
        let other = name.other();
        assert!(name.is_first() && !other.is_first());
        assert_ne!(other, name.other());
        let text = other.bytes();
        assert_eq!(Name::parse(&text[PREFIX.len()..]), Some(other));
        assert!(Name::of("eth0/0123456789abcdef").is_err());
    }
}
