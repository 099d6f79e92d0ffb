// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Random numbers that are the same in every run, so that a failure can be
//! met again.

use std::sync::LazyLock;

/// How many packets a long test may send: `wanted`, or PACKETS from the
/// environment where that is less (an emulated processor is slow).
pub fn at_most(wanted: usize) -> usize {
    static PACKETS: LazyLock<usize> = LazyLock::new(|| match std::env::var("PACKETS") {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("PACKETS={text} is no number")),
        Err(_) => usize::MAX,
    });
    wanted.min(*PACKETS)
}

pub struct Random(pub u64);

impl Random {
    /// xorshift64* (Vigna, "An experimental exploration of Marsaglia's
    /// xorshift generators, scrambled", 2016).
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.word()) * limit as u128) >> 64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.word().to_le_bytes());
        words.flatten().take(count).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
