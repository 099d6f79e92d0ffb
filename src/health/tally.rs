// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Rise and fall: how many checks it takes to change one's mind. Pure.

use crate::service::Health;

/// A backend's health, and the checks in a row that contradict it.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    health: Health,
    rise: u32,
    fall: u32,
    against: u32,
}

impl Tally {
    pub fn new(health: Health, rise: u32, fall: u32) -> Tally {
        Tally {
            health,
            rise,
            fall,
            against: 0,
        }
    }

    /// Takes a check in; true if the health is another one now. Where nothing was
    /// known, one check is enough.
    pub fn add(&mut self, succeeded: bool) -> bool {
        let (seen, enough) = match (succeeded, self.health) {
            (true, Health::Unknown) => (Health::Up, 1),
            (false, Health::Unknown) => (Health::Down, 1),
            (true, _) => (Health::Up, self.rise),
            (false, _) => (Health::Down, self.fall),
        };
        self.against = if seen == self.health {
            0
        } else {
            self.against + 1
        };
        if self.against < enough.max(1) {
            return false;
        }
        (self.health, self.against) = (seen, 0);
        true
    }

    pub fn health(&self) -> Health {
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The health after each check: `+` succeeded, `-` failed; `?` unknown, `U` up,
    /// `D` down.
    fn course(health: Health, checks: &str) -> String {
        let mut tally = Tally::new(health, 2, 3);
        let after = checks.chars().map(|check| {
            let before = tally.health();
            assert_eq!(tally.add(check == '+'), tally.health() != before);
            match tally.health() {
                Health::Unknown => '?',
                Health::Up => 'U',
                Health::Down => 'D',
            }
        });
        after.collect()
    }

    #[test]
    fn the_first_check_decides_where_nothing_was_known() {
        assert_eq!(course(Health::Unknown, "+"), "U");
        assert_eq!(course(Health::Unknown, "-"), "D");
    }

    #[test]
    fn it_takes_checks_in_a_row_to_fall_and_to_rise() {
        assert_eq!(course(Health::Up, "--+---++"), "UUUUUDDU");
        assert_eq!(course(Health::Down, "+-+-++--"), "DDDDDUUU");
        assert_eq!(course(Health::Unknown, "-+-++---"), "DDDDUUUD");
    }
}
