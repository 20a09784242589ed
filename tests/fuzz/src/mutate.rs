//! Inputs for the tests: seeds with a few of their bytes changed, the same ones on every machine.

/// Longest input, in bytes; the same bound is given to libFuzzer.
const INPUT_BYTES_MAX: usize = 4096;

/// Values that sit at the edge of something.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, !0];

/// A seeded generator of inputs: the same seed gives the same inputs.
#[derive(Debug, Clone)]
pub struct Mutator(u64);

impl Mutator {
    /// Starts from this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// An input that follows from one of the seeds, or now and then from none.
    pub fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = match self.below(seeds.len() + 1) {
            0 => (0..self.below(512)).map(|_| self.byte()).collect(),
            at => seeds.get(at - 1).cloned().unwrap_or_default(),
        };
        for _ in 0..=self.below(6) {
            self.change(&mut input, seeds);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(7) {
            0 => input.insert(at, self.byte()),
            1 => drop(input.drain(at..input.len().min(at + 1 + self.below(8)))),
            2 => {
                let bit = 1 << self.below(8);
                self.put(input, at, |byte| byte ^ bit);
            }
            3 => {
                let byte = self.byte();
                self.put(input, at, |_| byte);
            }
            4 => {
                let edge = EDGES.get(self.below(EDGES.len())).copied().unwrap_or_default();
                let length = [1, 2, 4, 8].get(self.below(4)).copied().unwrap_or(1);
                for (offset, byte) in edge.to_le_bytes().into_iter().take(length).enumerate() {
                    self.put(input, at + offset, |_| byte);
                }
            }
            5 => {
                // A piece of its own, once more.
                let end = input.len().min(at + 1 + self.below(32));
                let piece = input.get(at..end).unwrap_or_default().to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, piece));
            }
            _ => {
                // The tail of another.
                let other = seeds.get(self.below(seeds.len().max(1))).cloned().unwrap_or_default();
                input.truncate(at);
                input.extend(other.into_iter().skip(at));
            }
        }
    }

    fn put(&self, input: &mut [u8], at: usize, change: impl FnOnce(u8) -> u8) {
        if let Some(byte) = input.get_mut(at) {
            *byte = change(*byte);
        }
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 32) % bound as u64).unwrap_or(0)
    }

    fn next(&mut self) -> u64 {
        // xorshift64*, with the constants of its author.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
