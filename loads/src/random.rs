//! Random numbers that a seed repeats.

/// SplitMix64 (Steele, Lea, Flood, 2014): any seed will do.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut a, mut b, mut c) = (Random(7), Random(7), Random(8));
        let draw = |random: &mut Random| [(); 8].map(|()| random.below(1000));
        let first = draw(&mut a);
        assert_eq!(first, draw(&mut b));
        assert_ne!(first, draw(&mut c));
        assert!(first.iter().all(|&x| x < 1000));
    }
}
